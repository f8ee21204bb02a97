"""Numbers of 8 bits: how a bundle can store its item vectors, and the weights of its graphs, in a quarter of the size.

What is rounded is multiplied out before it is used, and is then the same number everywhere, to the bit: in PyTorch, in ONNX, in
the service and in every offline evaluation. So a bundle of rounded numbers is an ordinary one, of a net that was rounded.
"""

from __future__ import annotations

import copy
from typing import NamedTuple

import torch
from torch import Tensor

from model.errors import TrainerError
from model.nets import Longwave

STORED = ("float32", "int8")
LARGEST = 127
ITEMS = ("item.id.", "item.beside.")
"""What item vectors are made of: these are rounded as such, or not at all."""


class RoundingError(TrainerError, ValueError):
    """Numbers cannot be stored in this way."""


class Rounded(NamedTuple):
    """codes: (N, D) int8; scales: (N) float32, what a code of 1 is worth in each row."""

    codes: Tensor
    scales: Tensor

    def rows(self) -> Tensor:
        """(N, D) float32."""
        return self.codes.float() * self.scales[:, None]


def rounded(rows: Tensor) -> Rounded:
    """(N, D) float32, each row to 255 even steps between minus and plus its largest number.

    Scales have 16 significant bits, so that a code times its scale is exact, and rounding what is rounded changes nothing.
    """
    most = (rows.detach().abs().amax(1) / LARGEST).to(torch.float32)
    scales = ((most.view(torch.int32) + 0xFF) & ~0xFF).view(torch.float32)  # up, so that no code is beyond the largest
    # A row of zeros has the scale zero.
    codes = torch.where(scales[:, None] > 0, rows.detach() / scales[:, None], 0.0).round()
    return Rounded(codes.to(torch.int8), scales)


def as_stored(vectors: Tensor, stored: str) -> Tensor:
    """(N, D) item vectors as who reads the bundle has them. Raises RoundingError if `stored` is none of `STORED`."""
    check_stored(stored, "item vectors")
    return rounded(vectors).rows() if stored == "int8" else vectors


@torch.no_grad()
def with_stored_weights(net: Longwave, stored: str) -> Longwave:
    """The net that a bundle's graphs are made of, in evaluation mode: this one, or a copy with every matrix of weights rounded.

    Raises RoundingError if `stored` is none of `STORED`.
    """
    check_stored(stored, "weights")
    if stored == "float32":
        return net.eval()
    net = copy.deepcopy(net).eval()
    for name, weights in net.named_parameters():
        if weights.dim() > 1 and not name.startswith(ITEMS):
            weights.copy_(rounded(weights.reshape(-1, weights.shape[-1])).rows().view_as(weights))
    return net


def check_stored(stored: str, what: str) -> None:
    """Raises RoundingError if `stored` is none of `STORED`."""
    if stored not in STORED:
        raise RoundingError(f"{what} can be stored as {' or '.join(STORED)}, not as {stored!r}")
