"""How a bundle stores its item vectors: as they are, or as whole numbers of 8 bits with a scale for each item.

Whoever reads or scores with stored vectors multiplies them out first, so that the service and every offline evaluation of such a
bundle have the same numbers to the bit, in the fold as in the scores.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from model.errors import TrainerError

STORED = ("float32", "int8")
LARGEST = 127


class VectorError(TrainerError, ValueError):
    """Item vectors cannot be stored in this way."""


class Rounded(NamedTuple):
    """codes: (N, D) int8; scales: (N) float32, what a code of 1 is worth in each row."""

    codes: Tensor
    scales: Tensor

    def vectors(self) -> Tensor:
        """(N, D) float32: one exact conversion and one rounded product a number, as numpy does it, too."""
        return self.codes.float() * self.scales[:, None]


def rounded(vectors: Tensor) -> Rounded:
    """(N, D) float32, each row to 255 even steps between minus and plus its largest number."""
    scales = vectors.abs().amax(1) / LARGEST
    # A row of zeros, or of numbers so small that their scale is zero, becomes zeros.
    codes = torch.where(scales[:, None] > 0, vectors / scales[:, None], 0.0).round().clamp(-LARGEST, LARGEST)
    return Rounded(codes.to(torch.int8), scales)


def as_stored(vectors: Tensor, stored: str) -> Tensor:
    """(N, D) item vectors as who reads the bundle has them.

    Raises:
        VectorError: `stored` is none of `STORED`.
    """
    if stored not in STORED:
        raise VectorError(f"item vectors can be stored as {' or '.join(STORED)}, not as {stored!r}")
    return rounded(vectors).vectors() if stored == "int8" else vectors
