"""Attention over the last K events: exact and query-dependent, V = sum_t a_t i_t."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from model.nets.buckets import GapEmbedding


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
