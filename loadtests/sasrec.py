"""The rival that recomputes: a SASRec of like size, run over the whole history at every request. Untrained: it costs the same.

`python -m loadtests.sasrec OUT.onnx WIDTH LAYERS ITEMS` exports it. Nothing of the service imports this.
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional

POSITIONS: Final = 200
HEADS: Final = 2
TOP: Final = 20
_OPSET: Final = 18


class Block(nn.Module):
    """x + SelfAttention(LayerNorm(x)), causal, then x + FeedForward(LayerNorm(x)); the feed-forward is as wide as our model's."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.feed = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """x (B, T, D), mask (T, T) additive -> (B, T, D)."""
        _, t, d = x.shape
        q, k, v = self.qkv(self.norm(x)).view(-1, t, 3, HEADS, d // HEADS).permute(2, 0, 3, 1, 4)  # each (B, H, T, D/H)
        weights = functional.softmax(q @ k.transpose(-1, -2) * (d // HEADS) ** -0.5 + mask, -1)  # (B, H, T, T)
        x = x + self.out((weights @ v).transpose(1, 2).reshape(-1, t, d))
        return x + self.feed(x)


class SASRec(nn.Module):
    """The last POSITIONS items of a user -> the TOP best of all N items.

    The scores are those of the last position alone, as in serving. Source: Kang & McAuley 2018 (arXiv:1808.09781), with GELU.
    """

    def __init__(self, items: int, width: int, layers: int) -> None:
        super().__init__()
        self.item = nn.Embedding(items, width)
        self.position = nn.Parameter(torch.randn(POSITIONS, width))
        self.blocks = nn.ModuleList(Block(width) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.register_buffer("mask", torch.full((POSITIONS, POSITIONS), -1e9).triu(1))

    def forward(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """rows (B, T) int64 -> scores and rows of the best, each (B, TOP)."""
        x = self.item(rows) + self.position  # (B, T, D)
        for block in self.blocks:
            x = block(x, self.mask)
        scores = self.norm(x[:, -1]) @ self.item.weight.T  # (B, N)
        best = torch.topk(scores, min(TOP, scores.shape[1]), dim=-1)
        return best.values, best.indices


def export(out: Path, width: int, layers: int, items: int) -> None:
    """Write the graph, for any number of users."""
    torch.manual_seed(0)
    net = SASRec(items, width, layers).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # the exporter that docs/adr/0002-exporter.md chose
        torch.onnx.export(
            net,
            (torch.zeros(2, POSITIONS, dtype=torch.int64),),
            str(out),
            input_names=["rows"],
            output_names=["scores", "best"],
            dynamic_axes={name: {0: "B"} for name in ("rows", "scores", "best")},
            opset_version=_OPSET,
            dynamo=False,
        )


if __name__ == "__main__":
    path, width, layers, items = sys.argv[1:]
    export(Path(path), int(width), int(layers), int(items))
