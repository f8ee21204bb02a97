"""Maximum, clipping and running maximum of int64 tensors by comparison.

ONNX Runtime's Max, Min and Clip give wrong int64 results on x86-64 (seen with 1.31; docs/adr/0003-int64.md), so graphs that
hold times in milliseconds must not contain them.
"""

from __future__ import annotations

import torch
from torch import Tensor


def maximum(a: Tensor, b: Tensor) -> Tensor:
    """Elementwise maximum of two int64 tensors."""
    return torch.where(a > b, a, b)


def at_least(x: Tensor, low: int) -> Tensor:
    """x, but never below `low`."""
    return torch.where(x < low, low, x)


def at_most(x: Tensor, high: int) -> Tensor:
    """x, but never above `high`."""
    return torch.where(x > high, high, x)


MAX_CHUNK = 512
"""Most events of one `encode` or `forward`; longer histories are folded chunk by chunk."""


def running_max(x: Tensor) -> Tensor:
    """Cumulative maximum along dim 1 by doubling, up to 2 * MAX_CHUNK wide: ONNX has no operator for it.

    Source: Hillis & Steele 1986, Data parallel algorithms.
    """
    shift = 1
    while shift <= MAX_CHUNK:
        ahead = torch.cat([x[:, :1].expand(-1, shift), x], 1)[:, : x.shape[1]]
        x = maximum(x, ahead)
        shift *= 2
    return x
