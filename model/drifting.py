"""Whether drift tells who changed from who did not: asked of users whose interest turned at a known moment, by a known amount."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from model.data import turning
from model.data.dataset import to_sequences
from model.data.sequences import Int64, Sequences
from model.data.turning import turning_world
from model.inputs import Inputs
from model.interests import RECENT
from model.intervals import Estimate
from model.nets import Longwave
from model.nets.leaning import HALF_LIVES
from model.nets.portrait import drift
from model.task import Task

Float64 = npt.NDArray[np.float64]

USERS = 1_000
OTHERS = 7
"""Of the seed of their world, so that no benchmark has them, nor what half-lives were chosen by."""
SINCE = (5, 10, 20, 30, 60)
"""Events between the turn and the moment of asking."""
FEW = 16
RESAMPLES = 1_000
LANES = 100
NET = "drift"


@dataclass(frozen=True)
class Told:
    """One statistic at one moment.

    Attributes:
        auc: the chance that of one who turned and one who stayed it is larger for the first; 0.5 is a coin.
        spearman: rank correlation with how far the interest turned, over all users, who stayed included.
        stayed, turned: mean value of either group.
    """

    auc: Estimate
    spearman: Estimate
    stayed: float
    turned: float


@dataclass(frozen=True)
class DriftReport:
    """Drift beside plain statistics of labels, on users whom the net never saw; intervals by bootstrap over users, each group by
    itself.

    Attributes:
        users, turned: how many there are, and how many of them turned.
        half_lives: by which the net's drift looks back, in events.
        by_events: statistic -> events since the turn -> how well it tells.
    """

    users: int
    turned: int
    half_lives: tuple[float, ...]
    by_events: dict[str, dict[int, Told]]


def drift_report(net: Longwave, task: Task, seed: int = 0, users: int = USERS) -> DriftReport | None:
    """Measured on users of the world `turning` who are not in its data; None for a task of any other data."""
    if task.data["name"] != turning.NAME or task.labels is None:
        return None
    world = turning_world((OTHERS, seed), users)
    seq = to_sequences(world.dataset, vocabulary=task.seq.item_ids)
    share = task.labels.share
    statistics: dict[str, Callable[[Int64], Float64]] = {
        NET: lambda upto: net_drift(net, task.inputs, share, seq, upto),
        f"labels, last {RECENT} against all before": lambda upto: label_drift(seq, share, upto, RECENT, None),
        f"labels, last {FEW} against {FEW} before": lambda upto: label_drift(seq, share, upto, FEW, FEW),
        "labels, by the half-lives of drift": lambda upto: fading_label_drift(seq, share, upto),
    }
    moved = world.amount > 0
    drawn = _resamples(moved, seed)
    found = {
        name: {since: told(of(world.turn + since), world.amount, drawn) for since in SINCE} for name, of in statistics.items()
    }
    return DriftReport(users, int(moved.sum()), HALF_LIVES, found)


@torch.no_grad()
def net_drift(net: Longwave, known: Inputs, share: npt.NDArray[np.float32], seq: Sequences, upto: Int64) -> Float64:
    """(U,) what profile.onnx says of each user after their first `upto` (U,) events.

    known: has texts and features of items. share: (N, C) their labels, which the net learns to read, as for a bundle.
    """
    net.eval()
    inputs = Inputs.of(seq)
    matrix, _ = net.item(known.item_text, known.item_features)
    net.leaning.learn(matrix, torch.as_tensor(share))
    out = np.empty(seq.users)
    for begin in range(0, seq.users, LANES):
        chosen = np.arange(begin, min(begin + LANES, seq.users))
        column = np.arange(upto[chosen].max())
        valid = column < upto[chosen, None]
        rows = torch.as_tensor(np.where(valid, seq.offsets[chosen, None] + column, seq.offsets[chosen, None]))
        state = net.initial_state(inputs.attributes[torch.as_tensor(chosen)])
        state = net.encode(inputs.events(rows, matrix), torch.as_tensor(valid), state)
        out[chosen] = drift(state["leaning"])[:, 0].numpy()
    return out


def label_drift(seq: Sequences, share: npt.NDArray[np.float32], upto: Int64, newer: int, older: int | None) -> Float64:
    """(U,) 1 - cosine between label frequencies of the last `newer` of each user's first `upto` (U,) events and of the `older`
    (None: all) ones before these."""
    sums = np.concatenate([np.zeros((1, share.shape[1])), np.cumsum(_had(seq, share), 0, dtype=np.float64)])
    start, end = seq.offsets[:-1], seq.offsets[:-1] + upto
    middle = np.maximum(end - newer, start)
    first = start if older is None else np.maximum(middle - older, start)
    return _apart(sums[end] - sums[middle], sums[middle] - sums[first])


def fading_label_drift(seq: Sequences, share: npt.NDArray[np.float32], upto: Int64) -> Float64:
    """(U,) 1 - cosine between sums of labels that fade by the two half-lives of drift."""
    had, start = _had(seq, share), seq.offsets[:-1]
    ago = [np.arange(count - 1, -1, -1) for count in upto]
    late, long = (
        np.stack([0.5 ** (back / half) @ had[first : first + len(back)] for first, back in zip(start, ago, strict=True)])
        for half in HALF_LIVES
    )
    return _apart(late, long)


def _had(seq: Sequences, share: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """(E, C) the labels of each event."""
    had: npt.NDArray[np.float32] = np.where(seq.item[:, None] >= 0, share[seq.item], 0)
    return had


def _apart(one: Float64, other: Float64) -> Float64:
    """1 - cosine of rows; 1 where either is zero."""
    size = np.sqrt((one * one).sum(1) * (other * other).sum(1))
    apart: Float64 = 1 - (one * other).sum(1) / np.maximum(size, 1e-12)
    return apart


def told(values: Float64, amount: Float64, drawn: Int64) -> Told:
    """How well `values` (U,) tell `amount` (U,), 0 for who stayed; `drawn` (R, U) rows of users, a resample each."""
    moved = amount > 0
    aucs = np.array([auc(values[rows], moved[rows]) for rows in drawn])
    correlations = np.array([spearman(values[rows], amount[rows]) for rows in drawn])
    return Told(
        _estimate(auc(values, moved), aucs),
        _estimate(spearman(values, amount), correlations),
        float(values[~moved].mean()),
        float(values[moved].mean()),
    )


def auc(values: Float64, positive: npt.NDArray[np.bool_]) -> float:
    """Area under the ROC curve by ranks (Mann & Whitney 1947); ties count half."""
    count = int(positive.sum())
    ranks = _ranks(values)
    return float((ranks[positive].sum() - count * (count + 1) / 2) / (count * (len(values) - count)))


def spearman(first: Float64, second: Float64) -> float:
    """Correlation of ranks, ties with their mean rank; 0 with what is the same for all."""
    one, other = (_ranks(each) - (len(each) + 1) / 2 for each in (first, second))
    size = np.sqrt((one * one).sum() * (other * other).sum())
    return float((one * other).sum() / size) if size else 0.0


def _ranks(values: Float64) -> Float64:
    """From 1 on; equal values share the mean of theirs."""
    _, place, count = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(count)
    ranks: Float64 = (last - (count - 1) / 2)[place]
    return ranks


def _resamples(moved: npt.NDArray[np.bool_], seed: int) -> Int64:
    """(RESAMPLES, U) rows drawn with replacement, as many of who turned and of who stayed as there are."""
    rng = np.random.default_rng(seed)
    groups = [np.flatnonzero(moved), np.flatnonzero(~moved)]
    return np.concatenate([rng.choice(group, (RESAMPLES, len(group))) for group in groups], axis=1)


def _estimate(value: float, resampled: Float64) -> Estimate:
    low, high = np.quantile(resampled, [0.025, 0.975])
    return Estimate(value, None, float(resampled.std()), float(low), float(high))
