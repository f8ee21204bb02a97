"""Several server processes: uvicorn's supervisor, but none of them keeps it from the others.

uvicorn asks one worker after the other for a sign of life and waits for each. One that dies at that moment is waited for as long
as one that hangs, and one that has just been started until it has imported what it needs; whoever dies meanwhile is not replaced.
"""

from __future__ import annotations

import logging
from pickle import UnpicklingError
from time import monotonic
from weakref import WeakKeyDictionary

from uvicorn import Config
from uvicorn.config import STARTUP_FAILURE
from uvicorn.supervisors import Multiprocess
from uvicorn.supervisors.multiprocess import Process

log = logging.getLogger("uvicorn.error")


class Workers(Multiprocess):
    """`config.workers` processes that share a port. One that has died is replaced within a second, one that gives no sign of life
    for `config.timeout_worker_healthcheck` seconds is killed and replaced."""

    def __init__(self, config: Config) -> None:
        super().__init__(config, sockets=[config.bind_socket()])
        self._asked_s: WeakKeyDictionary[Process, float] = WeakKeyDictionary()

    def keep_subprocess_alive(self) -> None:
        """Look at each worker, wait for none, and replace those that are gone."""
        for place, process in enumerate(self.processes):
            if self.should_exit.is_set():
                return
            if process.process.is_alive() and self._is_heard(process):
                continue
            process.kill()
            process.join()
            if process.exitcode == STARTUP_FAILURE:  # and so would every other one
                log.error(f"Child process [{process.pid}] failed to start, stopping the parent process.")
                self.should_exit.set()
                return
            log.info(f"Child process [{process.pid}] died")
            self.processes[place] = Process(self.config, self.sockets)
            self.processes[place].start()

    def _is_heard(self, process: Process) -> bool:
        """Whether it has answered the last question, or may still; asks the next one."""
        try:
            if process in self._asked_s:
                if not process.parent_conn.poll():
                    return monotonic() < self._asked_s[process] + self.config.timeout_worker_healthcheck
                process.parent_conn.recv()
            process.parent_conn.send(b"ping")
        except (OSError, EOFError, UnpicklingError):
            return False
        self._asked_s[process] = monotonic()
        return True
