"""The categories of items: each list of them once, and which one every row has. A filter asks the lists, not the items."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Final, Literal

import numpy as np
import numpy.typing as npt

from app.catalogue.columns import ListCodes, Mask, Scalar, one_of
from app.catalogue.growing import Growing
from app.catalogue.lists import ListColumn
from app.packed import Groups, Names

Int32 = npt.NDArray[np.int32]

_ONE_BY_ONE: Final = 8  # lists that are looked for one after the other


class Categories:
    """N lists of categories by row, the first of them a bundle's; at the same time the column that filters read."""

    kind: ClassVar[Literal["list"]] = "list"

    def __init__(self, packed: Groups) -> None:
        self._packed = packed
        self._codes = Growing(packed.codes)  # of each row's list in the next four
        self._lists: list[Names] = list(packed.lists)
        self._code_of = {names: code for code, names in enumerate(self._lists)}
        # By rows that are not as in the bundle; the lists of that stay.
        self._uses = [1] * len(self._lists)
        self._column = ListColumn(len(self._lists), np.int32)
        self._free: list[int] = []
        for code, names in enumerate(self._lists):
            self._column.put(code, names)

    def __len__(self) -> int:
        return len(self._codes.rows)

    def __getitem__(self, row: int) -> Names:
        return self._lists[int(self._codes.rows[row])]

    def __iter__(self) -> Iterator[Names]:
        return map(self._lists.__getitem__, self._codes.rows.tolist())

    def put(self, row: int, names: Names) -> None:
        """Say the categories of a row: one that is there, or the next one."""
        in_bundle = int(self._packed.codes[row]) if row < len(self._packed) else -1
        before = int(self._codes.rows[row]) if row < len(self) else -1
        code = self._code(names)
        if code == before:
            return
        if code != in_bundle:
            self._uses[code] += 1
        self._codes.put(row, code)
        if before not in (-1, in_bundle):
            self._release(before)

    def put_back(self, row: int) -> None:
        """A row of the bundle has the categories that it had there."""
        before, in_bundle = int(self._codes.rows[row]), int(self._packed.codes[row])
        if before != in_bundle:
            self._codes.put(row, in_bundle)
            self._release(before)

    def present(self) -> Mask:
        """(N,) which items have a list, be it empty: all."""
        return np.ones(len(self), np.bool_)

    def any_of(self, values: Sequence[Scalar]) -> Mask:
        """(N,) which items are in one of these categories."""
        asked, codes = self._column.any_of(values), self._codes.rows
        found: list[int] = np.flatnonzero(asked).tolist()
        return one_of(codes, found) if len(found) <= _ONE_BY_ONE else asked[codes]

    def groups(self) -> CategoryCodes:
        """The categories of each row, as of now."""
        return CategoryCodes(self._codes.rows.copy(), self._column.groups())

    def _code(self, names: Names) -> int:
        """The code of a list, which is taken in if it is new."""
        code = self._code_of.get(names)
        if code is None:
            if self._free:
                code = self._free.pop()
                self._lists[code] = names
            else:
                code = len(self._lists)
                self._lists.append(names)
                self._uses.append(0)
                self._column.grow(code + 1)
            self._code_of[names] = code
            self._column.put(code, names)
        return code

    def _release(self, code: int) -> None:
        self._uses[code] -= 1
        if not self._uses[code]:
            del self._code_of[self._lists[code]]
            self._lists[code] = ()
            self._column.drop(code)
            self._free.append(code)


@dataclass(frozen=True, slots=True)
class CategoryCodes:
    """The codes of the categories of N items, as they were at one moment: (N,) which list an item has, and what is in each."""

    lists: Int32
    entries: ListCodes

    def __len__(self) -> int:
        return len(self.lists)

    def __call__(self, rows: npt.NDArray[np.integer]) -> Int32:
        """(m,) rows -> (m, G) codes, -1 behind the end of a list, and for a row that came later."""
        there = rows < len(self)
        if there.all():
            return self.entries(self.lists[rows])
        beyond = len(self.entries)  # which no list has
        of_rows = np.full(len(rows), beyond, np.int32)
        of_rows[there] = self.lists[rows[there]]
        return self.entries(of_rows)
