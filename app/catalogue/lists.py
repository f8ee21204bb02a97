"""A column of lists, whose entries are found by comparing alone where that is possible."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Final, Literal, cast

import numpy as np
import numpy.typing as npt

from app.catalogue.columns import Cells, ListCodes, Mask, Scalar, Value, Vocabulary

_SLOTS: Final = 4  # entries of a list that stand in arrays of their own
_LEAST_DEAD: Final = 1_024  # entries; a short array is not worth compacting


class ListColumn:
    """Lists of strings: the first four entries in arrays over the rows, the others of all rows in one more array.

    An entry that many items have is then found by comparing alone; writing a quarter of a million rows into a mask one by one
    takes ten times as long, and is only done for what stands fifth or later.
    """

    kind: ClassVar[Literal["list"]] = "list"

    def __init__(self, count: int, lengths: type[np.int8 | np.int32] = np.int8) -> None:
        """`lengths` says how long a list may be: attributes have at most 64 entries, a bundle's categories have no bound."""
        self._lengths: Cells[Any] = Cells(count, -1, lengths)  # -1: no value, which is not the empty list
        self._slots: list[Cells[np.int32]] = []  # codes, -1 behind the end of a list
        self._starts: Cells[np.int32] | None = None  # of each row's entries from the fifth on, in the next two
        self._entry_rows = Cells(0, -1, np.int32)
        self._entry_codes = Cells(0, -1, np.int32)  # -1: dead
        self._dead = 0
        self._vocabulary = Vocabulary()

    @property
    def nbytes(self) -> int:
        cells: list[Cells[Any]] = [self._lengths, *self._slots, self._entry_rows, self._entry_codes]
        if self._starts is not None:
            cells.append(self._starts)
        return sum(some.used.nbytes for some in cells) + self._vocabulary.nbytes

    def grow(self, count: int) -> None:
        self._lengths.grow(count)
        for slot in self._slots:
            slot.grow(count)
        if self._starts is not None:
            self._starts.grow(count)

    def put(self, row: int, value: Value) -> None:
        codes = [self._vocabulary.take(entry) for entry in cast("Sequence[str]", value)]  # before the old ones are dropped
        self.drop(row)
        while len(self._slots) < min(len(codes), _SLOTS):
            self._slots.append(Cells(len(self._lengths), -1, np.int32))
        for slot, code in zip(self._slots, codes, strict=False):
            slot.used[row] = code
        more = codes[_SLOTS:]
        if more:
            if self._starts is None:
                self._starts = Cells(len(self._lengths), 0, np.int32)
            start = len(self._entry_codes)
            self._starts.used[row] = start
            self._entry_rows.grow(start + len(more))
            self._entry_codes.grow(start + len(more))
            self._entry_rows.used[start:] = row
            self._entry_codes.used[start:] = more
        self._lengths.used[row] = len(codes)

    def drop(self, row: int) -> None:
        length = int(self._lengths.used[row])
        if length < 0:
            return
        for code in self._of(row, length):
            self._vocabulary.release(code)
        for slot in self._slots[:length]:
            slot.used[row] = -1
        self._lengths.used[row] = -1
        if length > _SLOTS:
            self._entries(row, length)[:] = -1
            self._dead += length - _SLOTS
            if self._dead >= max(_LEAST_DEAD, len(self._entry_codes) / 2):
                self._compact()

    def value(self, row: int) -> list[str] | None:
        length = int(self._lengths.used[row])
        return [self._vocabulary.string(code) for code in self._of(row, length)] if length >= 0 else None

    def present(self) -> Mask:
        return self._lengths.used >= 0

    def any_of(self, values: Sequence[Scalar]) -> Mask:
        where = self._vocabulary.where(values)
        mask = np.zeros(len(self._lengths), np.bool_)
        for slot in self._slots:
            mask |= where(slot.used)
        if len(self._entry_codes):
            mask[self._entry_rows.used.compress(where(self._entry_codes.used))] = True
        return mask

    def groups(self) -> ListCodes:
        starts = self._starts.used.copy() if self._starts is not None else None
        slots = [slot.used.copy() for slot in self._slots]
        return ListCodes(self._lengths.used.copy(), slots, starts, self._entry_codes.used.copy())

    def _of(self, row: int, length: int) -> list[int]:
        codes = [int(slot.used[row]) for slot in self._slots[:length]]
        return codes + self._entries(row, length).tolist() if length > _SLOTS else codes

    def _entries(self, row: int, length: int) -> npt.NDArray[np.int32]:
        assert self._starts is not None
        start = int(self._starts.used[row])
        return self._entry_codes.used[start : start + length - _SLOTS]

    def _compact(self) -> None:
        """Close the gaps of dead entries; those of one row stay together."""
        assert self._starts is not None
        alive = self._entry_codes.used >= 0
        places = np.cumsum(alive, dtype=np.int32) - alive  # of each entry afterwards
        long = self._lengths.used > _SLOTS
        self._starts.used[long] = places[self._starts.used[long]]
        self._entry_rows.keep(alive)
        self._entry_codes.keep(alive)
        self._dead = 0
