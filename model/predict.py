"""What the net says at each query: read out by `forward()`, scored against all items, ranked. No service code, no ONNX."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from model.data.sequences import Int32, Int64, Queries, Sequences, Split
from model.inputs import Inputs
from model.lanes import LaneBatch, lane_batches
from model.memory import Memories, fold_memories
from model.nets import Longwave, Readout, State
from model.nets.integers import MAX_CHUNK
from model.nets.readout import item_scores, repeat_additions
from model.nets.repeats import seconds
from model.nets.slots import Moment, RepeatState
from model.popularity import popularity_of
from model.replay import seen_items
from model.rounding import as_stored

BLOCK = 128
"""Queries that are ranked at a time on a CPU, or fewer: see `block_of`."""
BLOCK_ON_DEVICE = 2048
"""The same elsewhere: a GPU waits for launches, not for the scores."""
LANES, LANES_ON_DEVICE = 64, 512
"""Users that are folded side by side, likewise."""
MOST = 2**25
"""Numbers of the popularity tables of a block: an eighth of a gibibyte, and a few times as much while they become scores."""


class Carried:
    """The detached states of the users under way, between two chunks of each."""

    def __init__(self) -> None:
        self.state: dict[int, State] = {}
        self.ended: list[int] = []

    def enter(self, net: Longwave, inputs: Inputs, batch: LaneBatch) -> State:
        """States of the batch's lanes: the initial one for a fresh user, else what its last chunk left."""
        device = inputs.attributes.device
        state = net.initial_state(inputs.attributes[torch.as_tensor(batch.user, device=device)])
        old = [index for index, fresh in enumerate(batch.fresh) if not fresh]
        if not old:
            return state
        left = [self.state[int(batch.user[index])] for index in old]
        chosen = torch.as_tensor(old, device=device)
        # Own repeats are not carried: they come ready from `Memories`.
        return state | {n: state[n].index_copy(0, chosen, torch.stack([user[n] for user in left])) for n in left[0]}

    def leave(self, batch: LaneBatch, state: State) -> None:
        """Keep what the chunk left; the users that it ended are forgotten with the next call."""
        for user in self.ended:
            del self.state[user]
        kept = {n: (t.float() if t.is_floating_point() else t).detach() for n, t in state.items()}
        self.state |= {int(user): {n: t[index] for n, t in kept.items()} for index, user in enumerate(batch.user)}
        self.ended = batch.user[batch.last].tolist()


class Anew(Carried):
    """Every chunk begins with the initial state."""

    def enter(self, net: Longwave, inputs: Inputs, batch: LaneBatch) -> State:
        return net.initial_state(inputs.attributes[torch.as_tensor(batch.user, device=inputs.attributes.device)])

    def leave(self, batch: LaneBatch, state: State) -> None:
        pass


def most_at_once(device: torch.device) -> int:
    """How many queries are scored at a time on a device, or fewer."""
    return BLOCK if device.type == "cpu" else BLOCK_ON_DEVICE


