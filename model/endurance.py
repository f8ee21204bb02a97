"""Whether a state outlives the window that it was trained on: is all of a history worth its end, and does the state not grow?"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from model.checkpoint import Checkpoint
from model.data.sequences import Int64, Queries
from model.data.splits import select
from model.intervals import Difference, UserBootstrap
from model.metrics import ndcg
from model.nets import State
from model.nets.integers import MAX_CHUNK
from model.predict import ranked_lists
from model.task import Task

LAST = 200
LONG = 400
MOST = 20
EVENTS = 100_000
LANES = 8


@dataclass(frozen=True)
class LongHistories:
    """What those with more than `LONG` events before a validation query are told, from all of them and from their end.

    Attributes:
        users: who they are. queries: how many they are asked, at most `MOST` each, spread over all that they have beyond `LONG`.
        whole, last: mean ndcg at the split's k from all of their events, and from the last `LAST` alone, folded from zero.
        difference: of the two, paired by user. All None without such users.
    """

    users: int
    queries: int
    whole: float | None
    last: float | None
    difference: Difference | None


@dataclass(frozen=True)
class Endurance(LongHistories):
    """What a long life does to a state: besides, how large it is.

    Attributes:
        norm_early, norm_late: of the state after `LAST` and after `EVENTS` events, mean over lanes; each tensor counts by its
            root mean square.
        largest: the tensor that grew most, and by how much: late over early.
    """

    norm_early: float
    norm_late: float
    largest: tuple[str, float]

    @property
    def growth(self) -> float:
        return self.norm_late / self.norm_early


def endurance(checkpoint: Checkpoint, task: Task, seed: int = 0) -> Endurance:
    """Measured on the validation part alone, and on a made-up user who does in turn what users of the data did."""
    long = long_histories(checkpoint, task, seed)
    early, late = _sizes(checkpoint, task, seed)
    growth = {name: late[name] / early[name] for name in early if early[name] > 0}
    name = max(growth, key=lambda each: growth[each])
    norms = float(np.mean(list(early.values()))), float(np.mean(list(late.values())))
    return Endurance(**vars(long), norm_early=norms[0], norm_late=norms[1], largest=(name, growth[name]))


def long_histories(checkpoint: Checkpoint, task: Task, seed: int = 0) -> LongHistories:
    """Whether all of a long history is worth its end; on the validation part alone."""
    asked, turn = _of_long(task)
    if not len(asked):
        return LongHistories(0, 0, None, None, None)
    start = task.seq.offsets[:-1]
    whole = _ndcg(checkpoint, task, asked, start)
    last = np.empty_like(whole)
    for each in range(int(turn.max()) + 1):  # what a user is asked next is folded from another row on
        chosen = np.flatnonzero(turn == each)
        queries, recent = select(asked, chosen), start.copy()
        np.maximum.at(recent, queries.user, queries.position - LAST)
        last[chosen] = _ndcg(checkpoint, task, queries, recent)
    difference = UserBootstrap(asked.user, seed=seed).difference(whole, last)
    users = len(np.unique(asked.user))
    return LongHistories(users, len(asked), float(np.nanmean(whole)), float(np.nanmean(last)), difference)


def _of_long(task: Task) -> tuple[Queries, Int64]:
    """The validation queries to ask, and which of its user's each is, from 0 on."""
    valid = task.split.valid
    order = np.lexsort((valid.position, valid.user))
    order = order[(valid.position - task.seq.offsets[valid.user])[order] > LONG]
    of_user = np.split(order, np.flatnonzero(np.diff(valid.user[order])) + 1) if len(order) else []
    spread = [each[np.unique(np.linspace(len(each) - 1, 0, min(MOST, len(each))).astype(int))] for each in of_user]
    turn = [np.arange(len(each)) for each in spread]
    nothing = np.empty(0, np.int64)
    return select(valid, np.concatenate([nothing, *spread])), np.concatenate([nothing, *turn])


def _ndcg(checkpoint: Checkpoint, task: Task, queries: Queries, begin: Int64) -> np.ndarray:
    """(Q,) from the events of row `begin` (U,) on; what was seen before it stays seen."""
    split = task.split
    lists = ranked_lists(checkpoint.net, task.inputs, task.seq, split, queries, begin)
    return np.asarray(ndcg(lists, queries, split.k), np.float64)


@torch.no_grad()
def _sizes(checkpoint: Checkpoint, task: Task, seed: int) -> tuple[dict[str, float], dict[str, float]]:
    """Root mean square of each real tensor of the state after `LAST` and after `EVENTS` events, mean over lanes."""
    net, inputs, rng = checkpoint.net, task.inputs, np.random.default_rng(seed)
    matrix, _ = net.item(inputs.item_text, inputs.item_features)
    # Without own repeats, which are counts of the data and no business of the net's.
    state: State = net.initial_state(torch.zeros(LANES, len(net.config.attribute_sizes), dtype=torch.int64))
    gaps = np.maximum(np.diff(task.seq.time), 0)[np.diff(task.seq.user) == 0]
    clock, done = np.zeros(LANES, np.int64), 0
    early: dict[str, float] = {}
    while done < EVENTS:
        length = min(LAST if done == 0 else MAX_CHUNK, EVENTS - done)
        # Stretches of real users, one after another, so that what happens in a row is what happens in a row.
        rows = np.stack([_stretches(task, length, rng) for _ in range(LANES)])
        time = clock[:, None] + np.cumsum(rng.choice(gaps, (LANES, length)) if len(gaps) else np.ones((LANES, length)), 1)
        events = inputs.events(torch.as_tensor(rows), matrix)._replace(time=torch.as_tensor(time.astype(np.int64)))
        none = torch.full((LANES, 1), -1)
        nothing = torch.zeros(0, dtype=torch.int64)
        _, after = net(events, torch.ones(LANES, length, dtype=torch.bool), state, none, nothing, nothing)
        state, clock, done = state | after, time[:, -1].astype(np.int64), done + length
        early = early or _root_mean_squares(after)
    return early, _root_mean_squares(after)


def _stretches(task: Task, length: int, rng: np.random.Generator) -> np.ndarray:
    """(length,) event rows: users at random, each from a random event on."""
    rows: list[np.ndarray] = []
    while sum(map(len, rows)) < length:
        user = rng.integers(task.seq.users)
        start, end = task.seq.offsets[user], task.seq.offsets[user + 1]
        rows.append(np.arange(rng.integers(start, end), end))
    return np.concatenate(rows)[:length]


def _root_mean_squares(state: State) -> dict[str, float]:
    # What weighs a mean (acc_weight) is a count of events, and grows until as many fade as come; so do means that begin at zero.
    fills = ("acc_weight", "leaning")
    real = {name: tensor for name, tensor in state.items() if tensor.is_floating_point() and name not in fills}
    return {name: float(tensor.flatten(1).square().mean(1).sqrt().mean()) for name, tensor in real.items()}
