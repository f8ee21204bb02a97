"""The whole net: a fold over events and a readout. `forward()` over a sequence and `step()` over one event are the same function.

Letters: B users, T events, P moments asked about, L layers, D width, K ring slots, M accumulators, R repeat slots, N items.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from model.nets.accumulate import BLOCK, Accumulators
from model.nets.config import ModelConfig
from model.nets.dropout import Dropout
from model.nets.event import EventBatch, EventFusion
from model.nets.integers import at_least, maximum, running_max
from model.nets.item import ItemFusion
from model.nets.leaning import HALF_LIVES, Leaning
from model.nets.leaning import MOST as LABELS
from model.nets.readout import InterestReadout
from model.nets.recurrence import Recurrence
from model.nets.repeats import RepeatScorer, remember, remember_all, seconds, since_2000
from model.nets.slots import Moment, RepeatState

State = dict[str, Tensor]
"""A user's state by tensor name, batch first; `Longwave.state_shapes` lists names, shapes and types."""


class Readout(NamedTuple):
    """What is known of n moments.

    Attributes:
        context: z (n, D); interests: (n, J, D + 2 W); repeat_interest: (n, D + 2 W), zeros without an own-repeat memory.
        popularity_weight: (n, P).
    """

    context: Tensor
    interests: Tensor
    repeat_interest: Tensor
    popularity_weight: Tensor