def block_of(device: torch.device, *table: int) -> int:
    """How many queries are ranked at a time: each may have a popularity table of its own, of all items at all half-lives."""
    return max(1, min(most_at_once(device), MOST // max(1, math.prod(table))))


def logits(
    net: Longwave,
    readout: Readout,
    item_matrix: Tensor,
    item_bias: Tensor,
    popularity: Tensor,
    as_of: Tensor,
    memories: Memories | None,
    queries: Tensor,
) -> Tensor:
    """Scores of all items for n queries: popularity (N, P) or (n, N, P), as_of (n) ms, queries (n) -> (n, N)."""
    scores = item_scores(readout.interests, item_matrix, item_bias, popularity, readout.popularity_weight)
    if memories is None:
        return scores
    return scores.scatter_add(1, *repeats_at(net, readout, item_matrix, as_of, memories, queries))


def repeats_at(
    net: Longwave,
    readout: Readout,
    item_matrix: Tensor,
    as_of: Tensor,
    memories: Memories,
    queries: Tensor,
    place: Tensor | None = None,
    found: tuple[RepeatState, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """What own repeats add to the scores of n queries: item rows (n, R) and amounts, 0 where there is no item.

    With `place` (N), the vector of item i is `item_matrix[place[i]]`. `found` is `memories.at(queries)`, if it is known already.
    """
    assert net.repeats is not None
    slots, rows = found or memories.at(queries)
    clock = memories.clock[queries]
    now = torch.maximum(as_of, clock) if net.config.query_time else clock
    moment = Moment(seconds(now)[:, None], memories.number[queries][:, None], memories.visit_number[queries][:, None])
    visits = net.repeats.faded(memories.visits[queries], (now - clock)[:, None])
    repeats = net.repeats(slots, visits, readout.context, moment)
    if place is None:
        return repeat_additions(rows, repeats, readout.repeat_interest, item_matrix)
    _, amount = repeat_additions(torch.where(rows < 0, rows, place[rows]), repeats, readout.repeat_interest, item_matrix)
    return rows.clamp(min=0), amount


@dataclass(frozen=True)
class Predictions:
    """Readouts of Q queries and the items they are scored against."""

    readout: Readout
    item_matrix: Tensor
    item_bias: Tensor


@torch.no_grad()
def read_out(
    net: Longwave,
    inputs: Inputs,
    seq: Sequences,
    queries: Queries,
    begin: Int64 | None = None,
    item_vectors: str = "float32",
) -> Predictions:
    """Fold every user from the beginning, or from row `begin` (U,) on, with `forward()`, and read out at every query.

    With `item_vectors` as the bundle stores them ("int8" or "float32"), which is how they are folded, and will be scored.
    Everything is on the net's device, wherever the inputs are.
    """
    net.eval()
    lanes = LANES if net.device.type == "cpu" else LANES_ON_DEVICE
    inputs, on = inputs.on(net.device), partial(torch.as_tensor, device=net.device)
    item_matrix, item_bias = net.item(inputs.item_text, inputs.item_features)
    item_matrix = as_stored(item_matrix, item_vectors)
    parts: list[Readout] = []
    order: list[Tensor] = []
    carried = Carried()
    as_of = on(queries.as_of)
    # Asked where the event that follows happened, as in training; without platforms that is "missing" everywhere.
    platform = inputs.platform[on(queries.position)]
    start = seq.offsets[:-1] if begin is None else begin
    for batch in lane_batches(start, seq.offsets[1:], queries, lanes, MAX_CHUNK // 2, None):
        query = on(batch.query)
        asked = query[query >= 0]
        state = carried.enter(net, inputs, batch)
        events = inputs.events(on(batch.rows), item_matrix)
        readout, state = net(
            events,
            on(batch.valid),
            state,
            on(batch.positions),
            as_of[asked],
            platform[asked],
        )
        carried.leave(batch, state)
        parts.append(readout)
        order.append(asked)
    place = torch.argsort(torch.cat(order))
    return Predictions(Readout(*(torch.cat(field)[place] for field in zip(*parts, strict=True))), item_matrix, item_bias)


def top_k(scores: Tensor, k: int) -> npt.NDArray[np.int32]:
    """(n, N) -> (n, k) rows, best first, ties by lower row; -1 where the score is -inf."""
    # topk alone promises no order among equals: a stable sort does.
    k = min(k, scores.shape[1])
    if scores.device.type != "cpu":  # of all, in one launch
        ordered = torch.sort(scores, dim=1, descending=True, stable=True)
        return torch.where(ordered.values > -torch.inf, ordered.indices, -1)[:, :k].cpu().numpy().astype(np.int32)
    # Here over the few that can be in the list.
    threshold = torch.topk(scores, k, dim=1).values[:, -1:]
    out = np.full((len(scores), k), -1, np.int32)
    for index, (row, least) in enumerate(zip(scores, threshold, strict=True)):
        candidates = torch.nonzero((row >= least) & (row > -torch.inf))[:, 0]
        best = candidates[torch.sort(row[candidates], descending=True, stable=True).indices[:k]]
        out[index, : len(best)] = best.cpu().numpy()
    return out


def leave_out(scores: Tensor, rows: Sequence[npt.NDArray[np.integer]]) -> None:
    """Make scores (n, N) -inf at some rows of each of the n queries: all at once, as on a GPU each piece is a launch."""
    query = np.repeat(np.arange(len(rows)), [len(of_query) for of_query in rows])
    place = (torch.as_tensor(index.astype(np.int64), device=scores.device) for index in (query, np.concatenate(rows)))
    scores[tuple(place)] = -torch.inf


@torch.no_grad()
def rank(
    net: Longwave,
    predictions: Predictions,
    queries: Queries,
    popularity: Tensor,
    memories: Memories | None,
    k: int,
    chosen: Tensor,
    forbidden: list[Int32] | None = None,
) -> npt.NDArray[np.int32]:
    """Lists of the `chosen` queries (n): (n, k). popularity as in `logits`; forbidden: per chosen query, rows left out."""
    device = predictions.item_matrix.device
    readout = Readout(*(field[chosen] for field in predictions.readout))
    as_of = torch.as_tensor(queries.as_of, device=device)[chosen]
    scores = logits(net, readout, predictions.item_matrix, predictions.item_bias, popularity, as_of, memories, chosen)
    if forbidden:
        leave_out(scores, forbidden)
    return top_k(scores, k)


@torch.no_grad()
def score_blocks(net: Longwave, inputs: Inputs, seq: Sequences, split: Split, queries: Queries) -> Iterator[Tensor]:
    """Scores (n, N) of all items for the queries of a split, `BLOCK` at a time, in their order; nothing is left out."""
    table = popularity_of(seq, split, net.config.popularity_half_lives_s).on(net.device)
    predictions = read_out(net, inputs, seq, queries)
    memories = fold_memories(net, seq, queries) if net.repeats is not None else None
    as_of = torch.as_tensor(queries.as_of, device=net.device)

    def scores(chosen: Tensor) -> Tensor:
        readout = Readout(*(field[chosen] for field in predictions.readout))
        items = predictions.item_matrix, predictions.item_bias, table.at(as_of[chosen])
        return logits(net, readout, *items, as_of[chosen], memories, chosen)

    block, most = block_of(net.device, *table.table.shape[1:]), most_at_once(net.device)
    for start in range(0, len(queries), most):
        chosen = torch.arange(start, min(start + most, len(queries)), device=net.device)
        yield torch.cat([scores(part) for part in torch.split(chosen, block)])


def ranked_lists(
    net: Longwave,
    inputs: Inputs,
    seq: Sequences,
    split: Split,
    queries: Queries,
    begin: Int64 | None = None,
    item_vectors: str = "float32",
) -> npt.NDArray[np.int32]:
    """The net's lists (Q, k) for any queries of a split, k being the split's; `begin` and `item_vectors` as of `read_out`.

    What a user has seen before `begin` stays seen.
    """
    table = popularity_of(seq, split, net.config.popularity_half_lives_s).on(net.device)
    predictions = read_out(net, inputs, seq, queries, begin=begin, item_vectors=item_vectors)
    memories = fold_memories(net, seq, queries, begin) if net.repeats is not None else None
    as_of, lists = torch.as_tensor(queries.as_of, device=net.device), []
    block = block_of(net.device, *table.table.shape[1:])
    for start in range(0, len(queries), block):
        chosen = torch.arange(start, min(start + block, len(queries)), device=net.device)
        forbidden = None
        if split.filter_seen:
            forbidden = [seen_items(seq, int(queries.user[q]), int(queries.position[q])) for q in chosen.tolist()]
        lists.append(rank(net, predictions, queries, table.at(as_of[chosen]), memories, split.k, chosen, forbidden))
    return np.concatenate(lists) if lists else np.empty((0, split.k), np.int32)
