"""Own repeats: a bounded memory of what this user had, how often and when, and what that says about having it again."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from model.nets.block import BLOCK, remember_block
from model.nets.config import DAY, LN_2
from model.nets.integers import at_least, at_most
from model.nets.slots import Moment, RepeatState

YEAR_S = 365.2425 * 86_400
EPOCH_S = 946_684_800  # 2000-01-01: int32 seconds from here reach from 1932 to 2068


def seconds(time_ms: Tensor) -> Tensor:
    """Unix milliseconds (int64) -> int64 seconds since 2000, within int32."""
    return at_most(at_least(torch.div(time_ms, 1000, rounding_mode="trunc") - EPOCH_S, -(2**31) + 1), 2**31 - 1)


def since_2000(now_ms: Tensor) -> Tensor:
    """The same of a moment of asking, which is none before 1970 and is not stored: a graph has four operators less for it."""
    return torch.div(now_ms, 1000, rounding_mode="trunc") - EPOCH_S


def touch(
    state: RepeatState, key: Tensor, add: Tensor, moment: Moment, rates: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Which slot one event per user touches, and what stands there afterwards.

    Args:
        key: (B, 1) int64, 0 leaves the memory as it is. add: (B, 1, C) float32. moment: (B, 1) each. rates: (C) per second.

    Returns:
        slot (B, 1) int64 and its new key (B, 1), count (B, 1, C), time, seen and visit (B, 1).

    Which slot is given up is decided by integers alone (least recently used), so that float noise can never decide it.
    """
    # The slot of the item, if it has one, comes before all others; empty slots (seen 0) come next.
    slot = torch.where(state.key == key, -1, state.seen).argmin(1, keepdim=True)
    old_key = torch.gather(state.key, 1, slot)
    old_time = torch.gather(state.time, 1, slot)
    old_seen = torch.gather(state.seen, 1, slot)
    old_visit = torch.gather(state.visit, 1, slot)
    before = torch.gather(state.count, 1, _of_channels(slot, rates))
    found, none = old_key == key, key == 0
    elapsed = torch.relu((moment.now_s - old_time.to(torch.int64)).to(torch.float32))
    left = before * torch.exp(elapsed[..., None] * -rates)
    count = torch.where(found[..., None], left, 0.0) + add
    return (
        slot,
        torch.where(none, old_key, key),
        torch.where(none[..., None], before, count),
        torch.where(none, old_time, moment.now_s.to(torch.int32)),
        torch.where(none, old_seen, moment.event.to(torch.int32)),
        torch.where(none, old_visit, moment.visit.to(torch.int32)),
    )


def _of_channels(slot: Tensor, rates: Tensor) -> Tensor:
    """Slots (B, T) as indices of their counts (B, T, C); an addition is one operator in a graph, and expand() many."""
    return slot[..., None] + torch.zeros_like(rates, dtype=torch.int64)


def remember(state: RepeatState, key: Tensor, add: Tensor, moment: Moment, rates: Tensor) -> RepeatState:
    """Fold one event per user into the memory; arguments as in `touch`.

    No parameters: what is remembered never depends on the model's weights.
    """
    slot, slot_key, count, time, seen, visit = touch(state, key, add, moment, rates)
    return RepeatState(
        state.key.scatter(1, slot, slot_key),
        state.count.scatter(1, _of_channels(slot, rates), count),
        state.time.scatter(1, slot, time),
        state.seen.scatter(1, slot, seen),
        state.visit.scatter(1, slot, visit),
    )


def remember_all(state: RepeatState, key: Tensor, add: Tensor, moment: Moment, rates: Tensor) -> RepeatState:
    """`remember` for T events per user at once: key (B, T), add (B, T, C), moment (B, T) each; the clock never falls.

    The same integers as one event after another, and the same counts but for the order of their sums.
    """
    return RepeatState(*_remember_blocks(*state, key, add, *moment, rates, BLOCK))


