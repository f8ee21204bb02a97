"""The demo's child processes, each in a process group of its own: Ctrl-C reaches the demo alone, which then ends them in turn."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import IO, Final, Self

from app.demo.errors import DemoError
from app.demo.signals import Signals

_STOP_S: Final = 15.0
_LAST_LINES: Final = 15


class Child:
    """A running command. `log` is where its output goes, or None where it goes to the demo's own terminal."""

    def __init__(self, name: str, process: subprocess.Popen[bytes], log: Path | None, stop_signal: signal.Signals) -> None:
        self.name = name
        self.process = process
        self._log = log
        self._stop_signal = stop_signal

    @property
    def running(self) -> bool:
        return self.process.poll() is None

    def last_lines(self) -> str:
        """The end of its log; empty without one."""
        if self._log is None:
            return ""
        lines = self._log.read_text(encoding="utf-8", errors="replace").splitlines()
        return "\n".join(lines[-_LAST_LINES:])

    def failure(self, what: str) -> DemoError:
        """An error that says `what` and shows the child's last lines."""
        said = self.last_lines()
        return DemoError(f"{what}; its last lines ({self._log}):\n{said}" if said else what)

    def stop(self) -> None:
        """End it and return when it is gone; one that does not end in time is killed with all its own children."""
        if not self.running:
            return
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, self._stop_signal)
        try:
            self.process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


class Children:
    """Starts children; when the context ends, those that still run are stopped, the latest first."""

    def __init__(self, signals: Signals) -> None:
        self._signals = signals
        self._started: list[Child] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        with self._signals.deferred():
            for child in reversed(self._started):
                child.stop()

    def start(
        self,
        name: str,
        command: Sequence[str],
        *,
        log: Path | None = None,
        environment: dict[str, str] | None = None,
        niceness: int = 0,
        stop_signal: signal.Signals = signal.SIGINT,
    ) -> Child:
        """Start a command.

        Args:
            log: a file for its output, begun anew. None: it inherits the demo's, and its progress bars with it.
            environment: added to the demo's own.
            niceness: added to the demo's own; 10 leaves the processor to others.
            stop_signal: what asks it to end. SIGINT lets a command with a progress bar give the cursor back.
        """
        lower: Callable[[], object] | None = partial(os.nice, niceness) if niceness else None
        # Lines must come as they are made, also into a file: they are what is shown when the child fails.
        variables = {**os.environ, "PYTHONUNBUFFERED": "1", **(environment or {})}
        output: IO[bytes] | None = log.open("wb") if log is not None else None
        try:
            with self._signals.deferred():
                process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT if output is not None else None,
                    env=variables,
                    start_new_session=True,
                    preexec_fn=lower,
                )
                child = Child(name, process, log, stop_signal)
                self._started.append(child)
        finally:
            if output is not None:
                output.close()
        return child


def console_script(name: str) -> Path:
    """A command that was installed beside this interpreter. Raises DemoError if it was not."""
    path = Path(sys.executable).parent / name
    if not path.exists():
        raise DemoError(f"there is no {name} beside {sys.executable}: install it with the extras cpu, train, demo")
    return path
