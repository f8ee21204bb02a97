"""A user in words: what the next items will be about, and how far the interest has moved."""

from __future__ import annotations

import torch
from torch import Tensor


def label_weights(scores: Tensor, item_labels: Tensor) -> Tensor:
    """The expected share of each label in the next items: scores (n, N) of all items, item_labels (N, C) -> (n, C).

    What the lists are made of, summed by label: so that what a user is said to like, and what they are shown, are the same.
    """
    return torch.matmul(torch.softmax(scores, 1), item_labels)


def drift(ring: Tensor, count: Tensor) -> Tensor:
    """How far the interest has moved over the ring's events: 1 - cosine of the means of its older and its newer half.

    ring (n, K, Dr), newest slot last; count (n, 1) int64 events so far. -> (n, 1), 0 with fewer than two events.
    """
    slots = ring.shape[1]
    filled = torch.where(count > slots, slots, count)
    ago = torch.arange(slots - 1, -1, -1, device=count.device)  # how many events before the last one
    newer = (ago < torch.div(filled + 1, 2, rounding_mode="trunc")).to(ring.dtype)
    older = (ago < filled).to(ring.dtype) - newer
    late, early = (torch.matmul(half[:, None], ring).flatten(1) for half in (newer, older))
    size = torch.sqrt((late * late).sum(1, keepdim=True) * (early * early).sum(1, keepdim=True) + 1e-12)
    return torch.where(filled > 1, 1 - (late * early).sum(1, keepdim=True) / size, 0.0)
