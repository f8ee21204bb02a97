"""Numbers and time gaps as embeddings. Bucketing is arithmetic of the graph: the service cannot do it differently."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional


class NumberEmbedding(nn.Module):
    """A learned vector per bucket of each numeric field; a missing number (NaN) has a vector of its own.

    Args:
        edges: per field, ascending bucket edges; a number x falls into the bucket counted by `x >= edge`.
        width: D.
    """

    edges: Tensor
    field: Tensor

    def __init__(self, edges: Sequence[Sequence[float]], width: int) -> None:
        super().__init__()
        # A field that the data never has keeps one edge that nothing reaches.
        edges = [tuple(e) or (float("inf"),) for e in edges]
        self.tables = nn.ModuleList(nn.Embedding(len(e) + 2, width) for e in edges)
        # Every number reaches -inf, and only NaN does not: so what counts as missing is a comparison like the others.
        flat = [edge for e in edges for edge in (float("-inf"), *e)]
        self.register_buffer("edges", torch.tensor(flat, dtype=torch.float32), persistent=False)
        field = [index for index, e in enumerate(edges) for _ in range(len(e) + 1)]
        self.register_buffer("field", torch.tensor(field, dtype=torch.int64), persistent=False)

    def forward(self, numbers: Tensor) -> Tensor:
        """(..., F) float32 -> (..., D), the sum over the fields, as what each edge that a number reaches adds."""
        weights = [table.get_parameter("weight") for table in self.tables]
        risen = torch.cat([weight[1:] - weight[:-1] for weight in weights])
        missing = torch.stack([weight[0] for weight in weights]).sum(0)
        reached = numbers[..., self.field] >= self.edges
        return torch.matmul(reached.to(risen.dtype), risen) + missing


class GapEmbedding(nn.Module):
    """A learned vector per logarithmic bucket of a time gap; bucket 0, of negative gaps, says that there was no earlier event."""

    edges_ms: Tensor

    def __init__(self, edges_s: Sequence[float], width: int) -> None:
        super().__init__()
        self.table = nn.Embedding(len(edges_s) + 2, width)
        edges = [0, *(int(e * 1000) for e in edges_s)]
        self.register_buffer("edges_ms", torch.tensor(edges, dtype=torch.int64), persistent=False)

    def forward(self, gap_ms: Tensor) -> Tensor:
        """gap_ms (..., 1) int64, negative where there was no earlier event -> (..., D)."""
        embedded: Tensor = self.table((gap_ms >= self.edges_ms).to(torch.int64).sum(-1))
        return embedded

    def added_across(self, base: Tensor, gap_ms: Tensor) -> Tensor:
        """base (D, K) + the vectors of gap_ms (n, K) int64, none of them missing -> (n, D, K).

        For narrow vectors of many gaps: what each edge adds, as one matrix product.
        """
        weight = self.table.weight
        passed = gap_ms[:, None] >= self.edges_ms[1:, None]
        return torch.matmul((weight[2:] - weight[1:-1]).t(), passed.to(weight.dtype)) + (base + weight[1][:, None])

    def across(self, gap_ms: Tensor) -> Tensor:
        """The vectors of gap_ms (...) int64, none of them missing, number by number: (D, ...)."""
        bucket = torch.bucketize(gap_ms, self.edges_ms[1:], right=True)
        if gap_ms.device.type != "cpu":
            # Millions of gaps fall into a few buckets: a GPU adds up index_select's gradients one after the other (a quarter of
            # its time a step on an H200), and sorts embedding's first.
            return functional.embedding(bucket, self.table.weight[1:]).movedim(-1, 0)
        return self.table.weight[1:].t().index_select(1, bucket.flatten()).view(-1, *gap_ms.shape)
