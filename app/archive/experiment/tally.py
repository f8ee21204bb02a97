"""Impressions and events joined, and added up for every user of every arm: all that rates and their errors need.

Held in memory: the experiment's events, 8 bytes for every list that was shown, and a row of sums for every user.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from app.archive.experiment.keys import Keys, Met, places_in
from app.archive.experiment.policy import Policy
from app.archive.experiment.rows import Bools, Events, Ints, Shown

Floats = NDArray[np.float64]

ANY: Final = "any event"
"""The metric where none is named: an event of whatever type."""

# What becomes of an event; the first is where all begin.
UNSHOWN_LIST, UNSHOWN_ITEM, NOBODYS, EARLY, LATE, OUTSIDE, ATTRIBUTED = range(7)
FATES: Final = (
    "without_impression",
    "item_not_shown",
    "shown_to_nobody_named",
    "before_shown",
    "after_window",
    "outside_time",
    "attributed",
)


@dataclass(frozen=True, slots=True)
class Question:
    """What is added up.

    Attributes:
        metrics: event types, or `ANY`.
        since_ms, until_ms: when lists were shown, the end not included.
        window_ms: how long after that an event counts.
        clip: the largest weight of clipped estimates.
    """

    metrics: tuple[str, ...]
    since_ms: int | None
    until_ms: int | None
    window_ms: int
    clip: float
    policy: Policy | None = None


class Tally:
    """Sums by user and arm, in `columns`; `user_key` and `arm` say whose each row is.

    Columns: `lists`, `items`, and for every metric m `lists:m` and `items:m`, those with such an event. Of the lists that can be
    weighed: `weighed_lists`, `places` (items shown), `drawn` (those by chance), `places:m` (those with an event), and for each
    policy (`greedy`, `target`) `w`, `w2`, `clipped` (sums of weights, of squares, of clipped ones), and `w:m` and `clipped:m`.
    """

    def __init__(self, events: Events, question: Question) -> None:
        self._question = question
        order = np.argsort(events.pair_key, kind="stable")
        self.events = events.of(order)
        self._pairs, self._first = np.unique(self.events.pair_key, return_index=True)
        self._last = np.append(self._first[1:], len(order))
        self._counting = np.array(
            [[metric in (ANY, kind) for kind in events.types] for metric in question.metrics], bool
        ).reshape(len(question.metrics), len(events.types))
        self._lists = np.unique(self.events.list_key)
        self._list_fate = np.full(len(self._lists), UNSHOWN_LIST)
        self._met = Met()
        self._rows: dict[tuple[int, int], int] = {}
        metrics = question.metrics
        self.policies = ("greedy", "target") if question.policy is not None else ("greedy",)
        weighed = [f"{p}:{sum_}" for p in self.policies for sum_ in ("w", "w2", "clipped", *_each(("w", "clipped"), metrics))]
        self.columns = (
            "lists",
            "items",
            *_each(("lists", "items"), metrics),
            "weighed_lists",
            "places",
            "drawn",
            *_each(("places",), metrics),
            *weighed,
        )
        self._sums = np.zeros((1024, len(self.columns)))
        self.fate = np.full(len(order), UNSHOWN_LIST)
        self.repeated_impressions = 0
        self.outside = 0
        self.nobodys: dict[int, int] = {}
        self.policy_met = 0

    def add(self, shown: Shown) -> None:
        """Join one portion of the impressions. A list that was met before is passed over: it is shown once."""
        question = self._question
        fresh = self._met.new(shown.list_key)
        self.repeated_impressions += int((~fresh).sum())
        inside = fresh.copy()
        if question.since_ms is not None:
            inside &= shown.time_ms >= question.since_ms
        if question.until_ms is not None:
            inside &= shown.time_ms < question.until_ms
        self.outside += int((fresh & ~inside).sum())
        named = inside & (shown.user_key != 0)
        for arm, count in zip(*np.unique(shown.arm[inside & ~named], return_counts=True), strict=True):
            self.nobodys[int(arm)] = self.nobodys.get(int(arm), 0) + int(count)
        at = places_in(self._lists, shown.list_key)
        for chosen, fate in ((fresh & ~inside, OUTSIDE), (inside & ~named, NOBODYS), (named, UNSHOWN_ITEM)):
            self._list_fate[at[chosen & (at >= 0)]] = fate
        self._count(shown, named)

    def finish(self) -> None:
        """No more impressions come: decide about the events that no shown item took."""
        of_list = self._list_fate[places_in(self._lists, self.events.list_key)]
        self.fate = np.where(self.fate == UNSHOWN_LIST, of_list, self.fate)
        # Lists that were made outside the time: their impressions may not have been looked at.
        outside = np.zeros(len(self.fate), bool)
        if self._question.since_ms is not None:
            outside |= self.events.made_ms < self._question.since_ms
        if self._question.until_ms is not None:
            outside |= self.events.made_ms >= self._question.until_ms
        self.fate[(self.fate == UNSHOWN_LIST) & outside] = OUTSIDE

    @property
    def sums(self) -> Floats:
        return self._sums[: len(self._rows)]

    @property
    def user_key(self) -> Keys:
        return np.array([user for user, _ in self._rows], np.int64).view(np.uint64)

    @property
    def arm(self) -> Ints:
        return np.array([arm for _, arm in self._rows], np.int64)

    def column(self, name: str) -> Floats:
        return self.sums[:, self.columns.index(name)]

    def _count(self, shown: Shown, named: Bools) -> None:
        counted = np.flatnonzero(named)
        if not len(counted):
            return
        item_row = np.repeat(np.arange(len(named)), shown.counts)
        chosen = np.zeros(len(item_row), bool)
        chosen[np.unique(shown.pair_key, return_index=True)[1]] = True  # an item that is named twice in a list is there once
        chosen &= named[item_row]
        item_row, pairs, propensity = item_row[chosen], shown.pair_key[chosen], shown.propensity[chosen]
        hits = self._join(pairs, shown.time_ms[item_row])  # (M, I)

        who, group = np.unique(
            np.stack([shown.user_key[counted].view(np.int64), shown.arm[counted]], axis=1), axis=0, return_inverse=True
        )
        group_of = np.zeros(len(named), np.int64)
        group_of[counted] = group.reshape(-1)
        groups, metrics = len(who), self._question.metrics
        per_list = group_of[counted]
        per_item = group_of[item_row]
        sums = {"lists": np.bincount(per_list, minlength=groups), "items": np.bincount(per_item, minlength=groups)}
        for metric, hit in zip(metrics, hits, strict=True):
            sums[f"items:{metric}"] = np.bincount(per_item[hit], minlength=groups)
            sums[f"lists:{metric}"] = np.bincount(group_of[np.unique(item_row[hit])], minlength=groups)

        weighable = shown.weighable[item_row]
        sums["weighed_lists"] = np.bincount(per_list, shown.weighable[counted], minlength=groups)
        sums["places"] = np.bincount(per_item, weighable, minlength=groups)
        by_chance = ~np.isnan(propensity)
        sums["drawn"] = np.bincount(per_item, weighable & by_chance, minlength=groups)
        for metric, hit in zip(metrics, hits, strict=True):
            sums[f"places:{metric}"] = np.bincount(per_item, weighable & hit, minlength=groups)
        for policy in self.policies:
            weight = np.where(weighable, self._weights(policy, pairs, by_chance, propensity), 0.0)
            self.policy_met += int((weight > 0).sum()) if policy == "target" else 0
            clipped = np.minimum(weight, self._question.clip)
            for name, values in (("w", weight), ("w2", weight**2), ("clipped", clipped)):
                sums[f"{policy}:{name}"] = np.bincount(per_item, values, minlength=groups)
            for metric, hit in zip(metrics, hits, strict=True):
                sums[f"{policy}:w:{metric}"] = np.bincount(per_item, weight * hit, minlength=groups)
                sums[f"{policy}:clipped:{metric}"] = np.bincount(per_item, clipped * hit, minlength=groups)

        places = np.array([self._rows.setdefault((user, arm), len(self._rows)) for user, arm in who.tolist()], np.int64)
        while len(self._rows) > len(self._sums):
            self._sums = np.concatenate([self._sums, np.zeros_like(self._sums)])
        self._sums[places] += np.stack([sums[name] for name in self.columns], axis=1)

    def _weights(self, policy: str, pairs: Keys, by_chance: Bools, propensity: Floats) -> Floats:
        """How much likelier the policy shows each item than it was: what was not drawn was certain."""
        if policy == "greedy":
            return (~by_chance).astype(np.float64)
        assert self._question.policy is not None
        chances = self._question.policy.of(pairs)
        return chances / np.where(by_chance, propensity, 1.0)

    def _join(self, pairs: Keys, shown_ms: Ints) -> Bools:
        """Which of the shown items (I,) have an event of each metric in time: (M, I). Notes what became of the events."""
        hits = np.zeros((len(self._question.metrics), len(pairs)), bool)
        at = places_in(self._pairs, pairs)
        item = np.flatnonzero(at >= 0)
        first, last = self._first[at[item]], self._last[at[item]]
        counts = last - first
        item = np.repeat(item, counts)
        event = np.repeat(first - (np.cumsum(counts) - counts), counts) + np.arange(int(counts.sum()))
        later_ms = self.events.time_ms[event] - shown_ms[item]
        in_time = (later_ms >= 0) & (later_ms <= self._question.window_ms)
        self.fate[event] = np.where(in_time, ATTRIBUTED, np.where(later_ms < 0, EARLY, LATE))
        for hit, counting in zip(hits, self._counting, strict=True):
            hit[item[in_time & counting[self.events.type[event]]]] = True
        return hits


def _each(sums: tuple[str, ...], metrics: tuple[str, ...]) -> list[str]:
    return [f"{name}:{metric}" for name in sums for metric in metrics]
