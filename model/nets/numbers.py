"""Numbers of items (a price, a year) brought to one scale, in the graph itself: they are given to it as they are."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

FARTHEST = 5.0
"""No number counts as farther from its mean than so many standard deviations: one absurd item must not outweigh all weights."""


class NumberScales(nn.Module):
    """The first K of F numbers as their distance from a mean in standard deviations; those behind them as they are.

    Args:
        scales: of each of the K, its mean and what its distance is multiplied with.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, scales: Sequence[tuple[float, float]]) -> None:
        super().__init__()
        shift, scale = torch.tensor(scales, dtype=torch.float32).t().contiguous()
        self.register_buffer("shift", shift, persistent=False)
        self.register_buffer("scale", scale, persistent=False)

    def forward(self, features: Tensor) -> Tensor:
        """(n, F) -> (n, F)."""
        count = len(self.scale)
        numbers = ((features[:, :count] - self.shift) * self.scale).clamp(-FARTHEST, FARTHEST)
        return torch.cat([numbers, features[:, count:]], 1)

    def undone(self, scaled: Tensor) -> Tensor:
        """(n, F) features of which these are made; of a number that counts for nothing, the number itself."""
        count = len(self.scale)
        numbers = self.shift + scaled[:, :count] / torch.where(self.scale > 0, self.scale, 1.0)
        return torch.cat([numbers, scaled[:, count:]], 1)
