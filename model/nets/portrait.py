"""A user in words: what the next items will be about, and how far the interest has moved."""

from __future__ import annotations

import torch
from torch import Tensor


def label_weights(scores: Tensor, item_labels: Tensor) -> Tensor:
    """The expected share of each label in the next items: scores (n, N) of all items, item_labels (N, C) -> (n, C).

    What the lists are made of, summed by label: so that what a user is said to like, and what they are shown, are the same.
    """
    return torch.matmul(torch.softmax(scores, 1), item_labels)


def drift(leaning: Tensor) -> Tensor:
    """How far the interest has moved: between what the user's items were about of late and for long.

    The Jensen-Shannon divergence of the shares of labels, in bits: 0 is none, 1 nothing in common. leaning (n, 2, C) -> (n, 1);
    0 before the first item that is known. Source: Lin 1991, "Divergence Measures Based on the Shannon Entropy".
    """
    total = leaning.sum(2, keepdim=True)
    shares = leaning / torch.clamp(total, min=1e-30)
    apart = torch.clamp(_entropy(shares.mean(1)) - _entropy(shares).mean(1), min=0.0)
    return torch.where(total[:, 0] > 0, apart[:, None], 0.0)


def _entropy(shares: Tensor) -> Tensor:
    """In bits, along the last dimension."""
    return -(shares * torch.log2(torch.clamp(shares, min=1e-30))).sum(-1)
