"""Own repeats: a bounded memory of what this user had, how often and when, and what that says about having it again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from model.nets.config import LN_2

EPOCH_S = 946_684_800  # 2000-01-01: int32 seconds from here reach from 1932 to 2068


class RepeatState(NamedTuple):
    """R slots per user.

    Attributes:
        key: (B, R) int64, 0 is empty.
        count: (B, R, C) float32 decayed weights at `time`.
        time: (B, R) int32 seconds since 2000 of the last event of the item, by the user's clock.
        seen: (B, R) int32 number of that event; the slot with the lowest is given up first.
    """

    key: Tensor
    count: Tensor
    time: Tensor
    seen: Tensor


def seconds(time_ms: Tensor) -> Tensor:
    """Unix milliseconds (int64) -> int64 seconds since 2000, within int32."""
    return (torch.div(time_ms, 1000, rounding_mode="trunc") - EPOCH_S).clamp(-(2**31) + 1, 2**31 - 1)


def visit(
    state: RepeatState, key: Tensor, add: Tensor, now_s: Tensor, number: Tensor, rates: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Which slot one event per user touches, and what stands there afterwards.

    Args:
        key: (B) int64, 0 leaves the memory as it is. add: (B, C) float32. now_s: (B) int64 seconds since 2000.
        number: (B) int64, the number of this event within the user, from 1. rates: (C) decay rates per second.

    Returns:
        slot (B, 1) int64 and its new key (B, 1), count (B, 1, C), time (B, 1), seen (B, 1).

    Which slot is given up is decided by integers alone (least recently used), so that float noise can never decide it.
    """
    same = state.key == key[:, None]
    found = same.any(1)
    slot = torch.where(found, same.to(torch.int64).argmax(1), state.seen.argmin(1))[:, None]
    write = key != 0
    old_time = torch.gather(state.time, 1, slot)[:, 0]
    old_seen = torch.gather(state.seen, 1, slot)[:, 0]
    old_key = torch.gather(state.key, 1, slot)[:, 0]
    before = torch.gather(state.count, 1, slot[:, :, None].expand(-1, -1, add.shape[1]))[:, 0]
    elapsed = (now_s - old_time.to(torch.int64)).clamp(min=0)
    left = before * torch.exp(-elapsed.to(torch.float32)[:, None] * rates)
    count = torch.where(found[:, None], left, torch.zeros_like(left)) + add
    return (
        slot,
        torch.where(write, key, old_key)[:, None],
        torch.where(write[:, None], count, before)[:, None],
        torch.where(write, now_s.to(torch.int32), old_time)[:, None],
        torch.where(write, number.to(torch.int32), old_seen)[:, None],
    )


def remember(state: RepeatState, key: Tensor, add: Tensor, now_s: Tensor, number: Tensor, rates: Tensor) -> RepeatState:
    """Fold one event per user into the memory; arguments as in `visit`.

    No parameters: what is remembered never depends on the model's weights.
    """
    slot, slot_key, count, time, seen = visit(state, key, add, now_s, number, rates)
    return RepeatState(
        state.key.scatter(1, slot, slot_key),
        state.count.scatter(1, slot[:, :, None].expand(-1, -1, add.shape[1]), count),
        state.time.scatter(1, slot, time),
        state.seen.scatter(1, slot, seen),
    )


def remember_all(state: RepeatState, key: Tensor, add: Tensor, now_s: Tensor, number: Tensor, rates: Tensor) -> RepeatState:
    """`remember` for T events per user, one after another: key (B, T), add (B, T, C), now_s (B, T), number (B, T)."""
    return RepeatState(*_remember_loop(*state, key, add, now_s, number, rates))


# Scripted, so that the exporter keeps the loop, whose length is not known when exporting; it takes no tuples.
@torch.jit.script
def _remember_loop(
    slot_key: Tensor,
    slot_count: Tensor,
    slot_time: Tensor,
    slot_seen: Tensor,
    key: Tensor,
    add: Tensor,
    now_s: Tensor,
    number: Tensor,
    rates: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    for t in range(key.shape[1]):
        slots = RepeatState(slot_key, slot_count, slot_time, slot_seen)
        slot_key, slot_count, slot_time, slot_seen = remember(slots, key[:, t], add[:, t], now_s[:, t], number[:, t], rates)
    return slot_key, slot_count, slot_time, slot_seen


class RepeatScorer(nn.Module):
    """How likely each remembered item comes again: a small network on how often, how lately and who.

    An additive score per slot; empty slots give 0.
    """

    def __init__(self, half_lives_s: Sequence[float], width: int, hidden: int) -> None:
        super().__init__()
        channels = len(half_lives_s) + 1
        rates = [LN_2 / h for h in (*half_lives_s, max(half_lives_s))]
        self.register_buffer("rates", torch.tensor(rates, dtype=torch.float32), persistent=False)
        self.features = nn.Linear(2 * channels + 2, hidden)
        self.context = nn.Linear(width, hidden)
        self.out = nn.Linear(hidden, 1)

    def additions(self, weight: Tensor) -> Tensor:
        """Signed event weights (...) -> what they add to each channel (..., C)."""
        positive = weight.clamp(min=0)[..., None].expand(*weight.shape, len(self.rates) - 1)
        return torch.cat([positive, (-weight).clamp(min=0)[..., None]], -1)

    def forward(self, slots: RepeatState, context: Tensor, now_s: Tensor, number: Tensor) -> Tensor:
        """slots (n, R, ...), context (n, D), now_s (n) int64, number (n) int64 events so far -> scores (n, R)."""
        age = (now_s[:, None] - slots.time.to(torch.int64)).clamp(min=0).to(torch.float32)
        since = (number[:, None] - slots.seen.to(torch.int64)).clamp(min=0).to(torch.float32)
        counts = slots.count * torch.exp(-age[..., None] * self.rates)
        positive = counts[..., :-1]
        # Logarithm of the item's share of all that the user had: a probability of its own, as the plain counter would give.
        share = torch.log((positive + 1e-3) / (positive.sum(1, keepdim=True) + 1e-1))
        features = torch.cat(
            [
                share * 0.5,
                torch.log1p(counts * 4.0),
                torch.log1p(slots.count[..., -2:-1]),
                torch.log1p(age / 86_400.0)[..., None] * 0.5,
                torch.log1p(since)[..., None] * 0.25,
            ],
            -1,
        )
        hidden = nn.functional.gelu(self.features(features) + self.context(context)[:, None])
        return torch.where(slots.key != 0, self.out(hidden)[..., 0], torch.zeros_like(age))
