"""The m best rows for some users, of all that their rules allow: an exact scan, or an index and exact scores of what it finds.

Whatever the mode, the scores that come back are exact, and where m rows are eligible, m come back (invariant I7). With an index
it can happen that they are not all the very best: docs/adr/0019-retrieval.md says when, and how often.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from time import monotonic
from typing import Any, Final, Literal, Protocol

import numpy as np
import numpy.typing as npt

from app.recommend.index import Float32, Int64, Kept, RowIndex, is_installed
from app.recommend.lifted import Drift
from app.recommend.scan import Found, Lifts, Mask, Users, ascending, best_of, take_out
from app.recommend.view import FEW, Rows, Sieve, View

Mode = Literal["exact", "index"]

INDEX_FROM: Final = 100_000
"""Rows from which on an index takes less than the exact scan on a CPU, in batches of any size: docs/adr/0019-retrieval.md."""

SCANNED: Final = 32_000
"""Rows that the index looks at for a query without a mask."""

_LIFTED: Final = 2_048  # rows that popularity raised, looked at for every query
_MANY: Final = 64  # rows that one request leaves out, from which on the index must not find them at all
_OFF: Final = 0.5  # of what popularity says now: beyond it, good rows are missed
_BESIDE: Final = 5_000  # rows that came or changed; each list looks at all of them
_FEW_KEPT: Final = 16
_DRIFT_S: Final = 10.0  # between looks at all of popularity, which take some 20 ms a million rows


class ExactScan(Protocol):
    """score.onnx with everything of the catalogue in it."""

    def __call__(
        self, interest: Mapping[str, npt.NDArray[Any]], popularity: Float32, bias: Float32 | None, m: int
    ) -> tuple[Float32, Int64]:
        """Scores and rows, (B, m) each, best first, ties by lower row, -inf where none is eligible any more.

        `bias` is (B or 1, N), None for zeros; m is at most N.
        """


@dataclass(frozen=True, slots=True)
class Limits:
    """What the rules say of one list.

    Attributes:
        mask: (N,) which rows may come back. The same array for all requests with the same filter: what is worked out of it is
            shared, so nobody may write to it any more.
        among: if given, the only rows that may.
        without: rows of this request that may not.
        bias: (N,) added to the scores, -inf: not at all. Shared and not written to, like the mask.
        own: rows of this request, and what is added to their scores.
    """

    mask: Mask | None = None
    among: Sequence[int] | None = None
    without: Sequence[int] = ()
    bias: Float32 | None = None
    own: tuple[Sequence[int], Sequence[float]] = ((), ())

    @property
    def is_free(self) -> bool:
        """Whether they say nothing."""
        none = self.mask is None and self.among is None and self.bias is None
        return none and not len(self.without) and not len(self.own[0])


FREE: Final = Limits()


def choose_mode(setting: Literal["auto", "exact", "index"], rows: int, device: str) -> tuple[Mode, str]:
    """How to retrieve, and why, in words."""
    if setting == "exact":
        return "exact", "the setting asks for it"
    if not is_installed():
        return "exact", "faiss is not installed (it comes with the extra cpu)"
    if setting == "index":
        return "index", "the setting asks for it"
    if device != "cpu":
        return "exact", f"the items lie on the device ({device})"
    if rows < INDEX_FROM:
        return "exact", f"{rows:,} items are fewer than {INDEX_FROM:,}"
    return "index", f"{rows:,} items on a CPU"


class Retriever:
    """Retrieves from one catalogue, for one caller at a time. Until it is given an index, everything is exact.

    Attributes:
        rows: the catalogue. index: what `use` gave.
    """

    def __init__(self, rows: Rows, exact: ExactScan) -> None:
        self.rows = rows
        self._exact = exact
        self.index: RowIndex | None = None
        self._view: View | None = None
        self._drifted_s = 0.0
        self._few: dict[int, tuple[Mask, Int64 | None]] = {}

    @property
    def mode(self) -> Mode:
        return "exact" if self.index is None else "index"

    @property
    def beside(self) -> int:
        """How many rows are scored for everybody beside the index: changed since, come since, raised by popularity."""
        return 0 if self._view is None else len(self._view.beside)

    @property
    def unexplained(self) -> float:
        """How far popularity went away from the index, see `Drift`."""
        return 0.0 if self._view is None else self._view.drift.unexplained

    @property
    def is_outdated(self) -> bool:
        """Whether an index of now should be made: lists get slower, or worse."""
        if self.index is None:
            return False
        return self.unexplained > _OFF or self.beside > _LIFTED + max(_BESIDE, self.index.rows // 100)

    def use(self, index: RowIndex | None) -> None:
        """Answer with this index of the catalogue's first rows from now on; None: exactly."""
        self.index, self._view = index, None

    def best(
        self, interest: Mapping[str, npt.NDArray[Any]], m: int, popularity: Float32, limits: Sequence[Limits] | None = None
    ) -> list[Found]:
        """The m best rows for each of B users.

        Args:
            interest: what `scan.Users` takes.
            popularity: (N, P) decayed counts.
            limits: what the rules say, for each user.
        """
        users = Users(interest)
        asked = [FREE] * len(users) if limits is None else list(limits)
        if len(self.rows.vectors) <= FEW:
            return self._scan_all(users, range(len(users)), m, popularity, asked)
        found: dict[int, Found] = {}
        for places in alike(asked):
            rows = self._allowed(asked[places[0]])
            if rows is not None:
                answers: list[Found | None] = [*self._scan(users, places, rows, m, popularity, asked)]
            elif self.index is not None:
                answers = self._search(users, places, m, popularity, asked)
            else:
                continue
            found |= {place: one for place, one in zip(places, answers, strict=True) if one is not None}
        rest = [place for place in range(len(users)) if place not in found]
        if rest:
            found |= zip(rest, self._scan_all(users, rest, m, popularity, asked), strict=True)
        return [found[place] for place in range(len(users))]

    def _allowed(self, limits: Limits) -> Int64 | None:
        """The rows that may come back, ascending, if that says so few that they are best looked at one by one."""
        if limits.among is not None:
            rows = ascending(np.asarray(limits.among, np.int64))
            return rows if limits.mask is None else rows[limits.mask[rows]]
        if limits.mask is None:
            return None
        known = self._few.get(id(limits.mask))
        if known is None:
            few = np.count_nonzero(limits.mask) <= FEW
            known = (limits.mask, np.flatnonzero(limits.mask) if few else None)
            while len(self._few) >= _FEW_KEPT:
                del self._few[next(iter(self._few))]
            self._few[id(limits.mask)] = known
        return known[1]

    def _scan(
        self, users: Users, places: Sequence[int], rows: Int64, m: int, popularity: Float32, asked: Sequence[Limits]
    ) -> list[Found]:
        """The best of a few rows, which are looked at together for users with the same mask and bias."""
        rows = rows[self.rows.open[rows]]
        shared = asked[places[0]].bias
        bias = self.rows.bias[rows] if shared is None else self.rows.bias[rows] + shared[rows]
        scores = users.scores(places, self.rows.vectors[rows], bias, popularity[rows])
        found = []
        for place, of_user in zip(places, scores, strict=True):
            users.lifts(place, self.rows.vectors, asked[place].own).onto(rows, of_user)
            take_out(rows, of_user, asked[place].without)
            found.append(best_of(rows, of_user, m))
        return found

    def _scan_all(self, users: Users, places: Sequence[int], m: int, popularity: Float32, asked: Sequence[Limits]) -> list[Found]:
        """The best of all rows, by score.onnx."""
        bias = self._bias([asked[place] for place in places])
        scores, rows = self._exact(users.some(places), popularity, bias, min(m, len(self.rows.vectors)))
        eligible = np.isfinite(scores).sum(1)  # scores fall; -inf ends a list
        return [Found(rows[place, :end], scores[place, :end]) for place, end in enumerate(eligible)]

    def _bias(self, asked: Sequence[Limits]) -> Float32 | None:
        is_open = self.rows.open
        if all(limits.is_free for limits in asked):
            return None if is_open.all() else np.where(is_open, np.float32(0), np.float32(-np.inf))[np.newaxis]
        bias = np.zeros((len(asked), len(is_open)), np.float32)
        for of_user, limits in zip(bias, asked, strict=True):
            if limits.bias is not None:
                of_user += limits.bias
            np.add.at(of_user, np.asarray(limits.own[0], np.int64), np.asarray(limits.own[1], np.float32))
            if limits.among is not None:
                out = np.ones(len(of_user), bool)
                out[np.asarray(limits.among, np.int64)] = False
                of_user[out] = -np.inf
            if limits.mask is not None:
                of_user[~limits.mask] = -np.inf
            of_user[~is_open] = -np.inf
            of_user[np.asarray(limits.without, np.int64)] = -np.inf
        return bias

    def _search(
        self, users: Users, places: Sequence[int], m: int, popularity: Float32, asked: Sequence[Limits]
    ) -> list[Found | None]:
        """The best of what the index finds and of the rows beside it; None where that is fewer than there must be."""
        view = self._seen(popularity)
        first = asked[places[0]]
        sieve = view.sieve(first.mask, first.bias)
        weights = users.popularity_weight[list(places)] * view.drift.slope(popularity)
        interests = users.interests[list(places)]  # (b, J, D)
        each = interests.shape[1]
        queries = view.index.queries(interests.reshape(-1, interests.shape[2]), np.repeat(weights, each, 0))
        scores = users.scores(list(places), view.vectors, view.bias, popularity[view.beside])
        if sieve.beside is not None:
            scores += sieve.beside
        found: list[Found | None] = []
        complete = all(level.rows is not None for level in sieve.levels)  # no row is left that nobody looked at
        hits = self._hits(view, sieve, queries, each, m, [asked[place].without for place in places])
        for position, place in enumerate(places):
            lifts = users.lifts(place, self.rows.vectors, asked[place].own)
            rows, of_rows = self._scored(users, place, hits[position], lifts, sieve, view, popularity)
            beside = scores[position]
            lifts.onto(view.beside, beside)
            for known, values in ((rows, of_rows), (view.beside, beside)):
                take_out(known, values, asked[place].without)
            one = best_of(np.concatenate([rows, view.beside]), np.concatenate([of_rows, beside]), m)
            found.append(one if complete or len(one.rows) == m else None)
        return found

    def _hits(
        self, view: View, sieve: Sieve, queries: Float32, each: int, m: int, without: Sequence[Sequence[int]]
    ) -> list[Int64]:
        """Indexed rows to be scored, for each user, whose `each` queries follow each other."""
        count = len(without)
        hits: list[list[Int64]] = [[] for _ in range(count)]
        number = 4 * m + 600
        for level in sieve.levels:
            if level.rows is not None:
                for of_user in hits:
                    of_user.append(level.rows)
                continue
            # Where less is kept, a larger part of it has to be looked at for as many.
            scanned = max(int(SCANNED * (level.count / view.index.rows) ** 0.75), number)
            alone = [place for place in range(count) if len(without[place]) > _MANY]
            together = [place for place in range(count) if len(without[place]) <= _MANY]
            if together:
                some = queries.reshape(count, each, -1)[together].reshape(-1, queries.shape[1])
                rows = view.index.search(some, number, scanned, level.kept).reshape(len(together), -1)
                for place, found in zip(together, rows, strict=True):
                    hits[place].append(found[found >= 0])
            for place in alone:
                kept = _left(view, level.kept, without[place])
                more = scanned + len(without[place])
                found = view.index.search(queries[place * each : (place + 1) * each], number, more, kept).ravel()
                hits[place].append(found[found >= 0])
        return [np.concatenate(of_user) if of_user else np.empty(0, np.int64) for of_user in hits]

    def _scored(
        self, users: Users, place: int, hits: Int64, lifts: Lifts, sieve: Sieve, view: View, popularity: Float32
    ) -> tuple[Int64, Float32]:
        """Indexed rows that may come back, ascending, and their scores: hits, and rows that are this user's own matter."""
        own = lifts.rows[lifts.rows < view.index.rows]
        own = own[view.inside[own]]
        if sieve.mask is not None:
            own = own[sieve.mask[own]]
        rows = ascending(hits, own)
        bias = self.rows.bias[rows]
        if sieve.bias is not None:
            bias = bias + sieve.bias[rows]
        (scores,) = users.scores([place], self.rows.vectors[rows], bias, popularity[rows])
        lifts.onto(rows, scores)
        return rows, scores

    def _seen(self, popularity: Float32) -> View:
        """The catalogue of now through the index."""
        index, view, now_s = self.index, self._view, monotonic()
        assert index is not None
        late = view is None or now_s - self._drifted_s >= _DRIFT_S
        if view is None or late or view.version != self.rows.version:
            if view is None or late:
                drift = Drift(index.log_popularity, popularity[: index.rows], index.popularity_weights, _LIFTED)
                self._drifted_s = now_s
            else:
                drift = view.drift
            self._view = view = View(index, self.rows, drift)
        return view


def alike(asked: Sequence[Limits]) -> list[list[int]]:
    """Places of requests that can share a scan: the same mask and bias, and no rows of their own to choose from."""
    groups: dict[tuple[int, int, int], list[int]] = {}
    for place, limits in enumerate(asked):
        alone = -1 if limits.among is None else place
        groups.setdefault((id(limits.mask), id(limits.bias), alone), []).append(place)
    return list(groups.values())


def _left(view: View, kept: Kept | None, without: Sequence[int]) -> Kept:
    """The same without some rows."""
    whole = view.index.kept(view.inside) if kept is None else kept
    bits = whole.bits.copy()
    unwanted = np.asarray(without, np.int64)
    unwanted = np.unique(unwanted[unwanted < view.index.rows])
    np.bitwise_and.at(bits, unwanted >> 3, ~(np.uint8(1) << (unwanted & 7).astype(np.uint8)))
    return Kept(bits, whole.per_list)
