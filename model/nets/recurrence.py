"""Long-term interest: residual LSTM blocks. Residual, norm and feed-forward around the recurrence each matter."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from model.nets.cells import CELLS, TIMED
from model.nets.dropout import Dropout


class Block(nn.Module):
    """x + LSTM(LayerNorm(x)), then x + FeedForward(LayerNorm(x)).

    Source: Hochreiter & Schmidhuber 1997; residual blocks as in LRURec (arXiv:2310.02367).
    """

    def __init__(self, width: int, dropout: float, cell: str = "lstm") -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.cell = CELLS[cell](width)
        self.feed = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.GELU(), Dropout(dropout), nn.Linear(2 * width, width)
        )
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor, h: Tensor, c: Tensor, lengths: Tensor | None, elapsed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x (B, T, D), h and c (1, B, D) -> outputs (B, T, D), h and c after each row's last valid event.

        `lengths` (B) int64 >= 1 on the CPU gives the valid events of each row; None means all T. `elapsed` (B, T) ms since the
        event before.
        """
        inputs = self.norm(x)
        more = (elapsed,) if isinstance(self.cell, TIMED) else ()
        if x.is_cuda:
            # Autocast would give cuDNN float16 factors, whatever it was told, and their gradients would need scaling.
            with torch.autocast("cuda", enabled=False):
                y, h1, c1 = self.cell(inputs.float(), h, c, lengths, *more)
        else:
            y, h1, c1 = self.cell(inputs, h, c, lengths, *more)
        x = x + self.dropout(y)
        return x + self.dropout(self.feed(x)), h1, c1


class Recurrence(nn.Module):
    """L residual blocks and a final norm; the state is (h, c) of every block."""

    def __init__(self, layers: int, width: int, dropout: float, cell: str = "lstm") -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(width, dropout, cell) for _ in range(layers))
        self.norm = nn.LayerNorm(width)

    def forward(
        self, x: Tensor, h: Tensor, c: Tensor, elapsed: Tensor, lengths: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """x (B, T, D), h and c (B, L, D), elapsed (B, T) ms -> interest at each event (B, T, D), h and c after the last."""
        hs, cs = [], []
        layers = zip(self.blocks, _by_layer(h), _by_layer(c), strict=True)
        for block, h0, c0 in layers:
            x, h1, c1 = block(x, h0, c0, lengths, elapsed)
            hs.append(h1)
            cs.append(c1)
        return self.norm(x), torch.cat(hs).transpose(0, 1), torch.cat(cs).transpose(0, 1)


def _by_layer(state: Tensor) -> tuple[Tensor, ...]:
    """(B, L, D) -> L of (1, B, D)."""
    return torch.split(state.transpose(0, 1).contiguous(), 1)