# Scripted, so that the exporter keeps the loop, whose length is not known when exporting; it takes no tuples.
@torch.jit.script
def _remember_blocks(
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
    block: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    for start in range(0, key.shape[1], block):
        end = start + block
        slots = RepeatState(slot_key, slot_count, slot_time, slot_seen, slot_visit)
        moment = Moment(now_s[:, start:end], event[:, start:end], visit[:, start:end])
        slot_key, slot_count, slot_time, slot_seen, slot_visit = remember_block(
            slots, key[:, start:end], add[:, start:end], moment, rates
        )
    return slot_key, slot_count, slot_time, slot_seen, slot_visit


class RepeatScorer(nn.Module):
    """How likely each remembered item comes again: a small network on how often, how lately and who.

    An additive score per slot; empty slots give 0.
    """

    rates: Tensor
    fading: Tensor
    channel: Tensor
    offset: Tensor
    scale: Tensor
    shift: Tensor
    radians: Tensor
    ahead: Tensor
    constant: Tensor

    def __init__(self, half_lives_s: Sequence[float], width: int, hidden: int) -> None:
        super().__init__()
        rates = [LN_2 / h for h in (*half_lives_s, max(half_lives_s))]
        self.register_buffer("rates", torch.tensor(rates, dtype=torch.float32), persistent=False)
        # For each half-life the share and the rate, then in this order: cancelled, lately, age, events and visits since, and the
        # sine and cosine of the age.
        self.features = nn.Linear(2 * len(half_lives_s) + 7, hidden)
        self.context = nn.Linear(width, hidden)
        self.out = nn.Linear(hidden, 1)
        # All features of a slot but its sine and cosine are logarithms, log(x + offset), of: the counts, lately, age, and events
        # and visits since. `scale` is what the features' weights are multiplied with, `shift` what is added to the logarithm:
        # log(1 + 4 x) = log(x + 1/4) + log 4.
        offset = [1e-3] * len(half_lives_s) + [0.25, 1.0, DAY, 1.0, 1.0]
        self.register_buffer("fading", torch.tensor([*(-rate for rate in rates), 0.0])[:, None], persistent=False)
        self.register_buffer("channel", torch.tensor([*range(len(rates)), len(rates) - 2]), persistent=False)
        self.register_buffer("offset", torch.tensor(offset)[:, None], persistent=False)
        self.register_buffer("scale", torch.tensor([1.0, 1.0, 0.5, 0.25, 0.5, 1.0, 1.0]), persistent=False)
        self.register_buffer("shift", torch.tensor([math.log(4), 0, -math.log(DAY), 0, 0, 0, 0]), persistent=False)
        # Phases of the age in a year: sine, cosine, and a sine that is always 1.
        self.register_buffer("radians", torch.tensor([1.0, 1.0, 0.0])[:, None] * (2 * math.pi / YEAR_S), persistent=False)
        self.register_buffer("ahead", torch.tensor([0.0, 0.5, 0.5])[:, None] * math.pi, persistent=False)
        constant = torch.zeros(len(half_lives_s) + 9, 1)
        constant[-2] = 1.0
        self.register_buffer("constant", constant, persistent=False)

    def additions(self, weight: Tensor) -> Tensor:
        """Signed event weights (...) -> what they add to each channel (..., C)."""
        positive = weight.clamp(min=0)[..., None].expand(*weight.shape, len(self.rates) - 1)
        return torch.cat([positive, (-weight).clamp(min=0)[..., None]], -1)

    def faded(self, visits: Tensor, elapsed_ms: Tensor) -> Tensor:
        """Decayed numbers of visits (n, C - 1) after so many more milliseconds (n, 1) int64."""
        return visits * torch.exp(elapsed_ms.to(torch.float32) * (self.rates[:-1] * -1e-3))

    def forward(self, slots: RepeatState, visits: Tensor, context: Tensor, moment: Moment) -> Tensor:
        """Scores (n, R) of slots (n, R, ...), visits (n, C - 1) faded to the moment, context (n, D), moment (n, 1).

        What a plain counter would know are two probabilities: the item's share of all that the user had, count / total, and the
        share of the user's visits that had it, count / visits. Their logarithms are differences of logarithms, of which the
        second belongs to the user: so it goes into the hidden layer's bias, and a slot needs the logarithm of its counts once.

        Everything lies feature by feature, (n, F, R), so that each operation runs along the slots.
        """
        now = torch.cat(moment, 1)[:, :, None]  # (n, 3, 1)
        then = torch.stack([slots.time, slots.seen, slots.visit], 1).to(torch.int64)  # (n, 3, R)
        since = torch.relu((now - then).to(torch.float32))
        age = since[:, :1]
        # The counts of every channel, and once more that of the longest half-life as it was at the last event.
        counts = slots.count.transpose(1, 2).index_select(1, self.channel) * torch.exp(age * self.fading)  # (n, C + 1, R)
        logs = torch.log(torch.cat([counts, since], 1) + self.offset)
        features = torch.cat([logs, torch.sin(age * self.radians + self.ahead)], 1)  # (n, F, R), the last 1
        to_hidden, bias, user = self._folded()
        totals = torch.log(torch.cat([counts.sum(2), visits], 1) + 0.1)
        about_user = nn.functional.linear(torch.cat([context, totals], 1), user, bias)
        # A user's own matrices: the shared weights, and the bias as the weight of the constant feature. (The output's weights go
        # along, since a matrix of its own for each user is what torch multiplies fastest, above all backwards.)
        weights = to_hidden + about_user[:, None] * self.constant  # (n, F + 1, H)
        weight, out = torch.split(weights, [len(self.constant) - 1, 1], 1)
        hidden = nn.functional.gelu(torch.matmul(weight.transpose(1, 2), features))  # (n, H, R)
        scores = torch.matmul(out, hidden).flatten(1) + self.out.bias
        return torch.where(slots.key == 0, 0.0, scores)

    def _folded(self) -> tuple[Tensor, Tensor, Tensor]:
        """The weights of `features` as the form above wants them; a graph holds them as constants.

        Returns:
            of the slot's features, the constant's 0, and the output's, (F + 1, H); the bias (H); of context, totals and visits,
            (H, D + C + 1 + C - 1).
        """
        halves = len(self.rates) - 1
        share, rate, rest = torch.split(self.features.weight, [halves, halves, len(self.scale)], 1)
        share, rate, rest = share * 0.5, rate * 0.5, rest * self.scale
        zero = torch.zeros_like(self.out.weight.t())  # (H, 1)
        # In the order of the counts: the totals of the last two play no part.
        user = torch.cat([self.context.weight, -share, zero, zero, -rate], 1)
        bias = self.features.bias + self.context.bias + torch.mv(rest, self.shift)
        return torch.cat([share + rate, rest, zero, self.out.weight.t()], 1).t(), bias, user
