"""GRU4Rec: a gated recurrent network over the last items."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from model.baselines.nets.encoder import Encoder, initialise
from model.nets.dropout import Dropout
from model.settings import Gru4recSettings


class GRU4Rec(Encoder):
    """L layers of GRU between two dropouts; item vectors are tied ("constrained embedding").

    Source: Hidasi et al. 2016 (arXiv:1511.06939), Hidasi & Karatzoglou 2018 (arXiv:1706.03847); full softmax from the trainer.
    """

    def __init__(self, items: int, settings: Gru4recSettings) -> None:
        super().__init__(items, settings.width)
        between = settings.dropout if settings.layers > 1 else 0.0
        self.gru = nn.GRU(settings.width, settings.width, settings.layers, batch_first=True, dropout=between)
        self.out = nn.Linear(settings.width, settings.width)
        self.dropout = Dropout(settings.dropout)
        self.apply(initialise)

    def forward(self, tokens: Tensor) -> Tensor:
        """As `Encoder`."""
        x = self.dropout(self.item(tokens) * self.item.embedding_dim**0.5)
        if x.is_cuda:  # as our own recurrence
            with torch.autocast("cuda", enabled=False):
                after, _ = self.gru(x)
        else:
            after, _ = self.gru(x)
        known: Tensor = self.out(self.dropout(after))
        return known
