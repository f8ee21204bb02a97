"""The k best of very many columns in two stages: the blocks that can hold them, then the best inside of these."""

from __future__ import annotations

from typing import Final, cast

import torch
from torch import Tensor

BLOCK: Final = 128
"""Columns of a block."""

_NOTHING: Final = -3e38  # no score is so low; CUDA's TopK gives such values, or -inf, and any index for what is -inf


def best_in_blocks(scores: Tensor, k: Tensor, block: int = BLOCK) -> tuple[Tensor, Tensor]:
    """The k best columns of each row, exactly.

    The k best lie in the k blocks with the highest maxima: each block that is not among these has only columns that k others,
    one in each of them, are at least as good as. So N / block and then k * block columns are sorted instead of N, which are
    only read.

    Args:
        scores: (n, N), N a multiple of `block`; -inf for a column that must not come back.
        k: (1,) int64, at most N. A tensor, so that it stays an input of a traced graph.

    Returns:
        Values and columns (n, k), best first. Which of several equal values come, and in what order, is open; so is the column
        where the value is -inf.
    """
    rows = scores.shape[0]
    highest = scores.reshape(rows, -1, block).amax(2)  # (n, M)
    blocks = torch._shape_as_tensor(highest)[1:]
    some = torch.where(k < blocks, k, blocks)
    first = torch.topk(highest, cast(int, some[0]), dim=1)  # (n, m)
    held = torch.where(first.values > _NOTHING, 0.0, -torch.inf)
    chosen = _within(first.indices, blocks)
    kept = scores.reshape(-1, block)[chosen + torch.arange(rows)[:, None] * blocks]  # (n, m, G)
    kept = (kept + held[..., None]).reshape(rows, -1)
    top = torch.topk(kept, cast(int, k[0]), dim=1)
    places = _within(top.indices, some * block)
    of_block = torch.div(places, block, rounding_mode="trunc")
    columns = chosen.gather(1, of_block) * block + places - of_block * block
    return torch.where(top.values > _NOTHING, top.values, -torch.inf), columns


def _within(places: Tensor, count: Tensor) -> Tensor:
    """Places that are there, (n, m) int64, as they are; 0 for others."""
    return torch.where((places >= 0) & (places < count), places, 0)
