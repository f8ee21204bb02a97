"""Numbers and time gaps as embeddings. Bucketing is arithmetic of the graph: the service cannot do it differently."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class NumberEmbedding(nn.Module):
    """A learned vector per bucket of each numeric field; a missing number (NaN) has a vector of its own.

    Args:
        edges: per field, ascending bucket edges; a number x falls into the bucket counted by `x >= edge`.
        width: D.
    """

    def __init__(self, edges: Sequence[Sequence[float]], width: int) -> None:
        super().__init__()
        # A field that the data never has keeps one edge that nothing reaches: graphs want no empty dimension.
        edges = [tuple(e) or (float("inf"),) for e in edges]
        self.tables = nn.ModuleList(nn.Embedding(len(e) + 2, width) for e in edges)
        for index, e in enumerate(edges):
            self.register_buffer(f"edges_{index}", torch.tensor(e, dtype=torch.float32), persistent=False)

    def forward(self, numbers: Tensor) -> Tensor:
        """(..., F) float32 -> (..., D), the sum over the fields."""
        total = torch.zeros(())
        for index, table in enumerate(self.tables):
            number = numbers[..., index]
            edges: Tensor = getattr(self, f"edges_{index}")
            missing = torch.isnan(number)
            bucket = 1 + (number[..., None] >= edges).to(torch.int64).sum(-1)
            total = total + table(torch.where(missing, torch.zeros_like(bucket), bucket))
        return total


class GapEmbedding(nn.Module):
    """A learned vector per logarithmic bucket of a time gap; bucket 0 means that there was no earlier event."""

    edges_ms: Tensor

    def __init__(self, edges_s: Sequence[float], width: int) -> None:
        super().__init__()
        self.table = nn.Embedding(len(edges_s) + 2, width)
        self.register_buffer("edges_ms", torch.tensor([int(e * 1000) for e in edges_s], dtype=torch.int64), persistent=False)

    def forward(self, gap_ms: Tensor, first: Tensor) -> Tensor:
        """gap_ms (...) int64 >= 0, first (...) bool -> (..., D)."""
        bucket = 1 + (gap_ms[..., None] >= self.edges_ms).to(torch.int64).sum(-1)
        embedded: Tensor = self.table(torch.where(first, torch.zeros_like(bucket), bucket))
        return embedded
