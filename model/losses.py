"""Full-softmax losses: one target or a whole basket."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from model.seen import Seen

BLOCK = 512
"""Queries that are scored at a time: their scores stay in the processor's cache, and all of them never exist at once."""

MOST = 2**27
"""Scores of a block where there is no such cache: on a GPU many small blocks are many launches, and it waits for these."""

NO_ANSWER = -1e30
"""Added to the score of what is no answer: its share of the softmax is exactly 0."""


class Soft(NamedTuple):
    """What teachers say: for each of n queries k different items, rows (n, k) int64, and their shares (n, k), which add up to 1.

    The loss is `weight` times the cross-entropy against these, and 1 - weight times the one against what came.
    """

    rows: Tensor
    share: Tensor
    weight: float


def basket_cross_entropy(
    logits: Tensor, owner: Tensor, target: Tensor, smoothing: float = 0.0, soft: Soft | None = None
) -> Tensor:
    """Mean over n queries of the mean negative log-likelihood of their targets, normalised over all N items.

    Args:
        logits: (n, N). owner: (t) query of each target, ascending; target: (t) its item row. Every query has a target.
        smoothing: probability mass spread over all items. soft: what teachers say.

    With one target a query this is cross-entropy; with more, each item of the basket is an equally likely next item.
    """
    log_z = torch.logsumexp(logits, 1)
    count = torch.bincount(owner, minlength=len(logits)).to(logits.dtype)
    picked = torch.zeros_like(log_z).scatter_add(0, owner, logits[owner, target]) / count
    if smoothing:
        picked = (1 - smoothing) * picked + smoothing * logits.mean(1)
    if soft is not None:
        picked = (1 - soft.weight) * picked + soft.weight * (logits.gather(1, soft.rows) * soft.share).sum(1)
    return (log_z - picked).mean()


class Popularity(NamedTuple):
    """How much recent popularity adds to the scores: sum_p weight_p * logs[slot, :, p].

    Attributes:
        weight: (n, P). logs: (S, N, P) constants. slot: (n) int64, which of the S tables each query sees.
    """

    weight: Tensor
    logs: Tensor
    slot: Tensor


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
    factor: torch.dtype | None = None,
    seen: Seen | None = None,
    soft: Soft | None = None,
) -> Tensor:
    """`basket_cross_entropy` of the scores known (n, D) @ item_matrix (N, D)^T + item_bias (N) + ..., without keeping the scores.

    The gradients are made on the way forward, block by block, so that no score is computed twice and none is stored.

    Args:
        seen: items that are no answers, for each query, and play no part (a target plays it all the same).
        soft: what teachers say, of items that are not `seen`.
        factor: type of the factors of the products, and of each score as such; that of `known` by default. Sums have the latter.
    """
    weight = known.new_zeros(len(known), 0) if popularity is None else popularity.weight
    amount = None if additions is None else additions.amount
    loss: Tensor = _BlockedSoftmax.apply(  # type: ignore[no-untyped-call]
        known,
        item_matrix,
        item_bias,
        weight,
        amount,
        owner,
        target,
        smoothing,
        popularity,
        additions,
        factor or known.dtype,
        seen,
        soft,
    )
    return loss


class _BlockedSoftmax(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        known: Tensor,
        item_matrix: Tensor,
        item_bias: Tensor,
        weight: Tensor,
        amount: Tensor | None,
        owner: Tensor,
        target: Tensor,
        smoothing: float,
        popularity: Popularity | None,
        additions: Additions | None,
        factor: torch.dtype,
        seen: Seen | None,
        soft: Soft | None,
    ) -> Tensor:
        count = torch.bincount(owner, minlength=len(known))
        told = 0.0 if soft is None else soft.weight
        smoothing = (1 - told) * smoothing
        share = (1 - told - smoothing) / count[owner].to(known.dtype)
        ends = torch.cumsum(count, 0).tolist()
        loss = known.new_zeros(())
        # One product does it all: [known, weight, 1] @ [item_matrix, log popularity, bias]^T. (Where every query has a popularity
        # table of its own, that part is added apart.)
        moving = popularity if popularity is not None and len(popularity.logs) > 1 else None
        logs = popularity.logs[0] if popularity is not None and moving is None else item_matrix.new_zeros(len(item_matrix), 0)
        ours, width = known.shape[1], known.shape[1] + logs.shape[1] + 1
        left = torch.cat([known, weight[:, : logs.shape[1]], torch.ones_like(known[:, :1])], 1)
        right = torch.cat([item_matrix, logs, item_bias[:, None]], 1)
        left, right = left.to(factor), right.to(factor)
        to_left, to_right = known.new_zeros(len(known), width), known.new_zeros(len(item_matrix), width)
        to_weight = torch.zeros_like(weight)
        to_amount = None if amount is None else torch.empty_like(amount)
        block = BLOCK if known.device.type == "cpu" else max(BLOCK, MOST // len(item_matrix))
        for begin in range(0, len(known), block):
            part = slice(begin, min(begin + block, len(known)))
            own = slice(ends[begin - 1] if begin else 0, ends[part.stop - 1])
            place = owner[own] - begin, target[own]
            scores = torch.mm(left[part], right.t()).to(known.dtype)
            if moving is not None:
                scores += torch.bmm(moving.logs[moving.slot[part]], moving.weight[part, :, None])[..., 0]
            if additions is not None:
                scores.scatter_add_(1, additions.rows[part], additions.amount[part])
            even: float | Tensor = smoothing / len(item_matrix)
            if seen is not None:
                mask = seen.mask(part)
                mask[place] = 0
                if smoothing:
                    others = (1 - mask).to(scores.dtype)
                    even = others * (smoothing / others.sum(1, keepdim=True))
            if smoothing:
                loss -= (scores * even).sum()
            if soft is not None:
                said = soft.rows[part], told * soft.share[part]
                loss -= (scores.gather(1, said[0]) * said[1]).sum()
            if seen is not None:
                scores.add_(mask.to(scores.dtype), alpha=NO_ANSWER)  # (masked_fill_ takes as long as the product)
            most = scores.amax(1)
            loss -= (scores[place] * share[own]).sum()
            # From here on `scores` is the gradient: the softmax minus what should have been.
            scores = torch.softmax(scores, 1)
            loss += (most - scores.amax(1).log()).sum()
            if smoothing:
                scores -= even
            if soft is not None:
                scores.scatter_add_(1, said[0], -said[1])
            scores.index_put_(place, -share[own], accumulate=True)
            rounded = scores.to(factor)
            to_left[part] = torch.mm(rounded, right)
            to_right += torch.mm(rounded.t(), left[part])
            if moving is not None:
                to_weight[part] = torch.bmm(scores[:, None], moving.logs[moving.slot[part]])[:, 0]
            if to_amount is not None and additions is not None:
                to_amount[part] = torch.gather(scores, 1, additions.rows[part])
        if moving is None:
            to_weight = to_left[:, ours:-1]
        grads = to_left[:, :ours], to_right[:, :ours], to_right[:, -1], to_weight, to_amount
        ctx.save_for_backward(*(grad / len(known) for grad in grads if grad is not None))
        return loss / len(known)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        out = [grads[0] * grad for grad in ctx.saved_tensors]
        return *out, *(None for _ in range(13 - len(out)))
