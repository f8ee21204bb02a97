"""Attention over the last K events: exact and query-dependent, V = sum_t a_t i_t."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from model.nets.buckets import GapEmbedding

STRIDE = 32
"""Moments of a chunk that `along` asks together: their slots overlap."""


class RingAttention(nn.Module):
    """Multi-head attention of one query over K slots; a slot's age biases its weight by position and by time.

    Slots hold a float32 projection of width Dr of the interest at that event. Newest slot last; empty slots have time 0.
    """

    def __init__(self, width: int, slots: int, slot_width: int, heads: int, age_edges_s: Sequence[float]) -> None:
        super().__init__()
        self.heads = heads
        self.slot_width = slot_width
        self.write = nn.Linear(width, slot_width)
        self.query = nn.Linear(width, slot_width)
        self.key = nn.Linear(slot_width, slot_width)
        self.value = nn.Linear(slot_width, width)
        self.out = nn.Linear(width, width)
        self.position = nn.Parameter(torch.zeros(heads, slots))
        self.age = GapEmbedding(age_edges_s, heads)
        nn.init.zeros_(self.age.table.weight)

    def forward(self, query: Tensor, ring: Tensor, age_ms: Tensor, filled: Tensor, some: Tensor) -> tuple[Tensor, Tensor]:
        """query (n, D), ring (n, K, Dr), age_ms (n, K) int64, filled (n, K) bool -> V (n, D) and weights (n, K).

        some: (n, 1) bool, whether any slot is filled.

        Keys and values are linear in the slots, so their weights are multiplied into those of the query and of the output,
        once, and no slot is ever projected. (A graph holds the products as constants.)
        """
        ask, ask_bias = self._ask()
        asked = nn.functional.linear(query, ask, ask_bias).view(-1, self.heads, self.slot_width)
        logits = torch.matmul(asked, ring.transpose(1, 2)) + self.age.added_across(self.position, age_ms)
        # A large finite number, not -inf: a user without events attends to nothing, evenly, and gets zeros, never NaN.
        taken = filled[:, None]
        weights = torch.where(taken, torch.softmax(torch.where(taken, logits, -1e9), -1), 0.0)
        mix, value_bias = self._mix()
        seen = torch.matmul(weights, ring).view(-1, self.heads * self.slot_width)
        # The weights add up to 1, and so one bias of the values comes through, but for a user without events.
        bias = torch.where(some, value_bias + self.out.bias, self.out.bias)
        return torch.addmm(bias, seen, mix), weights.mean(1)

    def along(
        self, query: Tensor, lane: Tensor, moment: Tensor, ring: Tensor, time_ms: Tensor, until_ms: Tensor, empty: Tensor
    ) -> Tensor:
        """V (n, D) as of `forward` at n moments of a chunk of T events, no two of them the same; for training.

        Args:
            query: (n, D) of `moment` (n) in 0..T of `lane` (n); the slots of moment m are m..m + K - 1.
            ring: (B, K + T, Dr). time_ms: (B, K + T) and until_ms: (n), a slot's age is until - time.
            empty: (B) slots at the beginning that hold nothing.

        `STRIDE` moments are matched with the stretch of slots that any of them sees: matrices of a size that a processor is
        fast with, where `forward` would gather K slots for each moment.
        """
        users, (heads, slots) = len(ring), self.position.shape
        blocks = -(-(ring.shape[1] - slots + 1) // STRIDE)
        cell = lane * (blocks * STRIDE) + moment
        span = STRIDE + slots - 1
        missing = blocks * STRIDE + slots - 1 - ring.shape[1]

        def by_head(x: Tensor) -> Tensor:
            """(B, K + T, W) -> the stretches of every head, (H, B, blocks, W / H, span)."""
            stretches = nn.functional.pad(x, (0, 0, 0, missing)).unfold(1, span, STRIDE)
            return stretches.view(users, blocks, heads, -1, span).permute(2, 0, 1, 3, 4)

        per_head = self.slot_width // heads
        asked = self.query(query) * per_head**-0.5
        asked = asked.new_zeros(users * blocks * STRIDE, self.slot_width).index_copy(0, cell, asked)
        asked = asked.view(users, blocks, STRIDE, heads, per_head).permute(3, 0, 1, 2, 4)
        logits = torch.matmul(asked, by_head(nn.functional.linear(ring, self.key.weight)))  # (H, B, blocks, STRIDE, span)

        index = torch.arange(span, device=ring.device) - torch.arange(STRIDE, device=ring.device)[:, None]
        near = self.position[:, index.clamp(0, slots - 1)]
        logits += torch.where((index >= 0) & (index < slots), near, -1e9)[:, None, None]
        until = until_ms.new_zeros(users * blocks * STRIDE).index_copy(0, cell, until_ms).view(users, blocks, STRIDE, 1)
        then = nn.functional.pad(time_ms, (0, missing)).unfold(1, span, STRIDE)[:, :, None]
        logits += self.age.across(until - then)
        nothing = torch.arange(blocks * STRIDE + slots - 1, device=ring.device) < empty[:, None]
        logits += torch.where(nothing, -1e9, 0.0).unfold(1, span, STRIDE)[:, :, None]

        values = by_head(nn.functional.linear(ring, self.value.weight)).transpose(-1, -2)
        seen = torch.matmul(torch.softmax(logits, -1), values).permute(1, 2, 3, 0, 4).flatten(3).flatten(0, 2)
        some = (slots + moment > empty[lane])[:, None]
        mixed: Tensor = self.out(torch.where(some, seen[cell] + self.value.bias, 0.0))
        return mixed

    def _ask(self) -> tuple[Tensor, Tensor]:
        """Query and key in one: (H * Dr, D) and (H * Dr). The key's bias is the same for all slots, and softmax drops it."""
        per_head = self.slot_width // self.heads
        key = self.key.weight.view(self.heads, per_head, self.slot_width).transpose(1, 2) * per_head**-0.5  # (H, Dr, Dr / H)
        weight = torch.matmul(key, self.query.weight.view(self.heads, per_head, -1))
        bias = torch.matmul(key, self.query.bias.view(self.heads, per_head, 1))
        return weight.flatten(0, 1), bias.flatten()

    def _mix(self) -> tuple[Tensor, Tensor]:
        """Value and output in one: (H * Dr, D), and what the value's bias comes to, (D)."""
        width = self.out.in_features
        value = self.value.weight.view(self.heads, width // self.heads, self.slot_width).transpose(1, 2)  # (H, Dr, D / H)
        out = self.out.weight.t().reshape(self.heads, width // self.heads, width)
        return torch.matmul(value, out).flatten(0, 1), torch.matmul(self.out.weight, self.value.bias)
