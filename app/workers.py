"""Several server processes: uvicorn's supervisor, but none of them keeps it from the others.

uvicorn asks one worker after the other for a sign of life and waits for each. One that dies at that moment is waited for as long
as one that hangs, and one that has just been started until it has imported what it needs; whoever dies meanwhile is not replaced.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pickle import UnpicklingError
from time import monotonic
from weakref import WeakKeyDictionary

from uvicorn import Config
from uvicorn.config import STARTUP_FAILURE
from uvicorn.supervisors import Multiprocess
from uvicorn.supervisors.multiprocess import Process

_AGAIN_S = 5.0  # between two starts in the place of one worker: they may die of what they load, each time
_STOP_S = 20.0  # longer than a worker gives its last requests

log = logging.getLogger("uvicorn.error")


@dataclass
class _Life:
    """When a worker was first looked at, when it was asked for a sign of life last, and whether it has been seen to be over."""

    begun_s: float
    asked_s: float | None = None
    over: bool = False


class Workers(Multiprocess):
    """`config.workers` processes that share a port. One that has died is replaced within a second, if it lived for five; one that
    gives no sign of life for `config.timeout_worker_healthcheck` seconds is killed and replaced.

    Attributes:
        failed: a worker could not start, and none had before; `run` has ended for that.
    """

    def __init__(self, config: Config) -> None:
        super().__init__(config, sockets=[config.bind_socket()])
        self._lives: WeakKeyDictionary[Process, _Life] = WeakKeyDictionary()
        self._served = False
        self.failed = False

    def keep_subprocess_alive(self) -> None:
        """Look at each worker, wait for none, and replace those that are gone."""
        for place, process in enumerate(self.processes):
            life = self._lives.setdefault(process, _Life(monotonic()))
            if not life.over:
                if process.process.is_alive() and self._is_heard(process, life):
                    continue
                process.kill()
                process.join()
                life.over = True
                log.error(f"Child process [{process.pid}] died with exit code {process.exitcode}")
                if process.exitcode == STARTUP_FAILURE and not self._served:  # nor would any other one
                    log.error("No worker can start, stopping the parent process.")
                    self.failed = True
                    self.should_exit.set()
                    return
            if monotonic() >= life.begun_s + _AGAIN_S:
                try:
                    another = Process(self.config, self.sockets)
                    another.start()
                except OSError as error:  # no memory, or no process to be had just now: no reason for the others to end
                    log.error(f"No process can be started in the place of [{process.pid}]: {error.strerror}")
                    life.begun_s = monotonic()
                    continue
                self.processes[place] = another

    def join_all(self) -> None:
        """Wait until all have ended as they were told to, and no longer for one that stands still."""
        until_s = monotonic() + _STOP_S
        for process in self.processes:
            process.process.join(max(0.0, until_s - monotonic()))
            if process.process.is_alive():
                process.kill()
            process.join()

    def _is_heard(self, process: Process, life: _Life) -> bool:
        """Whether it has answered the last question, or may still; asks the next one."""
        try:
            if life.asked_s is not None:
                if not process.parent_conn.poll():
                    return monotonic() < life.asked_s + self.config.timeout_worker_healthcheck
                self._served |= process.parent_conn.recv()
            process.parent_conn.send(b"ping")
        except (OSError, EOFError, UnpicklingError):
            return False
        life.asked_s = monotonic()
        return True
