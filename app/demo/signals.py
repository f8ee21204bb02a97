"""Ctrl-C and its relatives, brought to the places where the demo can be ended without leaving anything behind."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any, Final, Self

_ENDING: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupted(SystemExit):
    """A signal asked the demo to end; as an exit it unwinds everything, asyncio included. `code` is the shell's 128 + number."""


class Signals:
    """While it is entered, the first ending signal raises `Interrupted` in the main thread; those after it change nothing."""

    def __init__(self) -> None:
        self._before: dict[signal.Signals, Any] = {}
        self._deferring = 0
        self._waiting: int | None = None
        self._ended = False

    def __enter__(self) -> Self:
        self._before = {number: signal.signal(number, self._take) for number in _ENDING}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Within, a signal waits until the end: starting something and noting it, or stopping it, must not be cut in two."""
        self._deferring += 1
        try:
            yield
        finally:
            self._deferring -= 1
        if self._waiting is not None and not self._deferring:
            self._end(self._waiting)

    def _take(self, number: int, frame: FrameType | None) -> None:
        if self._ended:
            return
        if self._deferring:
            self._waiting = number
        else:
            self._end(number)

    def _end(self, number: int) -> None:
        self._ended, self._waiting = True, None
        raise Interrupted(128 + number)
