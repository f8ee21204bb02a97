"""The service and the floor as processes of their own, on the cores that they are given."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from app.settings import PREFIX, variable
from loadtests.connection import Connection, get
from loadtests.errors import BenchError
from loadtests.floor import PATH as FLOOR_PATH
from loadtests.machine import ROOT

_READY_S: Final = 600.0  # with a million items
_STOP_S: Final = 20.0
_POLL_S: Final = 0.05
_LAST_LINES: Final = 15


@dataclass(frozen=True)
class Server:
    """A server that is ready."""

    port: int
    pid: int


def end_servers_on_sigterm() -> None:
    """SIGTERM ends this program as Ctrl-C does, and with it the servers that it has started. For programs that run for long."""
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))


@contextmanager
def serving(bundle: Path, redis_url: str, cores: Iterable[int], log: Path, **settings: object) -> Iterator[Server]:
    """`longwave serve` with one worker and every setting at its default, but for `settings` by name.

    Raises BenchError if it does not get ready.
    """
    port = _free_port()
    command = [sys.executable, "-c", "from app.cli import main; main()", "serve", "--bundle", str(bundle), "--port", str(port)]
    chosen = {variable(name): str(value) for name, value in settings.items()} | {variable("redis_url"): redis_url}
    with _running(command, port, "/readyz", chosen, cores, log) as server:
        yield server


@contextmanager
def floor(redis_url: str, get_bytes: int, post_bytes: int, cores: Iterable[int], log: Path) -> Iterator[Server]:
    """The floor, answering bodies of so many bytes. Raises BenchError if it does not get ready."""
    port = _free_port()
    command = [sys.executable, "-m", "loadtests.floor", redis_url, str(get_bytes), str(post_bytes), str(port)]
    with _running(command, port, FLOOR_PATH, {}, cores, log) as server:
        yield server


@contextmanager
def _running(
    command: Sequence[str], port: int, ready: str, settings: dict[str, str], cores: Iterable[int], log: Path
) -> Iterator[Server]:
    # A developer's own settings must not be what is measured.
    environment = {name: value for name, value in os.environ.items() if not name.upper().startswith(PREFIX)} | settings
    pin = partial(os.sched_setaffinity, 0, set(cores))
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output, preexec_fn=pin
        )
    try:
        deadline = time.monotonic() + _READY_S
        while not _answers(port, ready):
            if process.poll() is not None or time.monotonic() > deadline:
                said = "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-_LAST_LINES:])
                raise BenchError(f"the server on port {port} did not get ready; its last lines:\n{said}")
            time.sleep(_POLL_S)
        yield Server(port, process.pid)
    finally:
        process.terminate()
        try:
            process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _answers(port: int, path: str) -> bool:
    try:
        with Connection(port) as connection:
            return connection.ask(get(path)).status == 200
    except BenchError:
        return False


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
