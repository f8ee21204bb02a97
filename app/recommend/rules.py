"""The rules of one request, resolved to rows: those that decide who stands in the list, and those that add to scores.

**What adds to scores** becomes one bias per item (`additive_bias`), which enters the score beside everything else: it changes who
is retrieved, not just the order of who was. It has two units.

- A boost is a *factor of likelihood*. Scores are logits (the model learns them under a softmax), so what a factor adds is its
  logarithm: an item boosted by 2 is to this user what one twice as likely would be, one buried by 0.5 what one half as likely
  would be. That is the same for every user and every model, and the factors of several boosts multiply.
- An influence (freshness, popularity, rotation) runs from 0 (none) to 1 (it weighs as much as the user's whole interest).
  Between an average item and the best of some tens of thousands lie about `FULL` standard deviations of a user's scores; by so
  much an influence of 1 moves an item whose signal is full. The standard deviation is the model's (`spread_of`, once per
  model), not that of the user who asks: it is known before any score is, the same request has the same list, and an index can
  take the bias along.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence, Sized
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]
Bool = npt.NDArray[np.bool_]
Rows = npt.NDArray[np.integer]

Groups = Rows | Callable[[Rows], Rows]
"""Which groups items are in: a number for each group, (N,) where an item has one, (N, G) where it has up to G; -1 is no group.
Or a function that says the same of some rows."""

FULL: Final = 4.0
"""Spreads between an item with no signal and one with a full signal at influence 1."""

PROMINENCE_RANGE: Final = 1_000.0
"""An item with a thousandth of the largest count is as good as never used."""

_LARGEST_FACTOR: Final = 1e6
DAY_S: Final = 86_400.0


@dataclass(frozen=True, slots=True)
class Pin:
    """An item at a position (1 is the top).

    Attributes:
        row: None for an item that nobody knows here.
        barred: why it cannot be shown (`hidden`, `excluded`, ...), where that is known beforehand.
    """

    item_id: str
    row: int | None
    position: int
    barred: str | None = None

    def __post_init__(self) -> None:
        if self.position < 1:
            raise ValueError(f"positions begin with 1, not {self.position}")


@dataclass(frozen=True, slots=True)
class Cap:
    """At most `most` items of each group in the list; an item in several groups counts in each of them."""

    name: str
    most: int
    groups: Groups

    def __post_init__(self) -> None:
        if self.most < 0:
            raise ValueError(f"cap {self.name!r} is {self.most}")

    @property
    def count(self) -> int | None:
        """How many items there are, as far as the groups know."""
        return len(self.groups) if isinstance(self.groups, Sized) else None

    def codes(self, rows: Rows) -> Rows:
        """(m,) rows -> (m, G) codes; a row behind the end is in no group."""
        if callable(self.groups):
            return _columns(self.groups(rows))
        inside = rows < len(self.groups)
        if inside.all():
            return _columns(self.groups[rows])
        codes = np.full((len(rows), *self.groups.shape[1:]), -1, self.groups.dtype)
        codes[inside] = self.groups[rows[inside]]
        return _columns(codes)


@dataclass(frozen=True, slots=True)
class Rules:
    """What the list must be like.

    Attributes:
        pins: at one position the first of them stands.
        diversity: from 0, the best by score, to 1, the most different from each other; see `select`.
        min_score: no item below it, but for pins.
    """

    k: int
    pins: Sequence[Pin] = ()
    caps: Sequence[Cap] = ()
    diversity: float = 0.0
    min_score: float = -math.inf

    def __post_init__(self) -> None:
        if self.k < 1:
            raise ValueError(f"k is {self.k}")
        if not 0 <= self.diversity <= 1:
            raise ValueError(f"diversity runs from 0 to 1, not {self.diversity}")
        if math.isnan(self.min_score):
            raise ValueError("the minimum score is no number")


@dataclass(frozen=True, slots=True)
class Boost:
    """Items are `factor` times as likely as they would be; below 1 buries them. `rows` are rows, or a mask of all N."""

    rows: Rows | Bool | Sequence[int]
    factor: float

    def __post_init__(self) -> None:
        if not 1 / _LARGEST_FACTOR <= self.factor <= _LARGEST_FACTOR:
            raise ValueError(f"a boost is between {1 / _LARGEST_FACTOR:g} and {_LARGEST_FACTOR:g}, not {self.factor}")


@dataclass(frozen=True, slots=True)
class Shown:
    """An item that was in a list of this user `times` times, the last time `ago_s` seconds before now."""

    row: int
    times: float
    ago_s: float


@dataclass(frozen=True, slots=True)
class Leanings:
    """What adds to scores; an influence is from 0 to 1.

    Attributes:
        freshness: of young items; after a half-life half of it is left. Items of unknown age get none. popularity: of items
        that many use, beyond what the model gives them already. rotation: against items that were shown of late. Shown once
        just now, an item sinks by half of it, twice by three quarters;
            after a half-life a showing counts half.
    """

    boosts: Sequence[Boost] = ()
    freshness: float = 0.0
    freshness_half_life_s: float = 7 * DAY_S
    popularity: float = 0.0
    rotation: float = 0.0
    rotation_half_life_s: float = DAY_S
    shown: Sequence[Shown] = ()

    def __post_init__(self) -> None:
        for name in ("freshness", "popularity", "rotation"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} runs from 0 to 1, not {getattr(self, name)}")
        for name in ("freshness_half_life_s", "rotation_half_life_s"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} is {getattr(self, name)}")

    @property
    def are_none(self) -> bool:
        """Whether nothing would be added to any score."""
        return not (self.boosts or self.freshness or self.popularity or (self.rotation and self.shown))


def additive_bias(
    leanings: Leanings, n: int, spread: float, *, youth: Float32 | None = None, prominence: Float32 | None = None
) -> Float32 | None:
    """(N,) what is added to the scores of N items, finite everywhere; None if it is nothing.

    Args:
        spread: standard deviation of a user's scores under the model, see `spread_of`.
        youth: (N,) `youth_of`, needed for freshness.
        prominence: (N,) `prominence_of`, needed for popularity. Both are the same for all requests of a moment.
    """
    if leanings.are_none:
        return None
    bias = np.zeros(n, np.float32)
    for influence, signal in ((leanings.freshness, youth), (leanings.popularity, prominence)):
        if influence:
            if signal is None:
                raise ValueError("an influence without its signal")
            bias += np.float32(influence * FULL * spread) * signal
    for boost in leanings.boosts:
        bias[_indices(boost.rows)] += np.float32(math.log(boost.factor))
    if leanings.rotation and leanings.shown:
        exposure: dict[int, float] = {}
        for shown in leanings.shown:
            counts = shown.times * 2.0 ** -(max(shown.ago_s, 0.0) / leanings.rotation_half_life_s)
            exposure[shown.row] = exposure.get(shown.row, 0.0) + counts
        rows = np.fromiter(exposure, np.int64, len(exposure))
        sunk = 1.0 - np.exp2(-np.fromiter(exposure.values(), np.float64, len(exposure)))
        bias[rows] -= (leanings.rotation * FULL * spread * sunk).astype(np.float32)
    return bias


def youth_of(born_ms: Int64, as_of_ms: int, half_life_s: float) -> Float32:
    """(N,) 1 for an item that is new, 1/2 after a half-life; 0 where the time of birth is not known (negative)."""
    age_s = np.maximum(as_of_ms - born_ms, 0) / 1e3
    youth: Float32 = np.where(born_ms < 0, 0.0, np.exp2(-age_s / half_life_s)).astype(np.float32)
    return youth


def prominence_of(counts: npt.NDArray[np.floating]) -> Float32:
    """(N,) decayed counts -> 1 for the item that is used most, a third less for every tenth part of that, at least 0.

    Ratios alone matter: where all counts decay alike, nothing changes.
    """
    largest = float(counts.max(initial=0.0))
    if not largest > 0:
        return np.zeros(len(counts), np.float32)
    with np.errstate(divide="ignore"):
        below = np.log(counts.astype(np.float64) / largest) / math.log(PROMINENCE_RANGE)
    prominence: Float32 = np.maximum(1.0 + below, 0.0).astype(np.float32)
    return prominence


def spread_of(scores: npt.NDArray[np.floating]) -> float:
    """Of (B, N) scores: the median over users of the standard deviation over items, -inf left out."""
    finite = np.where(np.isfinite(scores), scores, np.nan).astype(np.float64)
    return float(np.median(np.nanstd(finite, axis=1)))


def _columns(codes: Rows) -> Rows:
    """(m,) or (m, G) codes -> (m, G)."""
    return codes[:, np.newaxis] if codes.ndim == 1 else codes


def _indices(rows: Rows | Bool | Sequence[int]) -> Int64:
    """Each row once: a row that stands here twice is boosted once."""
    found = np.asarray(rows)
    if found.dtype == np.bool_:
        return np.flatnonzero(found)
    return np.unique(found.astype(np.int64))
