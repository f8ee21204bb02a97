"""Event fusion: what was done to which item, how much of it, where, and how long after the last event."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from model.nets.buckets import GapEmbedding, NumberEmbedding
from model.nets.config import ModelConfig
from model.nets.dropout import Dropout


class EventBatch(NamedTuple):
    """B users' events: one each, (B, ...), for a step, or T in arrival order, (B, T, ...), for a sequence.

    Attributes:
        item_vector: (..., D + 2 W) float32, zeros where the item is absent or unknown.
        item_known: (...) bool.
        item_key: (...) int64, 64-bit key of the item id; 0 where the event has no item.
        event_type, platform: (...) int64.
        numbers: (..., 3) float32: value, quantity, price; NaN is missing.
        time: (...) int64 unix milliseconds, as they came: late events included.
        text: (..., W) float32 embedding of the event's own text, zeros without one; None for a model without text.
    """

    item_vector: Tensor
    item_known: Tensor
    item_key: Tensor
    event_type: Tensor
    platform: Tensor
    numbers: Tensor
    time: Tensor
    text: Tensor | None = None

    def along(self, place: int | slice) -> EventBatch:
        """Of a sequence (B, T, ...): one event of each user (B, ...), or a stretch of them (B, t, ...)."""
        return EventBatch(
            self.item_vector[:, place],
            self.item_known[:, place],
            self.item_key[:, place],
            self.event_type[:, place],
            self.platform[:, place],
            self.numbers[:, place],
            self.time[:, place],
            None if self.text is None else self.text[:, place],
        )


class EventFusion(nn.Module):
    """x = M LayerNorm(W_item v + type + platform + numbers + gap + W_text q); every missing part has its own vector."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width = self.width = config.width
        self.item = nn.Linear(width, width, bias=False)
        self.without_item = nn.Embedding(2, width)  # 0: no item at all, 1: an item that the catalogue does not know
        self.kind = nn.Embedding(config.event_types, width)
        self.platform = nn.Embedding(config.platforms + 1, width)
        self.numbers = NumberEmbedding(config.number_edges, width)
        self.gap = GapEmbedding(config.gap_edges_s, width)
        self.text = nn.Linear(config.text_width, width, bias=False) if config.text_width else None
        self.norm = nn.LayerNorm(width)
        self.mix = nn.Linear(width, width)
        self.dropout = Dropout(config.dropout)
        for table in (self.without_item, self.kind, self.platform, self.gap.table, *self.numbers.tables):
            nn.init.normal_(table.weight, std=0.05)

    def forward(self, event: EventBatch, gap_ms: Tensor) -> Tensor:
        """Events (...) and the gaps before them (..., 1) int64, negative before a user's first -> (..., D)."""
        absent = self.without_item((event.item_key != 0).to(torch.int64))
        x = torch.where(event.item_known[..., None], self.item(event.item_vector[..., : self.width]), absent)
        x = x + self.kind(event.event_type) + self.platform(event.platform) + self.numbers(event.numbers)
        x = x + self.gap(gap_ms)
        if self.text is not None and event.text is not None:
            x = x + self.text(event.text)
        fused: Tensor = self.dropout(self.mix(self.norm(x)))
        return fused
