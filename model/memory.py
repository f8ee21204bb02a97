"""What every user's own-repeat memory holds at each query: folded once, since it depends on no parameter."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from model.data.sequences import Queries, Sequences
from model.nets import Longwave
from model.nets.repeats import RepeatState, seconds, visit


@dataclass(frozen=True)
class Memories:
    """The filled slots of every query (CSR): those of query q are `offsets[q]:offsets[q + 1]`.

    Attributes:
        offsets: (Q + 1,) int64. key: (S,) int64; item: (S,) int64 row in the vocabulary, -1 outside.
        count: (S, C) float32; time, seen: (S,) int32 as in `RepeatState`.
        number: (Q,) int64 events of the user before the query. clock: (Q,) int64 ms of the user's latest event, 0 without.
    """

    offsets: Tensor
    key: Tensor
    item: Tensor
    count: Tensor
    time: Tensor
    seen: Tensor
    number: Tensor
    clock: Tensor

    def at(self, queries: Tensor) -> tuple[RepeatState, Tensor]:
        """Slots of the queries (n), padded to the fullest with empty ones: RepeatState (n, R', ...), item rows (n, R')."""
        start, end = self.offsets[queries], self.offsets[queries + 1]
        width = int((end - start).max().clamp(min=1))
        index = start[:, None] + torch.arange(width, device=start.device)
        real = index < end[:, None]
        index = torch.where(real, index, torch.zeros_like(index))
        zero = torch.zeros((), dtype=torch.int64)
        return (
            RepeatState(
                torch.where(real, self.key[index], zero),
                self.count[index] * real[..., None],
                torch.where(real, self.time[index], zero.to(torch.int32)),
                torch.where(real, self.seen[index], zero.to(torch.int32)),
            ),
            torch.where(real, self.item[index], zero - 1),
        )


@torch.no_grad()
def fold_memories(net: Longwave, seq: Sequences, queries: Queries) -> Memories:
    """Step all users' memories at once, longest first, and keep what the queries find. Uses the net's own `visit`."""
    if net.repeats is None:
        raise ValueError("this model has no own-repeat memory")
    slots, channels = net.config.repeats, net.config.repeat_channels
    by_user = np.lexsort((queries.position, queries.user))
    last = np.zeros(seq.users, np.int64)
    np.maximum.at(last, queries.user, queries.position - seq.offsets[queries.user])
    users = np.argsort(-last, kind="stable")
    users = users[last[users] > 0]
    length = last[users]
    row_of_user = np.full(seq.users, -1)
    row_of_user[users] = np.arange(len(users))
    # Queries by how many events stand before them.
    depth = (queries.position - seq.offsets[queries.user])[by_user]
    by_depth = by_user[np.argsort(depth, kind="stable")]
    depth = np.sort(depth, kind="stable")
    key = torch.as_tensor(seq.item_key)
    add = net.repeats.additions(net.type_weights[torch.as_tensor(seq.type, dtype=torch.int64)])
    state = RepeatState(
        torch.zeros(len(users), slots, dtype=torch.int64),
        torch.zeros(len(users), slots, channels),
        torch.zeros(len(users), slots, dtype=torch.int32),
        torch.zeros(len(users), slots, dtype=torch.int32),
    )
    clock = torch.zeros(len(users), dtype=torch.int64)
    starts = torch.as_tensor(seq.offsets[users])
    time = torch.as_tensor(seq.time)
    kept: list[tuple[np.ndarray, RepeatState, Tensor, Tensor]] = []
    clocks = torch.zeros(len(queries), dtype=torch.int64)
    taken = int(np.searchsorted(depth, 0, side="right"))  # queries before any event find nothing
    for t in range(int(length[0]) if len(length) else 0):
        active = int(np.searchsorted(-length, -t, side="left"))  # users with more than t events
        rows = starts[:active] + t
        clock[:active] = torch.maximum(clock[:active], time[rows])
        # After t events at most t slots are filled, from the first on: looking at the others would be wasted.
        view = RepeatState(*(part[:active, : t + 1] for part in state))
        number = torch.full((active,), t + 1)
        slot, *values = visit(view, key[rows], add[rows], seconds(clock[:active]), number, net.repeats.rates)
        user = torch.arange(active)[:, None]
        for part, new in zip(view, values, strict=True):
            part[user, slot] = new
        until = int(np.searchsorted(depth, t + 1, side="right"))
        if until > taken:
            asked = by_depth[taken:until]
            lanes = torch.as_tensor(row_of_user[queries.user[asked]])
            clocks[torch.as_tensor(asked)] = clock[lanes]
            kept.append((asked, *_filled(state, lanes)))
            taken = until
    return _gather(seq, queries, kept, clocks, channels)


def _filled(state: RepeatState, lanes: Tensor) -> tuple[RepeatState, Tensor, Tensor]:
    lane, slot = torch.nonzero(state.key[lanes] != 0, as_tuple=True)
    user = lanes[lane]
    found = RepeatState(state.key[user, slot], state.count[user, slot], state.time[user, slot], state.seen[user, slot])
    return found, lane, torch.bincount(lane, minlength=len(lanes))


def _gather(
    seq: Sequences, queries: Queries, kept: list[tuple[np.ndarray, RepeatState, Tensor, Tensor]], clocks: Tensor, channels: int
) -> Memories:
    sizes = torch.zeros(len(queries), dtype=torch.int64)
    owner: list[Tensor] = []
    for asked, _, lane, size in kept:
        index = torch.as_tensor(asked)
        sizes[index] = size
        owner.append(index[lane])
    order = torch.argsort(torch.cat(owner), stable=True) if owner else torch.zeros(0, dtype=torch.int64)
    parts = [torch.cat([getattr(found, name) for _, found, _, _ in kept])[order] for name in RepeatState._fields] if kept else []
    if not parts:
        empty = RepeatState(
            torch.zeros(0, dtype=torch.int64),
            torch.zeros(0, channels),
            torch.zeros(0, dtype=torch.int32),
            torch.zeros(0, dtype=torch.int32),
        )
        parts = list(empty)
    key, count, time, seen = parts
    return Memories(
        torch.cat([torch.zeros(1, dtype=torch.int64), sizes.cumsum(0)]),
        key,
        _rows(seq, key),
        count,
        time,
        seen,
        torch.as_tensor(queries.position - seq.offsets[queries.user]),
        clocks,
    )


def _rows(seq: Sequences, key: Tensor) -> Tensor:
    """Item rows of memory keys, -1 for items outside the vocabulary."""
    known = seq.item >= 0
    keys, first = np.unique(seq.item_key[known], return_index=True)
    if not len(keys):
        return torch.full_like(key, -1)
    rows = seq.item[known][first].astype(np.int64)
    place = np.searchsorted(keys, key.numpy()).clip(max=len(keys) - 1)
    return torch.as_tensor(np.where(keys[place] == key.numpy(), rows[place], -1))
