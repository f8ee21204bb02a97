"""What every user's own-repeat memory holds at each query: folded once, since it depends on no parameter."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from model.data.sequences import Int64, Queries, Sequences
from model.nets import Longwave
from model.nets.block import BLOCK
from model.nets.repeats import remember_all, seconds, touch
from model.nets.slots import Moment, RepeatState

FEW = 16
"""So few users, with so many events each until one of them is asked, take those at once: a long life is then no long loop."""


@dataclass(frozen=True)
class Memories:
    """The filled slots of every query (CSR): those of query q are `offsets[q]:offsets[q + 1]`.

    Attributes:
        offsets: (Q + 1,) int64. key: (S,) int64; item: (S,) int64 row in the vocabulary, -1 outside.
        count: (S, C) float32; time, seen, visit: (S,) int32 as in `RepeatState`.
        number: (Q,) int64 events of the user before the query. clock: (Q,) int64 ms of the user's latest event, 0 without.
        visits: (Q, C - 1) float32 and visit_number: (Q,) int64 as the state has them.
    """

    offsets: Tensor
    key: Tensor
    item: Tensor
    count: Tensor
    time: Tensor
    seen: Tensor
    visit: Tensor
    number: Tensor
    clock: Tensor
    visits: Tensor
    visit_number: Tensor

    def on(self, device: torch.device) -> Memories:
        """The same on a device; nothing is copied where it is there already."""
        return Memories(**{f.name: getattr(self, f.name).to(device) for f in fields(self)})

    def since(self, first: int) -> Memories:
        """Those of the queries from row `first` on."""
        return replace(
            self,
            offsets=self.offsets[first:],
            number=self.number[first:],
            clock=self.clock[first:],
            visits=self.visits[first:],
            visit_number=self.visit_number[first:],
        )

    def at(self, queries: Tensor) -> tuple[RepeatState, Tensor]:
        """Slots of the queries (n), padded to the fullest with empty ones: RepeatState (n, R', ...), item rows (n, R')."""
        start, end = self.offsets[queries], self.offsets[queries + 1]
        width = int((end - start).max().clamp(min=1))
        index = start[:, None] + torch.arange(width, device=start.device)
        real = index < end[:, None]
        index = torch.where(real, index, torch.zeros_like(index))
        zero = start.new_zeros(())
        return (
            RepeatState(
                torch.where(real, self.key[index], zero),
                self.count[index] * real[..., None],
                torch.where(real, self.time[index], zero.to(torch.int32)),
                torch.where(real, self.seen[index], zero.to(torch.int32)),
                torch.where(real, self.visit[index], zero.to(torch.int32)),
            ),
            torch.where(real, self.item[index], zero - 1),
        )


@torch.no_grad()
def fold_memories(net: Longwave, seq: Sequences, queries: Queries, begin: Int64 | None = None) -> Memories:
    """Step all users' memories at once, longest first, and keep what the queries find. Uses the net's own `touch`.

    `begin` (U,) is the row from which on each user's events count; None: all. On the net's device.
    """
    if net.repeats is None:
        raise ValueError("this model has no own-repeat memory")
    begin = seq.offsets[:-1] if begin is None else begin
    slots, channels = net.config.repeats, net.config.repeat_channels
    by_user = np.lexsort((queries.position, queries.user))
    last = np.zeros(seq.users, np.int64)
    np.maximum.at(last, queries.user, queries.position - begin[queries.user])
    users = np.argsort(-last, kind="stable")
    users = users[last[users] > 0]
    length = last[users]
    row_of_user = np.full(seq.users, -1)
    row_of_user[users] = np.arange(len(users))
    # Queries by how many events stand before them.
    depth = (queries.position - begin[queries.user])[by_user]
    by_depth = by_user[np.argsort(depth, kind="stable")]
    depth = np.sort(depth, kind="stable")
    on = partial(torch.as_tensor, device=net.device)
    zeros = partial(torch.zeros, device=net.device)
    key = on(seq.item_key)
    add = net.repeats.additions(net.type_weights[on(seq.type, dtype=torch.int64)])
    state = RepeatState(
        zeros(len(users), slots, dtype=torch.int64),
        zeros(len(users), slots, channels),
        *(zeros(len(users), slots, dtype=torch.int32) for _ in range(3)),
    )
    clock = zeros(len(users), dtype=torch.int64)
    visits = zeros(len(users), channels - 1)
    visit = zeros(len(users), dtype=torch.int64)
    starts = on(begin[users])
    time = on(seq.time)
    kept: list[tuple[Tensor, RepeatState, Tensor, Tensor]] = []
    clocks = zeros(len(queries), dtype=torch.int64)
    all_visits = zeros(len(queries), channels - 1)
    visit_number = zeros(len(queries), dtype=torch.int64)
    taken = int(np.searchsorted(depth, 0, side="right"))  # queries before any event find nothing
    shorter = -length
    t = 0
    while t < (int(length[0]) if len(length) else 0):
        active = int(np.searchsorted(shorter, -t, side="left"))  # users with more than t events
        # Nobody is asked, and nobody's events end, before so many.
        free = min(int(length[active - 1]), int(depth[taken])) - t
        if t and active <= FEW <= free:
            events = min(free, BLOCK)
            rows = starts[:active, None] + torch.arange(t, t + events, device=net.device)
            now = torch.maximum(clock[:active, None], torch.cummax(time[rows], 1).values)
            new = torch.diff(now, dim=1, prepend=clock[:active, None]) > 0
            end = now[:, -1:]
            number = torch.arange(t + 1, t + events + 1, device=net.device).expand_as(rows)
            moment = Moment(seconds(now), number, visit[:active, None] + new.cumsum(1))
            after = remember_all(RepeatState(*(part[:active] for part in state)), key[rows], add[rows], moment, net.repeats.rates)
            for part, value in zip(state, after, strict=True):
                part[:active] = value
            faded = net.repeats.faded(new[..., None].to(visits.dtype), (end - now)[..., None])
            visits[:active] = net.repeats.faded(visits[:active], end - clock[:active, None]) + faded.sum(1)
            visit[:active], clock[:active] = moment.visit[:, -1], end[:, 0]
            t += events
        else:
            rows = starts[:active] + t
            now = torch.maximum(clock[:active], time[rows])
            elapsed = now - clock[:active] if t else torch.zeros_like(now)
            new = elapsed > 0 if t else torch.ones_like(now, dtype=torch.bool)
            visits[:active] = net.repeats.faded(visits[:active], elapsed[:, None]) + new[:, None]
            visit[:active] += new
            clock[:active] = now
            # After t events at most t slots are filled, from the first on: looking at the others would be wasted.
            view = RepeatState(*(part[:active, : t + 1] for part in state))
            moment = Moment(seconds(now)[:, None], torch.full((active, 1), t + 1, device=net.device), visit[:active, None])
            slot, *values = touch(view, key[rows][:, None], add[rows][:, None], moment, net.repeats.rates)
            user = torch.arange(active, device=net.device)[:, None]
            for part, value in zip(view, values, strict=True):
                part[user, slot] = value
            t += 1
        until = int(np.searchsorted(depth, t, side="right"))
        if until > taken:
            lanes = on(row_of_user[queries.user[by_depth[taken:until]]])
            asked = on(by_depth[taken:until])
            clocks[asked], all_visits[asked], visit_number[asked] = clock[lanes], visits[lanes], visit[lanes]
            kept.append((asked, *_filled(state, lanes)))
            taken = until
    offsets, slots_found = _gather(len(queries), channels, kept, net.device)
    return Memories(
        offsets,
        slots_found.key,
        _rows(seq, slots_found.key),
        slots_found.count,
        slots_found.time,
        slots_found.seen,
        slots_found.visit,
        on(queries.position - begin[queries.user]),
        clocks,
        all_visits,
        visit_number,
    )


def _filled(state: RepeatState, lanes: Tensor) -> tuple[RepeatState, Tensor, Tensor]:
    """The filled slots of these lanes, the place in `lanes` that each belongs to, and how many each has."""
    lane, slot = torch.nonzero(state.key[lanes] != 0, as_tuple=True)
    user = lanes[lane]
    return RepeatState(*(part[user, slot] for part in state)), lane, torch.bincount(lane, minlength=len(lanes))


def _gather(
    queries: int, channels: int, kept: list[tuple[Tensor, RepeatState, Tensor, Tensor]], device: torch.device
) -> tuple[Tensor, RepeatState]:
    """All kept slots in order of the queries, and the offsets (Q + 1) of each query's."""
    sizes = torch.zeros(queries, dtype=torch.int64, device=device)
    owner = [sizes[:0]]
    none = sizes[:0].to(torch.int32)
    found = [RepeatState(sizes[:0], torch.zeros(0, channels, device=device), none, none, none)]
    for asked, slots, lane, size in kept:
        sizes[asked] = size
        owner.append(asked[lane])
        found.append(slots)
    order = torch.argsort(torch.cat(owner), stable=True)
    offsets = torch.cat([sizes.new_zeros(1), sizes.cumsum(0)])
    return offsets, RepeatState(*(torch.cat(parts)[order] for parts in zip(*found, strict=True)))


def _rows(seq: Sequences, key: Tensor) -> Tensor:
    """Item rows of memory keys, -1 for items outside the vocabulary."""
    known = seq.item >= 0
    keys, first = np.unique(seq.item_key[known], return_index=True)
    if not len(keys):
        return torch.full_like(key, -1)
    rows = seq.item[known][first].astype(np.int64)
    asked = key.cpu().numpy()
    place = np.searchsorted(keys, asked).clip(max=len(keys) - 1)
    return torch.as_tensor(np.where(keys[place] == asked, rows[place], -1), device=key.device)
