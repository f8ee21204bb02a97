"""The exact account of a list: what each item's score loses when an event had not happened.

Every state after an event contains it, so nothing short of folding the history again without it gives that number.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from msgspec.structs import replace

from app.fold import Fold, Unfolded
from app.fold.tensors import EventTensors
from app.recommend.some import SomeItems, SomeScores
from app.runtime.session import Array
from app.state.events import StoredEvent

LAST: Final = 20
"""So many events, the last ones, are left out one by one."""


@dataclass(frozen=True, slots=True)
class Refolded:
    """drops (n, E): by how much the score of each of n items falls without each of E `events`, oldest first; below 0 where the
    event speaks against the item. together (n,): by how much it falls without all of them. `more`: whether there are events
    before these."""

    events: Sequence[StoredEvent]
    drops: Array
    together: Array
    more: bool


class Refold:
    """Folds a history with all events, without each of the last `LAST` that the model knows, and without all of these."""

    def __init__(self, fold: Fold, tensors: EventTensors, scores: SomeScores) -> None:
        self._fold = fold
        self._tensors = tensors
        self._scores = scores

    def __call__(self, history: Unfolded, items: SomeItems) -> Refolded:
        """What is before the first of those events is folded once, then all variants together: a few calls of the model."""
        events = history.tail
        candidates = [place for place, event in enumerate(events) if self._tensors.knows(event)][-LAST:]
        first = candidates[0] if candidates else len(events)
        ((_, before),) = self._fold([replace(history, tail=events[:first])])
        start = history.start + first
        tails = [events[first:], *([*events[first:place], *events[place + 1 :]] for place in candidates)]
        states = self._fold([Unfolded(history.epoch, history.attributes, before, tail, start) for tail in tails])
        whole, *without, none = self._scores([*(blob for _, blob in states), before], items)
        drops = np.asarray([whole - one for one in without], np.float32).reshape(len(candidates), len(whole))
        return Refolded([events[place] for place in candidates], drops.T, whole - none, start > 0)
