"""Arrays whose first axis grows, for rows that are added while the others are read."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

_SLACK: Final = 1_024  # rows at least that can be appended before everything is copied again


class Growing:
    """An array that grows; what it was made from is never written to if it is read-only."""

    def __init__(self, array: npt.NDArray[Any]) -> None:
        self._buffer = array
        self._size = len(array)

    @property
    def rows(self) -> npt.NDArray[Any]:
        return self._buffer[: self._size]

    def put(self, row: int, value: Any) -> None:
        """Write a row: one that is there, or the next one."""
        if row >= len(self._buffer) or not self._buffer.flags.writeable:
            room = max(row + 1, self._size + self._size // 8 + _SLACK)
            buffer = np.empty((room, *self._buffer.shape[1:]), self._buffer.dtype)
            buffer[: self._size] = self.rows
            self._buffer = buffer
        self._buffer[row] = value
        self._size = max(self._size, row + 1)


class Mostly(Growing):
    """A column that has the same value in every row, and takes no memory until one has another."""

    def __init__(self, value: int, count: int) -> None:
        super().__init__(_repeated(value, count))
        self._value = value

    @property
    def is_uniform(self) -> bool:
        """Whether no row ever had another value."""
        return not self._buffer.flags.writeable

    def put(self, row: int, value: Any) -> None:
        if value != self._value or not self.is_uniform:
            super().put(row, value)
        elif row >= self._size:
            self._size = row + 1
            self._buffer = _repeated(self._value, self._size)


def _repeated(value: int, count: int) -> npt.NDArray[np.int64]:
    return np.broadcast_to(np.int64(value), count)
