"""Maximum and clipping of int64 tensors by comparison.

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
    return torch.where(x < low, torch.full_like(x, low), x)


def at_most(x: Tensor, high: int) -> Tensor:
    """x, but never above `high`."""
    return torch.where(x > high, torch.full_like(x, high), x)
