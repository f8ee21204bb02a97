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
    """How far the interest has moved: 1 - cosine of what the user's items were like of late and for long.

    leaning (n, 2, D) -> (n, 1), 0 before the first item that is known, and after it.
    """
    late, long = leaning[:, 0], leaning[:, 1]
    size = torch.sqrt((late * late).sum(1, keepdim=True)) * torch.sqrt((long * long).sum(1, keepdim=True))
    return torch.where(size > 0, 1 - (late * long).sum(1, keepdim=True) / torch.clamp(size, min=1e-30), 0.0)
