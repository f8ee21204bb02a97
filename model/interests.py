"""How true named interests are: do the labels that the net expects come, more than those the user had of late?"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from model.checkpoint import Checkpoint
from model.data.sequences import Queries
from model.data.splits import select
from model.intervals import Difference, Estimate, UserBootstrap
from model.nets.portrait import label_weights
from model.predict import score_blocks
from model.task import Task

Float64 = npt.NDArray[np.float64]

TOP = 3
RECENT = 30


@dataclass(frozen=True)
class InterestReport:
    """The net's labels beside the frequencies of the user's last `RECENT` labelled items, on the same queries.

    Attributes:
        labels, queries: how many there are; a query counts if the user has had, and then has, an item with a label.
        net, recent: "accuracy@1", "recall@3", "f1@3" -> estimate.
        difference: of the two, paired.
    """

    labels: int
    queries: int
    net: dict[str, Estimate]
    recent: dict[str, Estimate]
    difference: dict[str, Difference]


def interest_report(checkpoint: Checkpoint, task: Task, queries: Queries, seed: int = 0) -> InterestReport | None:
    """Measured on these queries; None where items have no labels, or no query counts."""
    if task.labels is None:
        return None
    share = task.labels.share
    truth = np.zeros((len(queries), share.shape[1]), bool)
    owner = np.repeat(np.arange(len(queries)), np.diff(queries.target_offsets))
    np.logical_or.at(truth, owner, share[queries.target] > 0)
    had = _recent(task, queries)
    counts = np.flatnonzero(truth.any(1) & had.any(1))
    if not len(counts):
        return None
    asked = select(queries, counts)
    net, recent = (_figures(weights, truth[counts]) for weights in (_expected(checkpoint, task, asked), had[counts]))
    bootstrap = UserBootstrap(asked.user, seed=seed)
    return InterestReport(
        share.shape[1],
        len(asked),
        {name: bootstrap.estimate(values) for name, values in net.items()},
        {name: bootstrap.estimate(values) for name, values in recent.items()},
        {name: bootstrap.difference(values, recent[name]) for name, values in net.items()},
    )


@torch.no_grad()
def _expected(checkpoint: Checkpoint, task: Task, queries: Queries) -> npt.NDArray[np.float32]:
    """(Q, C) what the net expects, as profile.onnx says it."""
    assert task.labels is not None
    share = torch.as_tensor(task.labels.share)
    blocks = score_blocks(checkpoint.net, task.inputs, task.seq, task.split, queries)
    expected: npt.NDArray[np.float32] = torch.cat([label_weights(scores, share) for scores in blocks]).numpy()
    return expected


def _recent(task: Task, queries: Queries) -> npt.NDArray[np.float32]:
    """(Q, C) labels of each user's last `RECENT` positive events before the query whose item has any."""
    assert task.labels is not None
    seq, share = task.seq, task.labels.share
    known = np.flatnonzero(seq.positive & (seq.item >= 0))
    known = known[share[seq.item[known]].any(1)]
    end = np.searchsorted(known, queries.position)
    begin = np.maximum(end - RECENT, np.searchsorted(known, seq.offsets[queries.user]))
    upto = np.concatenate([np.zeros((1, share.shape[1])), np.cumsum(share[seq.item[known]], 0, dtype=np.float64)])
    # Sums of thirds, subtracted: what differs by float noise alone is a tie.
    had: npt.NDArray[np.float32] = (upto[end] - upto[np.minimum(begin, end)]).round(6).astype(np.float32)
    return had


def _figures(weights: npt.NDArray[np.float32], truth: npt.NDArray[np.bool_]) -> dict[str, Float64]:
    """(Q, C) weights and what came -> values of each query."""
    best = np.argsort(-weights, axis=1, kind="stable")[:, :TOP]
    hit = np.take_along_axis(truth, best, 1)
    recall = hit.sum(1) / truth.sum(1)
    precision = hit.sum(1) / best.shape[1]
    f1 = 2 * recall * precision / np.maximum(recall + precision, 1e-12)
    return {"accuracy@1": hit[:, 0].astype(np.float64), f"recall@{TOP}": recall, f"f1@{TOP}": f1}
