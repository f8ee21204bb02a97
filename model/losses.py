"""Full-softmax losses: one target or a whole basket."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

BLOCK = 512
"""Queries that are scored at a time: their scores stay in the processor's cache, and all of them never exist at once."""


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


def basket_softmax(
    known: Tensor, item_matrix: Tensor, item_bias: Tensor, owner: Tensor, target: Tensor, smoothing: float = 0.0
) -> Tensor:
    """`basket_cross_entropy` of the scores known (n, D) @ item_matrix (N, D)^T + item_bias (N), without keeping the scores.

    The gradients are made on the way forward, block by block, so that no score is computed twice and none is stored.
    """
    loss: Tensor = _BlockedSoftmax.apply(  # type: ignore[no-untyped-call]
        known, item_matrix, item_bias, owner, target, smoothing
    )
    return loss


class _BlockedSoftmax(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, known: Tensor, item_matrix: Tensor, item_bias: Tensor, owner: Tensor, target: Tensor, smoothing: float
    ) -> Tensor:
        count = torch.bincount(owner, minlength=len(known))
        weight = (1 - smoothing) / (count[owner].to(known.dtype) * len(known))
        ends = torch.cumsum(count, 0).tolist()
        loss = known.new_zeros(())
        to_known, to_matrix, to_bias = torch.empty_like(known), torch.zeros_like(item_matrix), torch.zeros_like(item_bias)
        for begin in range(0, len(known), BLOCK):
            part = known[begin : begin + BLOCK]
            own = slice(ends[begin - 1] if begin else 0, ends[begin + len(part) - 1])
            place = owner[own] - begin, target[own]
            scores = torch.addmm(item_bias, part, item_matrix.t())
            loss -= (scores[place] * weight[own]).sum()
            if smoothing:
                loss -= smoothing * scores.mean(1).sum() / len(known)
            most = scores.amax(1, keepdim=True)
            total = scores.sub_(most).exp_().sum(1, keepdim=True)
            loss += (most + total.log()).sum() / len(known)
            # From here on `scores` is the gradient: the softmax minus what should have been.
            scores.mul_(1 / (total * len(known)))
            if smoothing:
                scores -= smoothing / (len(item_matrix) * len(known))
            scores.index_put_(place, -weight[own], accumulate=True)
            torch.mm(scores, item_matrix, out=to_known[begin : begin + BLOCK])
            to_matrix.addmm_(scores.t(), part)
            to_bias += scores.sum(0)
        ctx.save_for_backward(to_known, to_matrix, to_bias)
        return loss

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None, None]:
        to_known, to_matrix, to_bias = ctx.saved_tensors
        return grads[0] * to_known, grads[0] * to_matrix, grads[0] * to_bias, None, None, None
