"""Own repeats: a bounded memory of what this user had, how often and when, and what that says about having it again."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from model.nets.config import LN_2
from model.nets.integers import at_least, at_most

YEAR_S = 365.2425 * 86_400
EPOCH_S = 946_684_800  # 2000-01-01: int32 seconds from here reach from 1932 to 2068


class RepeatState(NamedTuple):
    """R slots per user.

    Attributes:
        key: (B, R) int64, 0 is empty.
        count: (B, R, C) float32 decayed weights at `time`.
        time: (B, R) int32 seconds since 2000 of the last event of the item, by the user's clock.
        seen: (B, R) int32 number of that event; the slot with the lowest is given up first.
        visit: (B, R) int32 number of the visit (events of one moment) that it was part of.
    """

    key: Tensor
    count: Tensor  # type: ignore[assignment]  # hides tuple.count, which nobody counts with
    time: Tensor
    seen: Tensor
    visit: Tensor


class Moment(NamedTuple):
    """When something happens to B users: the clock in seconds since 2000, the number of the event and of the visit, from 1."""

    now_s: Tensor
    event: Tensor
    visit: Tensor


def seconds(time_ms: Tensor) -> Tensor:
    """Unix milliseconds (int64) -> int64 seconds since 2000, within int32."""
    return at_most(at_least(torch.div(time_ms, 1000, rounding_mode="trunc") - EPOCH_S, -(2**31) + 1), 2**31 - 1)


def touch(
    state: RepeatState, key: Tensor, add: Tensor, moment: Moment, rates: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Which slot one event per user touches, and what stands there afterwards.

    Args:
        key: (B) int64, 0 leaves the memory as it is. add: (B, C) float32. moment: (B) int64 each. rates: (C) per second.

    Returns:
        slot (B, 1) int64 and its new key (B, 1), count (B, 1, C), time, seen and visit (B, 1).

    Which slot is given up is decided by integers alone (least recently used), so that float noise can never decide it.
    """
    same = state.key == key[:, None]
    found = same.any(1)
    slot = torch.where(found, same.to(torch.int64).argmax(1), state.seen.argmin(1))[:, None]
    write = key != 0
    old_time = torch.gather(state.time, 1, slot)[:, 0]
    old_seen = torch.gather(state.seen, 1, slot)[:, 0]
    old_visit = torch.gather(state.visit, 1, slot)[:, 0]
    old_key = torch.gather(state.key, 1, slot)[:, 0]
    before = torch.gather(state.count, 1, slot[:, :, None].expand(-1, -1, add.shape[1]))[:, 0]
    elapsed = at_least(moment.now_s - old_time.to(torch.int64), 0)
    left = before * torch.exp(-elapsed.to(torch.float32)[:, None] * rates)
    count = torch.where(found[:, None], left, torch.zeros_like(left)) + add
    return (
        slot,
        torch.where(write, key, old_key)[:, None],
        torch.where(write[:, None], count, before)[:, None],
        torch.where(write, moment.now_s.to(torch.int32), old_time)[:, None],
        torch.where(write, moment.event.to(torch.int32), old_seen)[:, None],
        torch.where(write, moment.visit.to(torch.int32), old_visit)[:, None],
    )


def remember(state: RepeatState, key: Tensor, add: Tensor, moment: Moment, rates: Tensor) -> RepeatState:
    """Fold one event per user into the memory; arguments as in `touch`.

    No parameters: what is remembered never depends on the model's weights.
    """
    slot, slot_key, count, time, seen, visit = touch(state, key, add, moment, rates)
    return RepeatState(
        state.key.scatter(1, slot, slot_key),
        state.count.scatter(1, slot[:, :, None].expand(-1, -1, add.shape[1]), count),
        state.time.scatter(1, slot, time),
        state.seen.scatter(1, slot, seen),
        state.visit.scatter(1, slot, visit),
    )


def remember_all(state: RepeatState, key: Tensor, add: Tensor, moment: Moment, rates: Tensor) -> RepeatState:
    """`remember` for T events per user, one after another: key (B, T), add (B, T, C), moment (B, T) each."""
    return RepeatState(*_remember_loop(*state, key, add, *moment, rates))


