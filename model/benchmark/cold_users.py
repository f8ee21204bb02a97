"""Cold users: how good the lists are after exactly so many events, the same questions for every number of them.

Each test query of a user with a longer past is asked anew as if that user had come 0, 1, 3, 5 or 10 events ago: the model folds
these events and no other, own frequency counts them alone, and nothing older is left out as seen. Time, popularity and the true
items stay what they are, so the figures differ by what is known of the user and by nothing else.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from model.assess import OURS, K
from model.baselines.own_frequency import OwnFrequency
from model.baselines.protocol import Baseline
from model.baselines.purchases import Purchases
from model.baselines.recent_popularity import RecentPopularity
from model.data.sequences import Int64, Queries, Sequences
from model.data.splits import select
from model.intervals import UserBootstrap
from model.metrics import ndcg, recall
from model.replay import replay_each
from model.task import Task

EVENTS = (0, 1, 3, 5, 10)
MOST = 2000  # queries at most, drawn with the seed

Lists = Callable[[Task, int], npt.NDArray[np.int32]]


class LastPurchases(Purchases):
    """Purchases of which a user's past is only those among the last so many events."""

    def __init__(self, seq: Sequences, last: int) -> None:
        super().__init__(seq)
        self.last = last

    def past(self, user: int, position: int) -> slice:
        """As of `Purchases`."""
        whole = super().past(user, position)
        return slice(max(whole.start, int(self._before[max(position - self.last, 0)])), whole.stop)


class OwnFrequencyOfLast(OwnFrequency):
    """`OwnFrequency` of a user of whom only the last so many events are known; recent popularity still knows all."""

    def __init__(self, last: int, **settings: float) -> None:
        super().__init__(**settings)
        self.last = last

    def fit(self, seq: Sequences, known: Int64) -> None:
        super().fit(seq, known)
        self._bought = LastPurchases(seq, self.last)


def measure_cold_users(task: Task, ours: Lists, chosen: dict[str, dict[str, float]], seed: int) -> dict[str, Any] | None:
    """Ours, recent popularity and own frequency after 0, 1, 3, 5 and 10 events; None where no query has as many before it.

    Args:
        ours: lists for the test queries of a task, from so many events before each.
        chosen: settings of the baselines by name, as they were tuned for all users.
        seed: which queries are asked where there are more than `MOST`.

    Returns:
        queries, users, and by number of events: models (name -> metric -> estimate) and comparisons (ours with the others).
    """
    queries = _asked(task, seed)
    if not len(queries):
        return None
    split, bootstrap = dataclasses.replace(task.split, test=queries), UserBootstrap(queries.user)
    asked = dataclasses.replace(task, split=split)
    found: dict[str, Any] = {"queries": len(queries), "users": len(np.unique(queries.user)), "after": {}}
    for last in EVENTS:
        baselines: list[Baseline] = [
            RecentPopularity(**chosen["recent popularity"]),
            OwnFrequencyOfLast(last, **chosen["own frequency"]),
        ]
        live = split.protocol != "loo"
        ranked = replay_each(
            task.seq, queries, baselines, known=split.train_end, k=K, filter_seen=split.filter_seen, live=live, last=last
        )
        lists = {OURS: ours(asked, last)} | dict(zip((baseline.name for baseline in baselines), ranked, strict=True))
        values = {
            name: {f"recall@{K}": recall(each, queries, K)} | {f"ndcg@{k}": ndcg(each, queries, k) for k in (10, K)}
            for name, each in lists.items()
        }
        found["after"][str(last)] = {
            "models": {
                name: {metric: dataclasses.asdict(bootstrap.estimate(each)) for metric, each in metrics.items()}
                for name, metrics in values.items()
            },
            "comparisons": {
                name: {m: dataclasses.asdict(bootstrap.difference(values[OURS][m], each)) for m, each in metrics.items()}
                for name, metrics in values.items()
                if name != OURS
            },
        }
    return found


def _asked(task: Task, seed: int) -> Queries:
    queries = task.split.test
    enough = np.flatnonzero(queries.position - task.seq.offsets[queries.user] >= max(EVENTS))
    if len(enough) > MOST:
        enough = np.sort(np.random.default_rng(seed).choice(enough, MOST, replace=False))
    return select(queries, enough)
