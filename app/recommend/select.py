"""A list out of scored candidates, under rules: exact, and k items whenever the rules allow k.

Nothing is taken from a list that is made already: whatever a rule passes over, the next best comes in its place. While the list
is not full, more candidates are asked for, four times as many each time, until it is, or all that are eligible have been seen, or
the caps have room for nothing.

What holds, in this order:

1. **Caps**, always. Where they leave fewer than k, the list is shorter and `gave_way` says so.
2. **Pins** stand at their positions, counted in the caps before everything else, whatever their score. One that cannot be shown
   gives way and its place goes to the next best; so does the second at one position, the second of one item, one that a cap has
   no room for (lower positions come first), and one beyond k. All but those that cannot be shown are items like any other then.
   In a list that is too short pins move up. What was `drawn` by chance stands as pins do, after all pins, and is no promise.
3. **The minimum score** ends the list.
4. **Score**, ties by lower row; with diversity, maximal marginal relevance instead: the best `max(4k, 200)` candidates are put
   into order by

       (1 - diversity) * relevance - diversity * max over what stands already (pins included) of the cosine of the items' vectors,

   where relevance is the score, 0 for the lowest of these candidates and 1 for the highest; ties go by score. If the caps leave
   too few of them, the list goes on behind them by score. O(k * m * D) for m of them. With diversity 0 the list is that of the
   scores, to the bit.

Source of 4: Carbonell & Goldstein, The Use of MMR, SIGIR 1998.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Sequence
from typing import Any, Final, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from app.recommend.caps import Tally, walk
from app.recommend.rules import Float32, Float64, Pin, Rows, Rules
from app.recommend.selection import GaveWay, Selection

POOL_FACTOR: Final = 4
POOL_LEAST: Final = 200
_CAPPED_FACTOR: Final = 2
_CAPPED_LEAST: Final = 64
_GROWTH: Final = 4

_T = TypeVar("_T")

ScoresOf = Callable[[Rows], npt.NDArray[np.floating]]
"""Adjusted scores of any rows; -inf for one that is not eligible."""

Vectors = Callable[[Rows], npt.NDArray[np.floating]]
"""(m,) rows -> (m, D)."""

Found = tuple[Rows, Float32]
"""Rows and adjusted scores, best first."""


class More(Protocol):
    """The m best eligible items by adjusted score, best first, ties by lower row; fewer only if fewer are eligible.

    It may be asked several times with growing m; each time the list begins with what it was before.
    """

    def __call__(self, m: int, /) -> Found: ...


def select(rules: Rules, more: More, scores_of: ScoresOf | None = None, vectors: Vectors | None = None) -> Selection:
    """The list under these rules. `scores_of` is needed for pins, `vectors` for diversity."""
    steps = selecting(rules, scores_of, vectors)
    try:
        m = next(steps)
        while True:
            m = steps.send(more(m))
    except StopIteration as end:
        selection: Selection = end.value
        return selection


def selecting(
    rules: Rules, scores_of: ScoresOf | None = None, vectors: Vectors | None = None, drawn: Sequence[Pin] = ()
) -> Generator[int, Found, Selection]:
    """`select`, for whoever must wait for candidates: yields how many it wants, is sent them, returns the list."""
    pins, gave_way = standing(rules, scores_of, drawn)
    pinned = [pin.row for pin, _ in pins.values() if pin.row is not None]
    tally = Tally(rules.caps)
    for row in pinned:
        tally.add(row)
    wanted = rules.k - len(pins)
    chosen: list[tuple[int, float]] = []
    rows: Rows = np.empty(0, np.int64)
    scores: Float32 = np.empty(0, np.float32)
    whole = ended = False
    if wanted:
        pool = max(POOL_FACTOR * rules.k, POOL_LEAST) if rules.diversity else 0
        m = len(pinned) + max(pool, max(_CAPPED_FACTOR * rules.k, _CAPPED_LEAST) if rules.caps else wanted)
        seen = 0
        while True:
            rows, scores = yield m
            whole = len(rows) < m
            good = int(np.count_nonzero(scores >= rules.min_score))
            ended = good < len(rows)
            fresh = seen + np.flatnonzero(~np.isin(rows[seen:good], [*pinned, *(row for row, _ in chosen)]))
            if pool:
                some, pool = fresh[:pool], 0
                places = _diverse(rules.diversity, rows[some], scores[some], pinned, tally, wanted, _given(vectors, "vectors"))
                chosen += _pairs(rows, scores, some[places])
                fresh = fresh[len(some) :]
            chosen += _pairs(rows, scores, fresh[walk(rows[fresh], tally, wanted - len(chosen))])
            if len(chosen) == wanted or whole or ended or tally.is_closed(len(rows)):
                break
            seen = good
            m *= _GROWTH
    if len(chosen) < wanted:
        others = ~np.isin(rows, [*pinned, *(row for row, _ in chosen)])
        low = scores < rules.min_score
        blocking = tally.names(rows[others & ~low])
        if blocking or (others & low).any():
            reason = "caps" if blocking else "min_score"
            gave_way.append(GaveWay("k", reason, caps=blocking, missing=wanted - len(chosen)))
    return _in_order(rules, pins, chosen, gave_way, rows, scores, whole)


def standing(
    rules: Rules, scores_of: ScoresOf | None, drawn: Sequence[Pin] = ()
) -> tuple[dict[int, tuple[Pin, float]], list[GaveWay]]:
    """Position -> the pin that stands there and its score; and the pins that give way."""
    in_order = [*sorted(rules.pins, key=lambda pin: pin.position), *drawn]
    scores: dict[int, float] = {}
    rows = sorted({pin.row for pin in in_order if pin.row is not None})
    if rows:
        scores = dict(zip(rows, _given(scores_of, "scores_of")(np.asarray(rows)).tolist(), strict=True))
    tally = Tally(rules.caps)
    stand: dict[int, tuple[Pin, float]] = {}
    gave_way = []
    for number, pin in enumerate(in_order):
        reason, caps = _obstacle(pin, rules.k, scores, stand, tally)
        if reason is None and pin.row is not None:
            stand[pin.position] = (pin, scores[pin.row])
            tally.add(pin.row)
        elif reason is not None and number < len(rules.pins):
            gave_way.append(GaveWay("pin", reason, pin.item_id, pin.position, caps))
    return stand, gave_way


def _obstacle(
    pin: Pin, k: int, scores: dict[int, float], stand: dict[int, tuple[Pin, float]], tally: Tally
) -> tuple[str | None, tuple[str, ...]]:
    """Why a pin cannot stand at its position, if it cannot, and the caps that are to blame."""
    if pin.row is None:
        return pin.barred or "unknown", ()
    if pin.barred is not None:
        return pin.barred, ()
    if not scores[pin.row] > -math.inf:
        return "not_eligible", ()
    if pin.position > k:
        return "beyond_k", ()
    if pin.position in stand:
        return "position_taken", ()
    if any(pin.row == other.row for other, _ in stand.values()):
        return "already_pinned", ()
    caps = tally.names(np.asarray([pin.row]))
    return ("cap", caps) if caps else (None, ())


def _diverse(
    diversity: float, rows: Rows, scores: Float32, pinned: Sequence[int], tally: Tally, most: int, vectors: Vectors
) -> list[int]:
    """Places in `rows` of up to `most` of them, in the order in which they are chosen; `tally` takes them in."""
    units = _units(vectors(np.concatenate([rows, np.asarray(pinned, rows.dtype)])))
    candidates, stands = units[: len(rows)], units[len(rows) :]
    relevance = _relevance(scores)
    nearest = np.full(len(rows), -np.inf)  # cosine with what stands already and is most alike
    for unit in stands:
        np.maximum(nearest, _cosines(candidates, unit), out=nearest)
    free = tally.blocking(rows) < 0
    taken: list[int] = []
    while len(taken) < most and free.any():
        value = (1.0 - diversity) * relevance
        if taken or pinned:
            value -= diversity * nearest
        value[~free] = -np.inf
        place = int(np.argmax(value))  # the first of equals: the better score, the lower row
        taken.append(place)
        free[place] = False
        if tally.add(int(rows[place])):
            free &= tally.blocking(rows) < 0
        np.maximum(nearest, _cosines(candidates, candidates[place]), out=nearest)
    return taken


def _relevance(scores: Float32) -> Float64:
    """Scores, best first -> 0 for the last, 1 for the first; all 1 if they are equal."""
    if not len(scores) or scores[0] == scores[-1]:
        return np.ones(len(scores))
    exact = scores.astype(np.float64)
    relevance: Float64 = (exact - exact[-1]) / (exact[0] - exact[-1])
    return relevance


def _units(vectors: npt.NDArray[np.floating]) -> Float32:
    """Vectors of length 1; one of length 0 is like nothing."""
    exact = np.asarray(vectors, np.float64)
    length = np.sqrt(np.einsum("md,md->m", exact, exact))
    units: Float32 = (exact / np.where(length > 0, length, 1.0)[:, np.newaxis]).astype(np.float32)
    return units


def _cosines(units: Float32, unit: Float32) -> Float32:
    # Not a matrix product: BLAS adds up in an order that depends on the place of the row, and twins must tie.
    cosines: Float32 = np.einsum("md,d->m", units, unit)
    return cosines


def _pairs(rows: Rows, scores: Float32, places: Any) -> list[tuple[int, float]]:
    return list(zip(rows[places].tolist(), scores[places].tolist(), strict=True))


def _given(callback: _T | None, name: str) -> _T:
    if callback is None:
        raise ValueError(f"these rules need {name}")
    return callback


def _in_order(
    rules: Rules,
    pins: dict[int, tuple[Pin, float]],
    chosen: Sequence[tuple[int, float]],
    gave_way: list[GaveWay],
    candidates: Rows,
    candidate_scores: Float32,
    whole: bool,
) -> Selection:
    """Pins at their positions, the others between them in their order; where nothing is left to stand between, pins move up."""
    listed: list[tuple[int, float]] = []
    pinned = []
    rest = iter(chosen)
    for position in range(1, rules.k + 1):
        if position in pins:
            pin, score = pins[position]
            assert pin.row is not None
            listed.append((pin.row, score))
            pinned.append(pin.row)
        elif (one := next(rest, None)) is not None:
            listed.append(one)
    return Selection(
        [row for row, _ in listed],
        [score for _, score in listed],
        gave_way,
        rules,
        pinned,
        candidates,
        candidate_scores,
        whole,
    )
