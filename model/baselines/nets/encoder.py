"""What the neural baselines share: item vectors that are both what is read and what is scored."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor, nn

from model.baselines.nets.streams import BEGIN


class Encoder(nn.Module):
    """N items as tokens 1..N, `BEGIN` before a user's first; subclasses say how a sequence of them becomes vectors."""

    def __init__(self, items: int, width: int) -> None:
        super().__init__()
        self.item = nn.Embedding(items + 1, width)
        self.bias = nn.Parameter(torch.zeros(items))

    @property
    def device(self) -> torch.device:
        """Where it is, and what it is given must be."""
        return self.bias.device

    @abstractmethod
    def forward(self, tokens: Tensor) -> Tensor:
        """(B, T) int64, padded at the end with any token -> (B, T, D): what is known right after each token."""

    def items(self) -> Tensor:
        """(N, D) vectors of all items."""
        return self.item.weight[BEGIN + 1 :]

    def item_scores(self, known: Tensor) -> Tensor:
        """(n, D) -> (n, N)."""
        return torch.addmm(self.bias, known, self.items().t())


def initialise(module: nn.Module) -> None:
    """Small normal weights, no biases; for `Module.apply`. Source: Devlin et al. 2019 (BERT)."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)
