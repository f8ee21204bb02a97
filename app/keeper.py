"""Keeps a child process running beside the service: started again when it dies, ended with the service whatever ends that."""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final

import structlog

from app.state.embedded import asking_for_signal

_RESTART_DELAY_S: Final = 1.0
_STOP_S: Final = 30.0
_NICENESS: Final = 10  # requests come first

log = structlog.get_logger()


@contextmanager
def kept(name: str, command: Sequence[str]) -> Iterator[None]:
    """Run a command until the end of the block; it then gets SIGTERM, and some time to finish what it has begun."""
    stopping = threading.Event()
    current: list[subprocess.Popen[bytes]] = []
    guard = threading.Lock()

    def keep() -> None:
        # A thread of its own: Linux sends the parent-death signal when the thread that started a process ends.
        ask = asking_for_signal(os.getpid())

        def prepare() -> None:
            os.nice(_NICENESS)
            if ask is not None:
                ask()

        while True:
            try:
                with guard:
                    if stopping.is_set():
                        return
                    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True, preexec_fn=prepare)
                    current[:] = [child]
            except OSError as error:  # no memory, or no process to be had just now
                why = f"cannot be started: {error.strerror}"
            else:
                why = f"has ended with exit code {child.wait()}"
            if stopping.wait(_RESTART_DELAY_S):
                return
            log.error("a process beside the service is started again", process=name, why=why)

    thread = threading.Thread(target=keep, name=name, daemon=True)
    thread.start()
    try:
        yield
    finally:
        with guard:
            stopping.set()
        for child in current:
            child.terminate()
            try:
                child.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                child.kill()
        thread.join()
