"""The fallback that knows where somebody is: popularity, each item lifted by what its context makes of it.

For a value v of a facet (the platform, the country, the category of the page), with c_v the decayed count of an item among the
events with v, n_v the decayed count of all of these, and p the item's share of all decayed counts:

    lift_v = ((c_v + m * p) / (n_v + m)) / p
    score  = count of the item, as plain popularity ranks it * product of lift_v over the facets whose value is known

It is 1 where v is unknown, and what v alone says where n_v is far beyond m: shrinkage towards everybody, m events strong. Facets
multiply, as if they were independent given the item. Decayed counts here are those of the model's longest half-life: a country
has fewer events than the world, so what it likes must be gathered over a longer time, while what is popular now comes from the
count that is lifted. `M` and that half-life were measured: docs/adr/0024-cold-users.md.

Of a value at most 1,000 items are kept. What else there was of it, n_v less their counts, is spread over all other items as
everybody's is: these share one lift. Of a category nothing is kept: c_v is the count of the items that are in it.

Cost: a worker reads the values of each facet every few seconds, and the items of a value when a hundredth has been added to it;
up to 1,000 * 200 * 2 entries of 16 bytes, 6 MB. A list costs as much as one under a boost.

Source: Zhai & Lafferty 2004 (Dirichlet smoothing); naive Bayes for the product.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from app.catalogue.catalogue import Bool, Catalogue, Float32
from app.catalogue.popularity import Float64, Int64, LivePopularity
from app.recommend.answer import Query
from app.recommend.refreshing import keep_fresh
from app.recommend.ruled import Ruled
from app.state.contexts import Contexts, Faded

M: Final = 1_000.0
CATEGORY_M: Final = 1.0
"""Which items are in a category is known, not estimated: every m up to thousands measured the same."""

STORED_FACETS: Final = ("platform", "country")
FACETS: Final = (*STORED_FACETS, "category")
_GROWN: Final = 1.01  # times what a value had when its items were read
_READ_AT_ONCE: Final = 20  # values of which the items are read before others have a turn of the event loop
_MOST_LIFTS: Final = 8  # that are kept within a second, 4 bytes an item each
_MOST_MASKS: Final = 16  # categories whose items are known, a byte an item each


@dataclass(frozen=True, slots=True)
class Lift:
    """bias (N,): the logarithm of what each item is lifted by; `used`: which facets it comes from, and their values."""

    bias: Float32
    used: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class _Value:
    """A value as it was read: its count, and those (n,) of its items, each as of its own time.

    `lacking` is the size of the catalogue if it did not have all of the items, else None.
    """

    all: Faded
    rows: Int64
    counts: Float64
    times_ms: Int64
    lacking: int | None


class ContextPopularity:
    """What contexts make of the items of one catalogue, for one tenant. Storage that is away changes nothing: what was read last
    stays."""

    def __init__(
        self, contexts: Contexts, tenant: str, catalogue: Catalogue, popularity: LivePopularity, on: bool = True
    ) -> None:
        """Where it is not `on`, nothing is known of any context."""
        self._on = on
        self._contexts = contexts
        self._tenant = tenant
        self._catalogue = catalogue
        self._popularity = popularity
        self._half_life_ms = 1000 * max(popularity.half_lives_s)
        self._column = popularity.half_lives_s.index(max(popularity.half_lives_s))
        self._values: dict[tuple[str, str], _Value] = {}
        self._masks: dict[str, tuple[int, Bool]] = {}  # items of a category, and `changes` of the catalogue that they are of
        self._lifts_of: tuple[int, int] = (0, -1)
        # By facets and values; the table that a lift was made from stays as long as it, so that no other one has its id.
        self._lifts: dict[tuple[tuple[str, str], ...], tuple[Float32, Lift | None]] = {}

    def reads_user(self, query: Query) -> bool:
        """Whether the user's attributes could tell the country, which the question does not."""
        return not (query.context and "country" in query.context) and any(facet == "country" for facet, _ in self._values)

    def lift(self, query: Query, attributes: Mapping[str, str], facets: Sequence[str] = FACETS) -> Lift | None:
        """What the context of a question makes of items, as of the second; None where nothing is known of it.

        The platform is that of the question; country and category are what its context says, the country else the user's
        attribute. Only `facets` are looked at.
        """
        used = self._known(query, attributes, facets) if self._on else {}
        if not used:
            return None
        table = self._popularity.at(query.as_of_ms)  # the same array for all questions of a second
        if self._lifts_of != (id(table), self._catalogue.changes):
            self._lifts_of, self._lifts = (id(table), self._catalogue.changes), {}
        key = tuple(used.items())
        if key not in self._lifts:
            if len(self._lifts) >= _MOST_LIFTS:
                self._lifts.clear()
            second_ms = max(query.as_of_ms - query.as_of_ms % 1000, self._popularity.latest_ms)
            self._lifts[key] = table, self._made(used, table[:, self._column], second_ms)
        return self._lifts[key][1]

    def _known(self, query: Query, attributes: Mapping[str, str], facets: Sequence[str]) -> dict[str, str]:
        """Those facets that the question has a value of which something is known."""
        context = query.context or {}
        country = context["country"] if "country" in context else attributes.get("country")
        used = {
            facet: value
            for facet, value in (("platform", query.platform), ("country", country))
            if facet in facets and isinstance(value, str) and (facet, value) in self._values
        }
        category = context.get("category")
        if "category" in facets and isinstance(category, str) and self._in_category(category).any():
            used["category"] = category
        return used

    def _made(self, used: Mapping[str, str], table: Float32, second_ms: int) -> Lift | None:
        total = float(table.sum(dtype=np.float64))
        if not total > 0:
            return None
        bias = np.zeros(len(table))
        for facet, value in used.items():
            if facet == "category":
                mask = self._in_category(value)
                within = float(table[mask].sum(dtype=np.float64)) + CATEGORY_M
                bias += np.where(mask, np.log((total + CATEGORY_M) / within), np.log(CATEGORY_M / within))
            else:
                self._add_stored(bias, self._values[facet, value], table, total, second_ms)
        return Lift(bias.astype(np.float32), used)

    def _add_stored(self, bias: Float64, value: _Value, table: Float32, total: float, second_ms: int) -> None:
        """Add the logarithm of the lift of each item."""
        counts = value.counts * self._left(second_ms - value.times_ms)
        # Of what this worker has just counted the store may tell a little later, or a little sooner.
        everywhere = np.maximum(table[value.rows], counts)
        of_all = max(value.all.count * float(self._left(np.asarray(second_ms - value.all.time_ms))), float(counts.sum()))
        elsewhere = max(total - float(table[value.rows].sum(dtype=np.float64)), 0.0)
        # Shares are counts / total: c / p = c * total / count.
        rest = (of_all - float(counts.sum())) * total / elsewhere if elsewhere > 0 else 0.0
        lifts = np.full(len(bias), np.log((rest + M) / (of_all + M)))
        ratio = np.divide(counts * total, everywhere, out=np.zeros_like(counts), where=everywhere > 0)
        lifts[value.rows] = np.log((ratio + M) / (of_all + M))
        bias += lifts

    def _left(self, elapsed_ms: Int64) -> Float64:
        left: Float64 = np.exp2(-np.maximum(elapsed_ms, 0) / self._half_life_ms)
        return left

    def _in_category(self, category: str) -> Bool:
        """(N,) which items are in a category."""
        changes, mask = self._masks.pop(category, (-1, np.empty(0, np.bool_)))
        if changes != self._catalogue.changes or len(mask) != len(self._catalogue):
            changes = self._catalogue.changes
            mask = self._catalogue.categories.any_of([category])
        self._masks[category] = changes, mask
        if len(self._masks) > _MOST_MASKS:
            del self._masks[next(iter(self._masks))]
        return mask

    async def refresh(self) -> None:
        """Read what has changed: the counts of all values, and the items of those that have grown. Raises StorageError."""
        if not self._on:
            return
        found = {key: one for key, one in (await self._contexts.values(self._tenant, STORED_FACETS)).items() if _is_count(one)}
        for gone in self._values.keys() - found.keys():
            del self._values[gone]
        grown = [(key, faded) for key, faded in found.items() if self._has_grown(self._values.get(key), faded)]
        self._lifts.clear()
        for place, ((facet, name), faded) in enumerate(grown):
            self._values[facet, name] = self._read(faded, await self._contexts.items(self._tenant, facet, name))
            self._lifts.clear()
            if place % _READ_AT_ONCE == _READ_AT_ONCE - 1:
                await asyncio.sleep(0)

    async def follow(self, period_s: float) -> None:
        """Refresh until cancelled; a store that is away is asked again."""
        await keep_fresh("contexts", self.refresh, period_s)

    def _has_grown(self, known: _Value | None, faded: Faded) -> bool:
        if known is None or known.lacking not in (None, len(self._catalogue)):
            return True
        before = known.all.count * float(self._left(np.asarray(faded.time_ms - known.all.time_ms)))
        # Less than before: everything was forgotten, and counting began anew.
        return not before * (2 - _GROWN) <= faded.count <= before * _GROWN

    def _read(self, faded: Faded, items: Mapping[str, Faded]) -> _Value:
        items = {item_id: item for item_id, item in items.items() if _is_count(item)}
        known = [(row, item) for item_id, item in items.items() if (row := self._catalogue.row(item_id)) is not None]
        return _Value(
            faded,
            np.asarray([row for row, _ in known], np.int64),
            np.asarray([item.count for _, item in known], np.float64),
            np.asarray([item.time_ms for _, item in known], np.int64),
            None if len(known) == len(items) else len(self._catalogue),
        )


def _is_count(faded: Faded) -> bool:
    return 0 <= faded.count < math.inf


def lifted(ruled: Ruled, lift: Lift, among: Sequence[int] | None) -> Ruled:
    """Rules with what a context adds; only items of `among`, if given, may be in the list."""
    eligible = ruled.eligible
    if among is not None:
        mask = np.zeros(ruled.count, np.bool_)
        mask[list(among)] = True
        eligible = mask if eligible is None else eligible & mask
    return replace(ruled, eligible=eligible, bias=lift.bias if ruled.bias is None else ruled.bias + lift.bias)
