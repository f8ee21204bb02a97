"""SASRec: causal self-attention over the last items."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from model.baselines.nets.encoder import Encoder, initialise
from model.nets.dropout import Dropout
from model.settings import SasrecSettings


class SASRec(Encoder):
    """Learned positions, L blocks of [norm -> attention -> residual] and [norm -> feed-forward -> residual], a last norm.

    Its cost per recommendation grows with the number of items that it looks at, `length` at most.
    Source: Kang & McAuley 2018 (arXiv:1808.09781), with the norms before (as its code has them) and, from the trainer, full
    softmax instead of one negative, which is what makes it strong (Klenitskiy & Vasilev 2023, arXiv:2309.07602).
    """

    def __init__(self, items: int, settings: SasrecSettings) -> None:
        super().__init__(items, settings.width)
        self.position = nn.Embedding(settings.length, settings.width)
        self.blocks = nn.ModuleList(Block(settings) for _ in range(settings.layers))
        self.norm = nn.LayerNorm(settings.width)
        self.dropout = Dropout(settings.dropout)
        self.apply(initialise)

    def forward(self, tokens: Tensor) -> Tensor:
        """As `Encoder`, T <= length. Positions count from the beginning of the row, so padding at the end plays no part."""
        width = self.item.embedding_dim
        place = torch.arange(tokens.shape[1], device=tokens.device)
        x = self.dropout(self.item(tokens) * width**0.5 + self.position(place))
        for block in self.blocks:
            x = block(x)
        known: Tensor = self.norm(x)
        return known


class Block(nn.Module):
    def __init__(self, settings: SasrecSettings) -> None:
        super().__init__()
        width = settings.width
        self.heads = settings.heads
        self.attention_norm = nn.LayerNorm(width)
        self.split = nn.Linear(width, 3 * width)
        self.merge = nn.Linear(width, width)
        self.feed = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, width), nn.ReLU(), Dropout(settings.dropout), nn.Linear(width, width)
        )
        self.dropout = Dropout(settings.dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        batch, length, width = x.shape
        # (B, T, 3 D) -> three of (B, H, T, D / H)
        parts = self.split(self.attention_norm(x)).view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        query, key, value = parts.unbind()
        dropout = self.dropout.p if self.training else 0.0
        seen = nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True, dropout_p=dropout)
        x = x + self.dropout(self.merge(seen.transpose(1, 2).reshape(batch, length, width)))
        out: Tensor = x + self.dropout(self.feed(x))
        return out
