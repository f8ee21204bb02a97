"""Choosing every baseline's settings on the validation queries, from a small grid that is written here."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from model.baselines.co_transition import CoTransition
from model.baselines.own_frequency import OwnFrequency
from model.baselines.popularity import Popularity
from model.baselines.protocol import Baseline
from model.baselines.recent_popularity import RecentPopularity
from model.baselines.tifu_knn import TifuKnn
from model.baselines.vmis_knn import VmisKnn
from model.data.sequences import Queries, Sequences, Split
from model.data.splits import select
from model.metrics import ndcg
from model.replay import replay_each

Candidate = TypeVar("Candidate", bound=Baseline)

POPULARITY_DAYS = (1, 3, 7, 14, 30, 90)
OWN_DAYS = (120, 240, math.inf)
OWN_BASKETS = (10, 20, math.inf)
OWN_WEIGHTS = (0.2, 0.3, 0.5, 0.7)
BASKET_CONTEXTS = (1, 2, 4)
DAMPINGS = (0.5, 1.0)
TIFU_GROUPS = (1, 3, 7)
TIFU_WITHIN = (0.9, 1.0)
TIFU_BETWEEN = (0.5, 0.7, 0.9)
TIFU_NEIGHBOURS = (30, 100, 300, 900)
TIFU_OWN = (0.1, 0.3, 0.5, 0.7, 0.9)
SESSION_SPANS = {"basket": (1, 4, 16), "one by one": (10, 50, 200)}
SESSION_CONTEXTS = {"basket": (1, 4, 8), "one by one": (3, 10, 20)}
SESSION_RECENT = (1000, 20_000)
SESSION_NEIGHBOURS = (100, 500)
SESSION_IDF = (0, 1)


@dataclass(frozen=True)
class Tuned:
    """The baselines with the settings that had the best mean ndcg at the split's k over the validation queries asked.

    Attributes:
        baselines: not fitted.
        valid_ndcg: that ndcg per name.
        queries: how many validation queries were asked.
    """

    baselines: list[Baseline]
    valid_ndcg: dict[str, float]
    queries: int


def tune(seq: Sequences, split: Split, *, queries: int = 2000, seed: int = 0, neighbours: bool = False) -> Tuned:
    """Popularity, recent popularity, own frequency and co-transition, with settings chosen on `split.valid` alone.

    With `neighbours` also TIFU-KNN and session kNN, which take minutes. Each is searched in two steps: what the vectors or
    sessions are, and then how many neighbours count how much.

    The grids are the constants of this module. Recent popularity is chosen first and own frequency is built on its half-life. Own
    frequency is not searched where seen items are filtered (nothing of its own is left in the list), nor co-transition's window
    and context where events come one by one (the published eight).

    Args:
        seq: the events.
        split: leave-one-out is answered frozen, everything else live.
        queries: at most so many validation queries are asked, drawn with `seed`: as many as our own net is
            chosen on, since fewer would choose a worse opponent.

    Raises:
        ValueError: there is no validation query.
    """
    if not len(split.valid):
        raise ValueError("no validation query: the baselines cannot be tuned")
    sample = split.valid
    if len(sample) > queries:
        chosen = np.random.default_rng(seed).choice(len(sample), queries, replace=False)
        sample = select(sample, np.sort(chosen))
    recent, recent_ndcg = _best(seq, split, sample, [RecentPopularity(days) for days in POPULARITY_DAYS])
    own_grid = [
        OwnFrequency(days, baskets, weight, recent.half_life_days)
        for days in OWN_DAYS
        for baskets in OWN_BASKETS
        for weight in OWN_WEIGHTS
    ]
    own, own_ndcg = _best(seq, split, sample, own_grid[:1] if split.filter_seen else own_grid)
    if split.protocol == "basket":
        transition_grid = [CoTransition(1, context, damping=damping) for context in BASKET_CONTEXTS for damping in DAMPINGS]
    else:
        transition_grid = [CoTransition(damping=damping) for damping in DAMPINGS]
    transition, transition_ndcg = _best(seq, split, sample, transition_grid)
    popularity, popularity_ndcg = _best(seq, split, sample, [Popularity()])
    best: list[tuple[Baseline, float]] = [
        (popularity, popularity_ndcg),
        (recent, recent_ndcg),
        (own, own_ndcg),
        (transition, transition_ndcg),
    ]
    if neighbours:
        best += [_best_tifu(seq, split, sample), _best_sessions(seq, split, sample)]
    return Tuned([baseline for baseline, _ in best], {baseline.name: figure for baseline, figure in best}, len(sample))


def _best_tifu(seq: Sequences, split: Split, sample: Queries) -> tuple[TifuKnn, float]:
    vectors = [TifuKnn(group, within, between) for group in TIFU_GROUPS for within in TIFU_WITHIN for between in TIFU_BETWEEN]
    chosen, _ = _best(seq, split, sample, vectors)
    mixed = [
        TifuKnn(chosen.group, chosen.within_decay, chosen.between_decay, neighbours, own)
        for neighbours in TIFU_NEIGHBOURS
        # Where seen items are filtered, nothing of the user's own is left in the list, and its share changes no order.
        for own in (TIFU_OWN[:1] if split.filter_seen else TIFU_OWN)
    ]
    return _best(seq, split, sample, mixed)


def _best_sessions(seq: Sequences, split: Split, sample: Queries) -> tuple[VmisKnn, float]:
    kind = "basket" if split.protocol == "basket" else "one by one"
    sessions = [
        VmisKnn(span, context, idf=idf)
        for span in SESSION_SPANS[kind]
        for context in SESSION_CONTEXTS[kind]
        for idf in SESSION_IDF
    ]
    chosen, _ = _best(seq, split, sample, sessions)
    counted = [
        VmisKnn(chosen.span, chosen.context, recent, neighbours, chosen.idf)
        for recent in SESSION_RECENT
        for neighbours in SESSION_NEIGHBOURS
    ]
    return _best(seq, split, sample, counted)


def _best(seq: Sequences, split: Split, queries: Queries, candidates: Sequence[Candidate]) -> tuple[Candidate, float]:
    """The candidate with the best mean ndcg, the first of equals."""
    lists = replay_each(
        seq,
        queries,
        candidates,
        known=split.train_end,
        k=split.k,
        filter_seen=split.filter_seen,
        live=split.protocol != "loo",
    )
    means = [float(np.nanmean(ndcg(ranked, queries, split.k))) for ranked in lists]
    best = int(np.argmax(means))
    return candidates[best], means[best]
