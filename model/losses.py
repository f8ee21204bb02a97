"""Full-softmax losses: one target or a whole basket."""

from __future__ import annotations

import torch
from torch import Tensor


def basket_cross_entropy(logits: Tensor, owner: Tensor, target: Tensor, smoothing: float = 0.0) -> Tensor:
    """Mean over n queries of the mean negative log-likelihood of their targets, normalised over all N items.

    Args:
        logits: (n, N). owner: (t) query of each target, ascending; target: (t) its item row. Every query has a target.
        smoothing: probability mass spread over all items.

    With one target a query this is cross-entropy; with more, each item of the basket is an equally likely next item.
    """
    log_z = torch.logsumexp(logits, 1)
    count = torch.bincount(owner, minlength=len(logits)).to(logits.dtype)
    picked = torch.zeros_like(log_z).scatter_add(0, owner, logits[owner, target]) / count
    if smoothing:
        picked = (1 - smoothing) * picked + smoothing * logits.mean(1)
    return (log_z - picked).mean()