class Longwave(nn.Module):
    """The fusion model of the design: item fusion, event fusion, recurrence, ring, accumulators, own repeats, readout.

    Source of the formulas: docs/model.md.
    """

    type_weights: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.item = ItemFusion(
            config.items,
            config.width,
            config.text_width,
            config.feature_width,
            config.id_dropout,
            2 * config.transition,
            config.feature_scales,
        )
        self.item_dropout = Dropout(config.item_dropout)
        self.event = EventFusion(config)
        self.recurrence = Recurrence(config.layers, config.width, config.dropout)
        self.accumulators = Accumulators(
            config.width, config.accumulator_width, config.event_half_lives, config.time_half_lives_s
        )
        self.leaning = Leaning(config.width)
        self.readout = InterestReadout(config)
        self.repeats = RepeatScorer(config.repeat_half_lives_s, config.width, config.repeat_hidden) if config.repeats else None
        tables = [nn.Embedding(size + 1, config.layers * config.width) for size in config.attribute_sizes]
        for table in tables:
            nn.init.normal_(table.weight, std=0.05)
        self.attributes = nn.ModuleList(tables)
        self.register_buffer("type_weights", torch.tensor(config.type_weights), persistent=False)

    @property
    def device(self) -> torch.device:
        """Where it is, weights and all; what it is given must be there too."""
        return self.type_weights.device

    # The state.

    def state_shapes(self) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        """Name -> (shape of one user's tensor, type as stored), in the order of storage."""
        c = self.config
        shapes: dict[str, tuple[tuple[int, ...], torch.dtype]] = {
            "h": ((c.layers, c.width), torch.float32),
            "c": ((c.layers, c.width), torch.float32),
            "last": ((c.width,), torch.float32),
            "ring": ((c.ring, c.ring_width), torch.float32),
            "ring_time": ((c.ring,), torch.int32),
            "acc": ((c.accumulators, c.accumulator_width), torch.float32),
            "acc_weight": ((c.accumulators,), torch.float32),
            "leaning": ((len(HALF_LIVES), LABELS), torch.float32),
            "clock": ((1,), torch.int64),
            "count": ((1,), torch.int64),
        }
        if c.transition:
            shapes["recent"] = ((c.transition,), torch.float32)
        if c.kinship_decays:
            shapes["kin"] = ((len(c.kinship_decays) * c.width,), torch.float32)
        if self.repeats is not None:
            shapes |= {
                "repeat_key": ((c.repeats,), torch.int64),
                "repeat_count": ((c.repeats, c.repeat_channels), torch.float32),
                "repeat_time": ((c.repeats,), torch.int32),
                "repeat_seen": ((c.repeats,), torch.int32),
                "repeat_visit": ((c.repeats,), torch.int32),
                "visits": ((c.repeat_channels - 1,), torch.float32),
                "visit": ((1,), torch.int64),
            }
        return shapes

    def initial_state(self, attributes: Tensor) -> State:
        """The state before the first event: attributes (B, A) int64, 0 is missing -> zeros, but for h from the attributes."""
        users = attributes.shape[0]
        state = {name: attributes.new_zeros((users, *shape), dtype=dtype) for name, (shape, dtype) in self.state_shapes().items()}
        h = state["h"]
        for index, table in enumerate(self.attributes):
            h = h + table(attributes[:, index]).view_as(h)
        return state | {"h": h}

    # The fold.

    def step(self, event: EventBatch, state: State) -> State:
        """Advance each user's state by one event.

        Args:
            event: B events, one per user, every field (B, ...).
            state: from the previous step or `initial_state`; h and c are (B, L, D) float32.

        Returns:
            The state after the event, same shapes.
        """
        before = state["clock"]
        first = state["count"] == 0
        clock = maximum(before, event.time[:, None])  # a late event counts as now: the gap is clipped at zero
        elapsed = torch.where(first, 0, clock - before)
        x = self.event(event, torch.where(first, -1, elapsed))
        interest, h, c = self.recurrence(x[:, None], state["h"], state["c"])
        interest = interest[:, 0]
        acc, weight = self.accumulators.step(state["acc"], state["acc_weight"], interest, elapsed)
        count = state["count"] + 1
        now_s = seconds(clock)
        slot = self.readout.attention.write(interest)
        after = {
            "h": h,
            "c": c,
            "last": interest,
            "ring": torch.cat([state["ring"][:, 1:], slot[:, None]], 1),
            "ring_time": torch.cat([state["ring_time"][:, 1:], now_s.to(torch.int32)], 1),
            "acc": acc,
            "acc_weight": weight,
            "leaning": self.leaning.step(state["leaning"], event),
            "clock": clock,
            "count": count,
        }
        if self.readout.transition is not None:
            after["recent"] = self.readout.transition.step(state["recent"], event)
        if self.readout.kinship is not None:
            after["kin"] = self.readout.kinship.step(state["kin"], event)
        if self.repeats is not None:
            add = self.repeats.additions(self.type_weights)[event.event_type]
            new = first | (elapsed > 0)
            visit = state["visit"] + new.to(torch.int64)
            moment = Moment(now_s, count, visit)
            after |= _named(remember(_slots(state), event.item_key[:, None], add[:, None], moment, self.repeats.rates))
            after |= {"visits": self.repeats.faded(state["visits"], elapsed) + new, "visit": visit}
        return after

    def forward(
        self, events: EventBatch, valid: Tensor, state: State, positions: Tensor, as_of: Tensor, platform: Tensor
    ) -> tuple[Readout, State]:
        """Read out at several moments of a chunk of T events, and return the state after it; own repeats are left alone.

        Args:
            events: every field (B, T, ...). valid: (B, T) bool; padding stands at the end of a row.
            positions: (B, P) int64: the moment after so many events of the chunk, 0..T; -1 is padding.
            as_of, platform: (n) int64, when (unix ms) and where each of the n positions that are not padding is asked.

        Returns:
            Readout of the n moments in row order, and the state after the chunk, without the repeat tensors. A row with
            padding has run on over it: its state is of no use, its readouts are right.
        """
        # Not by _replace: the compiler of torch 2.11 loses its fields.
        events = EventBatch(self.item_dropout(events.item_vector), *events[1:])
        trace = self._trace(events, valid, state, None)
        lane, column = torch.nonzero(positions >= 0, as_tuple=True)
        moment = positions[lane, column]
        last = torch.cat([state["last"][:, None], trace.interest], 1)[lane, moment]
        clock = trace.clock[lane, moment][:, None]
        asked, gap_ms, now_s = self._asked(last, state["count"][lane] + moment[:, None], clock, as_of, platform)
        until = now_s * 1000 if self.config.query_time else now_s * 1000 - gap_ms
        empty = at_least(self.config.ring - state["count"][:, 0], 0)
        times = trace.ring_time.to(torch.int64) * 1000
        before = state["acc"], state["acc_weight"], trace.interest, trace.clock
        attention = self.readout.attention
        if positions.shape[1] > BLOCK:  # nearly every moment is asked about
            mixed = attention.along(asked, lane, moment, trace.ring, times, until[:, 0], empty)
            acc = self.accumulators.everywhere(*before)[lane, moment]
        else:
            slots = moment[:, None] + torch.arange(self.config.ring, device=moment.device)
            seen = lane[:, None], slots
            mixed, _ = attention(asked, trace.ring[seen], until - times[seen], slots >= empty[lane, None], gap_ms >= 0)
            acc = self.accumulators.at(*before, at_least(positions, 0))[0][lane, column]
        transition, recent = self.readout.transition, None
        if transition is not None:
            recent = transition.everywhere(state["recent"], events)[lane, moment]
        kinship, kin = self.readout.kinship, None
        if kinship is not None:
            kin = kinship.everywhere(state["kin"], events)[lane, moment]
        readout = Readout(*self.readout.known(asked, mixed, acc.flatten(1), recent, kin))
        return readout, self._after(trace, events, state)

    def encode(self, events: EventBatch, valid: Tensor, state: State) -> State:
        """Fold T events per user at once: the same state as T steps, own repeats included."""
        # Packing refuses empty rows; a row without events is folded over one padding event and then put back.
        trace = self._trace(events, valid, state, at_least(valid.to(torch.int64).sum(1), 1).cpu())
        after = self._after(trace, events, state)
        if self.repeats is not None:
            add = self.repeats.additions(self.type_weights)[events.event_type]
            key = torch.where(valid, events.item_key, torch.zeros_like(events.item_key))
            new = (trace.first | (trace.elapsed > 0)) & valid
            number = state["count"] + torch.arange(1, valid.shape[1] + 1, device=valid.device)
            visit = state["visit"] + torch.cumsum(new.to(torch.int64), 1)
            moment = Moment(seconds(trace.clock[:, 1:]), number, visit)
            after |= _named(remember_all(_slots(state), key, add, moment, self.repeats.rates))
            after |= {"visits": self._visits(trace, new, state), "visit": visit[:, -1:]}
        return after

    # The readout.

    def interest(self, state: State, as_of: Tensor, platform: Tensor) -> tuple[Readout, Tensor]:
        """Interests of B users at `as_of` (B) int64 ms on `platform` (B) int64, and their attention over the ring (B, K)."""
        count = state["count"]
        asked, gap_ms, now_s = self._asked(state["last"], count, state["clock"], as_of, platform)
        age_ms = (now_s - state["ring_time"].to(torch.int64)) * 1000  # that of empty slots says nothing
        if not self.config.query_time:
            age_ms = age_ms - gap_ms
        # Slots fill from the end: slot K - 1 is the newest.
        filled = torch.arange(self.config.ring, 0, -1, device=count.device) <= count
        mixed, attention = self.readout.attention(asked, state["ring"], age_ms, filled, count > 0)
        sums = state.get("recent"), state.get("kin")
        return Readout(*self.readout.known(asked, mixed, state["acc"].flatten(1), *sums)), attention

    def repeat_scores(self, state: State, context: Tensor, as_of: Tensor) -> Tensor:
        """Additive scores of the remembered items at `as_of`: (B, R); context is `Readout.context`."""
        if self.repeats is None:
            raise ValueError("this model has no own-repeat memory")
        clock = state["clock"]
        now = maximum(as_of[:, None], clock) if self.config.query_time else clock
        moment = Moment(since_2000(now), state["count"], state["visit"])
        # Before the first event the clock is 0 and there is nothing to fade.
        visits = self.repeats.faded(state["visits"], now - clock)
        scores: Tensor = self.repeats(_slots(state), visits, context, moment)
        return scores

    # Parts that both forms share.

    def _asked(
        self, last: Tensor, count: Tensor, clock: Tensor, as_of: Tensor, platform: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Of n moments: last (n, D), count and clock (n, 1), as_of and platform (n).

        Returns:
            asked (n, D), the gap (n, 1) ms since the last event, below 0 without one, and the moment, (n, 1) s since 2000.
        """
        now = maximum(as_of[:, None], clock)
        gap_ms = torch.where(count > 0, now - clock, -1)
        return self.readout.asked(last, now, gap_ms, platform), gap_ms, since_2000(now)

    def _visits(self, trace: _Trace, new: Tensor, state: State) -> Tensor:
        """The decayed number of visits after a chunk, (B, C - 1), as `step` counts them."""
        assert self.repeats is not None
        end = trace.clock[:, -1:]
        rates = self.repeats.rates[:-1]
        passed = ((end - trace.clock).to(torch.float32) / 1000.0)[..., None] * rates
        counted = torch.cat([state["visits"][:, None], new[..., None] * torch.ones_like(rates)], 1)
        return (counted * torch.exp(-passed)).sum(1)

    def _trace(self, events: EventBatch, valid: Tensor, state: State, lengths: Tensor | None) -> _Trace:
        start = state["clock"]
        clock = running_max(torch.cat([start, torch.where(valid, events.time, torch.zeros_like(events.time))], 1))
        first = (state["count"] + torch.arange(valid.shape[1], device=valid.device)) == 0
        elapsed = torch.where(first, 0, clock[:, 1:] - clock[:, :-1])
        x = self.event(events, torch.where(first, -1, elapsed)[..., None])
        interest, h, c = self.recurrence(x, state["h"], state["c"], lengths)
        events_in_row = valid.to(torch.int64).sum(1)
        some = (events_in_row > 0)[:, None, None]
        return _Trace(
            interest,
            torch.where(some, h, state["h"]),
            torch.where(some, c, state["c"]),
            clock,
            torch.cat([state["ring"], self.readout.attention.write(interest)], 1),
            torch.cat([state["ring_time"], seconds(clock[:, 1:]).to(torch.int32)], 1),
            events_in_row,
            first,
            elapsed,
        )

    def _after(self, trace: _Trace, events: EventBatch, state: State) -> State:
        end = trace.lengths[:, None]
        acc, weight = self.accumulators.at(state["acc"], state["acc_weight"], trace.interest, trace.clock, end)
        slots = end + torch.arange(self.config.ring, device=end.device)
        last = torch.cat([state["last"][:, None], trace.interest], 1)
        after = {
            "h": trace.h,
            "c": trace.c,
            "last": _rows(last, end)[:, 0],
            "ring": _rows(trace.ring, slots),
            "ring_time": torch.gather(trace.ring_time, 1, slots),
            "acc": acc[:, 0],
            "acc_weight": weight[:, 0],
            "leaning": self.leaning.after(state["leaning"], events, end),
            "clock": torch.gather(trace.clock, 1, end),
            "count": state["count"] + end,
        }
        if self.readout.transition is not None:
            after["recent"] = self.readout.transition.after(state["recent"], events, end)
        if self.readout.kinship is not None:
            after["kin"] = self.readout.kinship.after(state["kin"], events, end)
        return after


class _Trace(NamedTuple):
    """A chunk as folded: interest (B, T, D), h and c after it, clock (B, T + 1), ring (B, K + T, Dr) and its times.

    lengths: (B) valid events. first, elapsed: (B, T) whether an event is its user's first, and ms since the one before.
    """

    interest: Tensor
    h: Tensor
    c: Tensor
    clock: Tensor
    ring: Tensor
    ring_time: Tensor
    lengths: Tensor
    first: Tensor
    elapsed: Tensor


def _rows(x: Tensor, place: Tensor) -> Tensor:
    """Rows of each user: x (B, S, W), place (B, P) int64 -> (B, P, W), copied row by row; gather() would go number by number."""
    start = torch.arange(x.shape[0], device=x.device)[:, None] * x.shape[1]
    return x.flatten(0, 1)[place + start]


def _slots(state: State) -> RepeatState:
    return RepeatState(*(state[f"repeat_{name}"] for name in RepeatState._fields))


def _named(slots: RepeatState) -> State:
    return {f"repeat_{name}": tensor for name, tensor in slots._asdict().items()}