# Scripted, so that the exporter keeps the loop, whose length is not known when exporting; it takes no tuples.
@torch.jit.script
def _remember_loop(
    slot_key: Tensor,
    slot_count: Tensor,
    slot_time: Tensor,
    slot_seen: Tensor,
    slot_visit: Tensor,
    key: Tensor,
    add: Tensor,
    now_s: Tensor,
    event: Tensor,
    visit: Tensor,
    rates: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    for t in range(key.shape[1]):
        slots = RepeatState(slot_key, slot_count, slot_time, slot_seen, slot_visit)
        moment = Moment(now_s[:, t], event[:, t], visit[:, t])
        slot_key, slot_count, slot_time, slot_seen, slot_visit = remember(slots, key[:, t], add[:, t], moment, rates)
    return slot_key, slot_count, slot_time, slot_seen, slot_visit


class RepeatScorer(nn.Module):
    """How likely each remembered item comes again: a small network on how often, how lately and who.

    An additive score per slot; empty slots give 0.
    """

    rates: Tensor

    def __init__(self, half_lives_s: Sequence[float], width: int, hidden: int) -> None:
        super().__init__()
        channels = len(half_lives_s) + 1
        rates = [LN_2 / h for h in (*half_lives_s, max(half_lives_s))]
        self.register_buffer("rates", torch.tensor(rates, dtype=torch.float32), persistent=False)
        self.features = nn.Linear(2 * (channels - 1) + 7, hidden)
        self.context = nn.Linear(width, hidden)
        self.out = nn.Linear(hidden, 1)

    def additions(self, weight: Tensor) -> Tensor:
        """Signed event weights (...) -> what they add to each channel (..., C)."""
        positive = weight.clamp(min=0)[..., None].expand(*weight.shape, len(self.rates) - 1)
        return torch.cat([positive, (-weight).clamp(min=0)[..., None]], -1)

    def faded(self, visits: Tensor, elapsed_ms: Tensor) -> Tensor:
        """Decayed numbers of visits (n, C - 1) after so many more milliseconds (n) int64."""
        return visits * torch.exp(-(elapsed_ms.to(torch.float32) / 1000.0)[:, None] * self.rates[:-1])

    def forward(self, slots: RepeatState, visits: Tensor, context: Tensor, moment: Moment) -> Tensor:
        """Scores (n, R) of slots (n, R, ...), visits (n, C - 1) faded to the moment, context (n, D), moment (n)."""
        age = at_least(moment.now_s[:, None] - slots.time.to(torch.int64), 0).to(torch.float32)
        since = at_least(moment.event[:, None] - slots.seen.to(torch.int64), 0).to(torch.float32)
        visits_since = at_least(moment.visit[:, None] - slots.visit.to(torch.int64), 0).to(torch.float32)
        counts = slots.count * torch.exp(-age[..., None] * self.rates)
        positive = counts[..., :-1]
        years = age[..., None] * (2 * math.pi / YEAR_S)
        # Logarithms of two probabilities that a plain counter would give: the item's share of all that the user had, and the
        # share of the user's visits that had it.
        share = torch.log((positive + 1e-3) / (positive.sum(1, keepdim=True) + 1e-1))
        rate = torch.log((positive + 1e-3) / (visits[:, None] + 1e-1))
        features = torch.cat(
            [
                share * 0.5,
                rate * 0.5,
                torch.log1p(counts[..., -1:] * 4.0),
                torch.log1p(slots.count[..., -2:-1]),
                torch.log1p(age / 86_400.0)[..., None] * 0.5,
                torch.log1p(since)[..., None] * 0.25,
                torch.log1p(visits_since)[..., None] * 0.5,
                torch.sin(years),
                torch.cos(years),
            ],
            -1,
        )
        hidden = nn.functional.gelu(self.features(features) + self.context(context)[:, None])
        return torch.where(slots.key != 0, self.out(hidden)[..., 0], torch.zeros_like(age))
