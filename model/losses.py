"""Full-softmax losses: one target or a whole basket."""

from __future__ import annotations

from typing import Any, NamedTuple

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


class Popularity(NamedTuple):
    """How much recent popularity adds to the scores: sum_p weight_p * logs[slot, :, p].

    Attributes:
        weight: (n, P). logs: (S, N, P) constants. slot: (n) int64, which of the S tables each query sees.
    """

    weight: Tensor
    logs: Tensor
    slot: Tensor

    def scores(self, part: slice) -> Tensor:
        """(b, N) of the queries `part`."""
        if len(self.logs) == 1:
            return torch.mm(self.weight[part], self.logs[0].t())
        return torch.bmm(self.logs[self.slot[part]], self.weight[part, :, None])[..., 0]

    def to_weight(self, part: slice, grad: Tensor) -> Tensor:
        """(b, P) gradient of the weights from that of the scores (b, N)."""
        if len(self.logs) == 1:
            return torch.mm(grad, self.logs[0])
        return torch.bmm(grad[:, None], self.logs[self.slot[part]])[:, 0]


class Additions(NamedTuple):
    """What is added to the scores of a few items of each query: rows (n, R) int64, with any row where amount (n, R) is 0."""

    rows: Tensor
    amount: Tensor


def basket_softmax(
    known: Tensor,
    item_matrix: Tensor,
    item_bias: Tensor,
    owner: Tensor,
    target: Tensor,
    smoothing: float = 0.0,
    popularity: Popularity | None = None,
    additions: Additions | None = None,
) -> Tensor:
    """`basket_cross_entropy` of the scores known (n, D) @ item_matrix (N, D)^T + item_bias (N) + ..., without keeping the scores.

    The gradients are made on the way forward, block by block, so that no score is computed twice and none is stored.
    """
    weight = None if popularity is None else popularity.weight
    amount = None if additions is None else additions.amount
    loss: Tensor = _BlockedSoftmax.apply(  # type: ignore[no-untyped-call]
        known, item_matrix, item_bias, weight, amount, owner, target, smoothing, popularity, additions
    )
    return loss


class _BlockedSoftmax(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        known: Tensor,
        item_matrix: Tensor,
        item_bias: Tensor,
        weight: Tensor | None,
        amount: Tensor | None,
        owner: Tensor,
        target: Tensor,
        smoothing: float,
        popularity: Popularity | None,
        additions: Additions | None,
    ) -> Tensor:
        count = torch.bincount(owner, minlength=len(known))
        share = (1 - smoothing) / (count[owner].to(known.dtype) * len(known))
        ends = torch.cumsum(count, 0).tolist()
        loss = known.new_zeros(())
        to_known, to_matrix, to_bias = torch.empty_like(known), torch.zeros_like(item_matrix), torch.zeros_like(item_bias)
        to_weight = None if weight is None else torch.empty_like(weight)
        to_amount = None if amount is None else torch.empty_like(amount)
        for begin in range(0, len(known), BLOCK):
            part = slice(begin, min(begin + BLOCK, len(known)))
            own = slice(ends[begin - 1] if begin else 0, ends[part.stop - 1])
            place = owner[own] - begin, target[own]
            scores = torch.addmm(item_bias, known[part], item_matrix.t())
            if popularity is not None:
                scores += popularity.scores(part)
            if additions is not None:
                scores.scatter_add_(1, additions.rows[part], additions.amount[part])
            loss -= (scores[place] * share[own]).sum()
            if smoothing:
                loss -= smoothing * scores.mean(1).sum() / len(known)
            most = scores.amax(1, keepdim=True)
            total = scores.sub_(most).exp_().sum(1, keepdim=True)
            loss += (most + total.log()).sum() / len(known)
            # From here on `scores` is the gradient: the softmax minus what should have been.
            scores.mul_(1 / (total * len(known)))
            if smoothing:
                scores -= smoothing / (len(item_matrix) * len(known))
            scores.index_put_(place, -share[own], accumulate=True)
            torch.mm(scores, item_matrix, out=to_known[part])
            to_matrix.addmm_(scores.t(), known[part])
            to_bias += scores.sum(0)
            if to_weight is not None and popularity is not None:
                to_weight[part] = popularity.to_weight(part, scores)
            if to_amount is not None and additions is not None:
                to_amount[part] = torch.gather(scores, 1, additions.rows[part])
        ctx.save_for_backward(*(grad for grad in (to_known, to_matrix, to_bias, to_weight, to_amount) if grad is not None))
        ctx.has = [True, True, True, weight is not None, amount is not None]
        return loss

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        saved = iter(ctx.saved_tensors)
        return *(grads[0] * next(saved) if has else None for has in ctx.has), None, None, None, None, None
