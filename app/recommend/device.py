"""The exact scan on a device under every rule: which questions go there together, and which few rows are looked at here."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from app.catalogue.catalogue import Catalogue
from app.recommend.index import Float32, Int64
from app.recommend.retrieve import Limits, alike
from app.recommend.scan import Found, Mask, Users, ascending, best_of, take_out
from app.recommend.segments import Graphs, Layout, Segments, Shown
from app.recommend.view import FEW

_LEFT_OUT: Final = 1_024
"""Rows that a question leaves out, beyond which they are masked: so many more are looked for, and dropped here."""

_FEW_KEPT: Final = 64


class DeviceScan:
    """Exact lists of one catalogue from a device where its items lie. Questions with the same rules share a call.

    Attributes:
        shown: what `at` said last.
    """

    def __init__(
        self, graphs: Graphs, catalogue: Catalogue, bias: Float32, rows: int, lay_out: Callable[..., Segments] = Segments
    ) -> None:
        """`bias` is the catalogue's at some moment; `rows` are those of a segment at most."""
        self._catalogue = catalogue
        self.shown = Shown(catalogue.changes, catalogue.vectors, bias)
        self._segments = lay_out(graphs, catalogue, self.shown, rows=rows)
        self._few: OrderedDict[int, tuple[Mask, Int64 | None]] = OrderedDict()

    @property
    def layout(self) -> Layout:
        return self._segments.layout

    def at(self, bias: Float32) -> Shown:
        """The catalogue as it is now, where it is changed, with what `Catalogue.bias_at` says of a moment."""
        shown = self.shown
        if shown.changes != self._catalogue.changes or shown.bias is not bias:
            shown = self.shown = Shown(self._catalogue.changes, self._catalogue.vectors, bias)
        return shown

    def best(
        self,
        interest: Mapping[str, npt.NDArray[Any]],
        m: int,
        shown: Shown,
        popularity: Float32,
        limits: Sequence[Limits],
    ) -> list[Found]:
        """The m best rows for each of B users, under what the rules say for each."""
        if m <= 0:
            return [Found(np.empty(0, np.int64), np.empty(0, np.float32)) for _ in limits]
        users = Users(interest)
        limits = [_masked(one, len(shown.bias)) if len(one.without) > _LEFT_OUT else one for one in limits]
        found: dict[int, Found] = {}
        for places in alike(limits):
            asked = [limits[place] for place in places]
            rows = self._allowed(asked[0])
            if rows is not None:
                answers = _scan(users, places, rows, m, shown, popularity, asked)
            else:
                without = [one.without for one in asked]
                some, rule = users.some(places), asked[0]
                answers = self._segments.best(some, m, shown, popularity, rule.mask, rule.bias, without)
            found |= zip(places, answers, strict=True)
        return [found[place] for place in range(len(limits))]

    def exact(self, interest: Mapping[str, Any], popularity: Float32, bias: Float32 | None, m: int) -> tuple[Float32, Int64]:
        """All items that were shown last, as a retriever asks about them (`ExactScan`)."""
        count = len(interest["interests"])
        limits = [Limits()] * count if bias is None else [Limits(bias=bias[place % len(bias)]) for place in range(count)]
        scores, rows = np.full((count, m), -np.inf, np.float32), np.zeros((count, m), np.int64)
        for place, found in enumerate(self.best(interest, m, self.shown, popularity, limits)):
            scores[place, : len(found.rows)], rows[place, : len(found.rows)] = found.scores, found.rows
        return scores, rows

    def _allowed(self, limits: Limits) -> Int64 | None:
        """The rows that may come back, ascending, where they are so few that they are looked at here."""
        if limits.among is not None:
            rows = ascending(np.asarray(limits.among, np.int64))
            return rows if limits.mask is None else rows[limits.mask[rows]]
        mask = limits.mask
        if mask is None:
            return None
        known = self._few.get(id(mask))
        if known is None:
            known = (mask, np.flatnonzero(mask) if np.count_nonzero(mask) <= FEW else None)
            self._few[id(mask)] = known
            while len(self._few) > _FEW_KEPT:
                self._few.popitem(last=False)
        return known[1]


def _masked(limits: Limits, count: int) -> Limits:
    """The same without a long list of rows."""
    mask = np.ones(count, np.bool_) if limits.mask is None else limits.mask.copy()
    mask[np.asarray(limits.without, np.int64)] = False
    return replace(limits, mask=mask, without=())


def _scan(
    users: Users,
    places: Sequence[int],
    rows: Int64,
    m: int,
    shown: Shown,
    popularity: Float32,
    asked: Sequence[Limits],
) -> list[Found]:
    added = asked[0].bias
    vectors, bias = shown.vectors[rows], shown.bias[rows] if added is None else shown.bias[rows] + added[rows]
    scores = users.scores(list(places), vectors, bias, popularity[rows])
    found = []
    for place, of_user, limits in zip(places, scores, asked, strict=True):
        users.lifts(place, shown.vectors, ((), ())).onto(rows, of_user)
        take_out(rows, of_user, limits.without)
        found.append(best_of(rows, of_user, m))
    return found
