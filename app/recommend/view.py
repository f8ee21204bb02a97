"""A living catalogue as an index of an earlier one sees it: what is searched, and what is looked at beside."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np

from app.recommend.index import Float32, Int64, Kept, RowIndex
from app.recommend.lifted import Drift
from app.recommend.scan import Mask

FEW: Final = 12_000
"""So many rows, if they are all that a mask keeps, are scored one and all, sooner than an index finds the best of them."""

_LEVELS: Final = 4  # into so many parts a bias cuts the rows, each searched by itself
_SIEVES: Final = 16  # prepared masks that are kept


class Rows(Protocol):
    """What retrieval needs of a catalogue: N rows, of which more come, some change and some close."""

    @property
    def version(self) -> int:
        """Grows with every change."""

    @property
    def vectors(self) -> Float32:
        """(N, D)."""

    @property
    def bias(self) -> Float32:
        """(N,)."""

    @property
    def open(self) -> Mask:
        """(N,) which rows may come back."""

    def changed_since(self, version: int) -> Int64:
        """Rows that came, or whose vector or bias changed, after that version."""


@dataclass(frozen=True)
class Level:
    """Some of the indexed rows: the rows themselves where they are few, else what the index needs; both None: all of them."""

    count: int
    rows: Int64 | None
    kept: Kept | None


@dataclass(frozen=True)
class Sieve:
    """A mask and a bias over a view.

    Attributes:
        levels: what to search. beside: what they add to the rows beside, -inf for "not this one"; None: nothing.
    """

    mask: Mask | None
    bias: Float32 | None
    levels: list[Level]
    beside: Float32 | None


class View:
    """One version of the catalogue.

    Attributes:
        beside: open rows that are scored for everybody, ascending: changed or come since, or raised by popularity.
        vectors, bias: theirs.
        inside: (rows of the index,) which rows are searched: open, and none of these.
    """

    def __init__(self, index: RowIndex, rows: Rows, drift: Drift) -> None:
        self.index = index
        self.version = rows.version
        self.drift = drift
        count, is_open = len(rows.vectors), rows.open
        changed = np.asarray(rows.changed_since(index.version), np.int64)
        beside = np.unique(np.concatenate([drift.rows, changed, np.arange(index.rows, count)]))
        self.beside: Int64 = beside[is_open[beside]]
        self.vectors: Float32 = rows.vectors[self.beside]
        self.bias: Float32 = rows.bias[self.beside]
        self.inside: Mask = is_open[: index.rows].copy()
        self.inside[beside[beside < index.rows]] = False
        self._sieves: dict[tuple[int, int], Sieve] = {}

    def sieve(self, mask: Mask | None, bias: Float32 | None) -> Sieve:
        """Prepare a mask and a bias, or find them prepared."""
        key = (id(mask), id(bias))  # a sieve keeps both, so that no others can have their addresses
        sieve = self._sieves.pop(key, None)
        if sieve is None:
            sieve = self._prepare(mask, bias)
            while len(self._sieves) >= _SIEVES:
                del self._sieves[next(iter(self._sieves))]
        self._sieves[key] = sieve
        return sieve

    def _prepare(self, mask: Mask | None, bias: Float32 | None) -> Sieve:
        inside = self.inside if mask is None else self.inside & mask[: self.index.rows]
        beside = None if mask is None and bias is None else np.zeros(len(self.beside), np.float32)
        if beside is not None and mask is not None:
            beside[~mask[self.beside]] = -np.inf
        if beside is not None and bias is not None:
            beside += bias[self.beside]
        levels = [self._level(part) for part in self._parts(inside, bias)]
        levels = [level for level in levels if level.count]
        return Sieve(mask, bias, levels, beside)

    def _parts(self, inside: Mask, bias: Float32 | None) -> list[Mask]:
        """Rows with about the same bias together: among these the index's order is the right one, whatever the bias."""
        if bias is None:
            return [inside]
        here = bias[: self.index.rows]
        inside = inside & (here > -np.inf)
        values = here[inside]
        if not len(values):
            return []
        low, high = float(values.min()), float(values.max())
        if low == high:
            return [inside]
        distinct = np.unique(values[:: max(1, len(values) // 1_000)])
        if len(distinct) <= _LEVELS:
            # A handful of values, as boosts have them; one that the sample missed goes with the next one above.
            edges = np.append(distinct[:-1], max(high, float(distinct[-1])))
        else:
            edges = np.linspace(low, high, _LEVELS + 1)[1:]
            edges[-1] = high
        level = np.searchsorted(edges.astype(np.float32), here)
        return [inside & (level == number) for number in range(len(edges))]

    def _level(self, inside: Mask) -> Level:
        count = int(np.count_nonzero(inside))
        if count == self.index.rows:
            return Level(count, None, None)
        if count <= FEW:
            return Level(count, np.flatnonzero(inside), None)
        return Level(count, None, self.index.kept(inside))
