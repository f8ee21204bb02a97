"""The gate: the model before and the updated one on the newest questions, which neither has learned from."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from model.checkpoint import Checkpoint
from model.errors import TrainerError
from model.inputs import Inputs
from model.intervals import Difference, UserBootstrap
from model.live import live_lists
from model.memory import Memories
from model.metrics import ndcg, recall
from model.update.newer import Newer, known_by_old


class WorseError(TrainerError):
    """The updated model is worse than the running one; nothing was published. The message has the figures."""


@dataclass(frozen=True)
class Judgement:
    """Both models on the same questions, by the same evaluator.

    Attributes:
        k: of the figures. queries, users: how many were asked, by how many users.
        before, after: mean ndcg@k. recall_before, recall_after: mean recall@k.
        difference: after minus before, ndcg@k, with a 95% interval by bootstrap over users.
        returning: the same for users that the model before knew; None where there is none.
    """

    k: int
    queries: int
    users: int
    before: float
    after: float
    recall_before: float
    recall_after: float
    difference: Difference
    returning: Difference | None

    def line(self) -> str:
        """In words."""
        change = self.difference
        return (
            f"ndcg@{self.k} {self.after:.4f} after, {self.before:.4f} before, difference {change.mean:+.4f} "
            f"[{change.interval()}] over the newest {self.queries:,} questions of {self.users:,} users"
        )


def judge(
    newer: Newer,
    before: tuple[Checkpoint, Inputs],
    after: tuple[Checkpoint, Inputs],
    memories: Memories | None,
    item_vectors: str = "float32",
) -> Judgement:
    """Ask both, live: whoever asks has been folded up to the question, and popularity follows everybody.

    Args:
        before, after: each model with the inputs of its own vocabulary.
        memories: what is remembered at the questions, in rows of the new vocabulary. item_vectors: how both bundles store them.
    """
    queries, split = newer.split.test, newer.split
    k, known, seen = split.k, split.train_end, split.filter_seen
    remembered = None
    if memories is not None:
        remembered = replace(memories, item=torch.where(memories.item < newer.old_items, memories.item, -1))
    stored = item_vectors
    old_lists = live_lists(before[0], known_by_old(newer), before[1], queries, k, known, seen, True, remembered, stored)
    new_lists = live_lists(after[0], newer.seq, after[1], queries, k, known, seen, True, memories, stored)
    old, new = ndcg(old_lists, queries, k), ndcg(new_lists, queries, k)
    first = newer.seq.offsets[:-1][queries.user]
    returning = newer.seq.time[first] < newer.since_ms
    return Judgement(
        k,
        len(queries),
        len(np.unique(queries.user)),
        float(np.nanmean(old)),
        float(np.nanmean(new)),
        float(np.nanmean(recall(old_lists, queries, k))),
        float(np.nanmean(recall(new_lists, queries, k))),
        UserBootstrap(queries.user).difference(new, old),
        UserBootstrap(queries.user[returning]).difference(new[returning], old[returning]) if returning.any() else None,
    )


def check(judgement: Judgement, margin: float) -> None:
    """Refuse a model whose ndcg is lower than the running one's by more than a share `margin` of it.

    Raises:
        WorseError: it is.
    """
    if not judgement.after >= judgement.before * (1 - margin):
        raise WorseError(f"refused, nothing was published: {judgement.line()}")
