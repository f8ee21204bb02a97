"""What items are called, by row, and rows by id: packed as they come from a bundle, with what came or changed since beside.

The last ones that were asked for are kept as Python's strings: a read asks for the same few thousand again and again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, Final, Literal

import numpy as np
import numpy.typing as npt

from app.catalogue.columns import Mask, Scalar, one_of
from app.packed import Texts

Int64 = npt.NDArray[np.int64]
UInt32 = npt.NDArray[np.uint32]

NO_TITLE: Final = -1
"""The code of None; Python's hash of a string is never -1."""

_KEPT: Final = 32_768
_ONE_BY_ONE: Final = 8  # titles that are looked for one after the other
_BITS: Final = 0xFFFF  # of a code, by which most titles are seen not to be one of many
_UNREAD: Final = object()
_TAGS: Final = 0xFFFFFFFF  # what is left of it beside the numbers of all rows: bits of a hash,
_TAG_FROM: Final = 31  # from this one on; those below say the place


class Titles:
    """N titles by row, each perhaps None; the first ones are a bundle's."""

    def __init__(self, packed: Texts) -> None:
        self._packed = packed
        self._own: dict[int, str | None] = {}  # what is not as in the bundle
        self._count = len(packed)
        self._recent: dict[int, Any] = {}
        self._codes: Int64 | None = None

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, row: int) -> str | None:
        title: Any = self._recent.get(row, _UNREAD)
        return self._read(row) if title is _UNREAD else title

    def of(self, rows: Sequence[int]) -> list[str | None]:
        """The titles of some rows."""
        recent = self._recent
        try:
            return [recent[row] for row in rows]
        except KeyError:
            return [recent[row] if row in recent else self._read(row) for row in rows]

    def put(self, row: int, title: str | None) -> None:
        """Say the title of a row: one that is there, or the next one."""
        if row < len(self._packed) and title == self._packed[row]:
            self.put_back(row)
            return
        self._own[row] = title
        self._recent.pop(row, None)
        self._count = max(self._count, row + 1)
        if self._codes is not None:
            if row >= len(self._codes):
                self._codes = np.append(self._codes, np.full(row + 1 + row // 8 - len(self._codes), NO_TITLE, np.int64))
            self._codes[row] = _code(title)

    def put_back(self, row: int) -> None:
        """A row of the bundle has the title that it had there."""
        if row in self._own:
            del self._own[row]
            self._recent.pop(row, None)
            if self._codes is not None:
                self._codes[row] = _code(self._packed[row])

    def codes(self) -> Int64:
        """(N,) a number for each title, equal for equal ones; made when first asked for, and kept. Do not write into it.

        The numbers are hashes of 64 bits, others in each process, so that nobody can make two titles that share one.
        """
        if self._codes is None:
            self._codes = np.fromiter(map(_code, map(self._plain, range(self._count))), np.int64, self._count)
        return self._codes[: self._count]

    def _read(self, row: int) -> str | None:
        title = self._plain(row)
        if len(self._recent) >= _KEPT:
            self._recent.clear()
        self._recent[row] = title
        return title

    def _plain(self, row: int) -> str | None:
        return self._own[row] if row in self._own else self._packed[row]


def _code(title: str | None) -> int:
    return NO_TITLE if title is None else hash(title)


class TitleColumn:
    """Titles as filters read them."""

    kind: ClassVar[Literal["string"]] = "string"

    def __init__(self, titles: Titles) -> None:
        self._titles = titles

    def present(self) -> Mask:
        present: Mask = self._titles.codes() != NO_TITLE
        return present

    def any_of(self, values: Sequence[Scalar]) -> Mask:
        codes, wanted = self._titles.codes(), [hash(value) for value in dict.fromkeys(values)]
        if len(wanted) <= _ONE_BY_ONE:
            return one_of(codes, wanted)
        asked = np.asarray(wanted, np.int64)
        table = np.zeros(_BITS + 1, np.bool_)
        table[asked & _BITS] = True
        mask: Mask = table[codes & _BITS]
        mask[mask] = np.isin(codes[mask], asked)
        return mask

    def groups(self) -> Int64:
        return self._titles.codes().copy()


class Ids:
    """N ids by row, and their rows; the first ones are a bundle's."""

    def __init__(self, packed: Texts) -> None:
        """Two ids may be equal: which row such an id has is then open."""
        self._data, self._starts, self._packed = packed.data, packed.starts, len(packed)
        self._more: list[str] = []  # behind those
        self._rows_of_more: dict[str, int] = {}
        self._recent: dict[int, str] = {}
        self._recent_rows: dict[str, int] = {}
        self._bits = len(packed).bit_length()
        table = _table(np.fromiter(map(hash, packed), np.int64, len(packed)), self._bits)
        self._last_slot = len(table) - 1
        self._table = memoryview(table)  # type: ignore[arg-type]  # numpy's arrays are buffers

    def __len__(self) -> int:
        return self._packed + len(self._more)

    def __getitem__(self, row: int) -> str:
        return self._recent.get(row) or self._read(row)

    def __iter__(self) -> Iterator[str]:
        return map(self.__getitem__, range(len(self)))

    def of(self, rows: Sequence[int]) -> list[str]:
        """The ids of some rows."""
        recent = self._recent
        try:
            return [recent[row] for row in rows]
        except KeyError:
            return [recent[row] if row in recent else self._read(row) for row in rows]

    def append(self, item_id: str) -> None:
        """Give the next row to an id that is not there yet."""
        self._more.append(item_id)
        self._rows_of_more[item_id] = len(self) - 1  # last: threads may look for it

    def row(self, item_id: str) -> int | None:
        row = self._recent_rows.get(item_id)
        return self._find(item_id) if row is None else row

    def rows(self, item_ids: Sequence[str | None]) -> list[int]:
        """The rows of some ids; -1 where one is None or not there."""
        recent: dict[Any, int] = self._recent_rows
        try:
            return [recent[item_id] for item_id in item_ids]
        except KeyError:
            rows = (None if item_id is None else self.row(item_id) for item_id in item_ids)
            return [-1 if row is None else row for row in rows]

    def _read(self, row: int) -> str:
        if row >= self._packed:
            return self._more[row - self._packed]
        item_id = self._data[self._starts[row] : self._starts[row + 1]].decode()
        if len(self._recent) >= _KEPT:
            self._recent.clear()
        self._recent[row] = item_id
        return item_id

    def _find(self, item_id: str) -> int | None:
        code, bits, table, last = hash(item_id), self._bits, self._table, self._last_slot
        slot, tag = code & last, code >> _TAG_FROM & _TAGS >> bits
        while entry := table[slot]:
            if entry >> bits == tag:
                row = (entry & (1 << bits) - 1) - 1
                if self._data[self._starts[row] : self._starts[row + 1]] == item_id.encode("utf-8", "surrogatepass"):
                    if len(self._recent_rows) >= _KEPT:
                        self._recent_rows.clear()
                    self._recent_rows[item_id] = row
                    return row
            slot = (slot + 1) & last
        return self._rows_of_more.get(item_id)


def _table(hashes: Int64, bits: int) -> UInt32:
    """Rows by hash. A row lies at its hash modulo the length, or at the next place that was free: its number, counted from 1, in
    the lower bits, and as much more of its hash as there is room for in the higher ones, by which most others are told apart. 0
    is free.

    At most half of the places are taken, so that a search ends after two or three.
    """
    table = np.zeros(max(8, 1 << (2 * len(hashes)).bit_length()), np.uint32)
    last = len(table) - 1
    slots = hashes & last
    entries = (np.arange(1, len(hashes) + 1) | (hashes >> _TAG_FROM & _TAGS >> bits) << bits).astype(np.uint32)
    while len(entries):
        free = table[slots] == 0
        table[slots[free]] = entries[free]  # of those that want the same place one gets it
        waiting = table[slots] != entries
        slots, entries = (slots[waiting] + 1) & last, entries[waiting]
    return table
