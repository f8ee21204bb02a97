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
        self.write = nn.Linear(width, slot_width)
        self.query = nn.Linear(width, slot_width)
        self.key = nn.Linear(slot_width, slot_width)
        self.value = nn.Linear(slot_width, width)
        self.out = nn.Linear(width, width)
        self.position = nn.Parameter(torch.zeros(heads, slots))
        self.age = GapEmbedding(age_edges_s, heads)
        nn.init.zeros_(self.age.table.weight)

    def forward(self, query: Tensor, ring: Tensor, age_ms: Tensor, filled: Tensor) -> tuple[Tensor, Tensor]:
        """query (n, D), ring (n, K, Dr), age_ms (n, K) int64, filled (n, K) bool -> V (n, D) and weights (n, K)."""
        n, slots, slot_width = ring.shape
        per_head = slot_width // self.heads
        q = self.query(query).view(n, self.heads, 1, per_head)
        k = self.key(ring).view(n, slots, self.heads, per_head).permute(0, 2, 3, 1)
        v = self.value(ring).view(n, slots, self.heads, self.out.in_features // self.heads).transpose(1, 2)
        logits = torch.matmul(q, k)[:, :, 0] * per_head**-0.5 + self.position
        logits = logits + self.age(age_ms, torch.zeros_like(filled)).transpose(1, 2)
        # A large finite number, not -inf: a user without events attends to nothing, evenly, and gets zeros, never NaN.
        logits = torch.where(filled[:, None], logits, torch.full_like(logits, -1e9))
        weights = torch.softmax(logits, -1) * filled[:, None]
        mixed = torch.matmul(weights[:, :, None], v).view(n, self.out.in_features)
        return self.out(mixed), weights.mean(1)
