"""What a user's items are like, of late and for long: two fading means of their vectors, whose angle is drift."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from model.nets.config import LN_2
from model.nets.event import EventBatch

HALF_LIVES = (16.0, 128.0)
"""In events: of late, and for long."""


class Leaning(nn.Module):
    """A user's state has both means, (2, D). Nothing is learned, and no score depends on them.

    An event without an item, or with one that is not known, takes its turn and adds nothing: both means shrink, and their
    directions stay.
    """

    rate: Tensor
    share: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        rate = -LN_2 / torch.tensor(HALF_LIVES)
        self.register_buffer("rate", rate, persistent=False)
        self.register_buffer("share", -torch.expm1(rate), persistent=False)  # of the newest event

    def step(self, leaning: Tensor, event: EventBatch) -> Tensor:
        """The means (B, 2, D) after one event per user."""
        return leaning * torch.exp(self.rate)[:, None] + self._vectors(event)[:, None] * self.share[:, None]

    def after(self, leaning: Tensor, events: EventBatch, count: Tensor) -> Tensor:
        """The means after the first `count` (B, 1) of T events, (B, 2, D) like those before."""
        behind = (count - 1 - torch.arange(events.item_known.shape[1], device=count.device))[:, None]  # (B, 1, T)
        left = torch.exp(torch.relu(behind.to(torch.float32)) * self.rate[:, None])  # (B, 2, T)
        weights = torch.where(behind >= 0, left * self.share[:, None], 0.0)
        faded = torch.exp(count.to(torch.float32) * self.rate)[..., None]  # (B, 2, 1)
        return leaning * faded + torch.matmul(weights, self._vectors(events))

    def _vectors(self, events: EventBatch) -> Tensor:
        """What the items of events (...) are like, without what they lead to -> (..., D)."""
        return torch.where(events.item_known[..., None], events.item_vector[..., : self.width], 0.0)
