"""The loss against torch's own cross-entropy."""

import numpy as np
import pytest
import torch
from random_world import random_world
from torch.nn.functional import cross_entropy

from model import losses
from model.data.sequences import Queries
from model.losses import basket_cross_entropy
from model.replay import seen_items
from model.seen import NEVER, Seen, seen_of


@pytest.fixture
def logits():
    return torch.randn(6, 9, generator=torch.Generator().manual_seed(0)).requires_grad_()


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_with_one_target_a_query_it_is_cross_entropy(logits, smoothing):
    target = torch.tensor([0, 8, 3, 3, 1, 5])
    ours = basket_cross_entropy(logits, torch.arange(6), target, smoothing)
    theirs = cross_entropy(logits, target, label_smoothing=smoothing)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(*(torch.autograd.grad(loss, logits)[0] for loss in (ours, theirs)))


def test_each_item_of_a_basket_is_an_equally_likely_next_item_and_each_query_counts_once(logits):
    owner = torch.tensor([0, 0, 0, 1, 2, 2, 3, 4, 5, 5])
    target = torch.tensor([1, 4, 8, 0, 2, 3, 5, 6, 7, 0])
    share = torch.zeros(6, 9)
    share[owner, target] = 1
    share /= share.sum(1, keepdim=True)
    ours, theirs = basket_cross_entropy(logits, owner, target), cross_entropy(logits, share)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(*(torch.autograd.grad(loss, logits)[0] for loss in (ours, theirs)))


def test_scores_far_apart_give_a_finite_loss():
    loss = basket_cross_entropy(torch.tensor([[1e4, -1e4]]), torch.tensor([0]), torch.tensor([1]))
    assert float(loss) == pytest.approx(2e4)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("slots", [0, 1, 4])
@pytest.mark.parametrize("added", [False, True])
def test_the_blocked_softmax_is_the_plain_one_gradients_included(smoothing, slots, added, monkeypatch):
    monkeypatch.setattr(losses, "BLOCK", 3)  # the last block is smaller
    rng = torch.Generator().manual_seed(0)
    shapes = [(8, 4), (6, 4), (6,), (8, 2), (8, 3)]
    known, matrix, bias, weight, amount = (torch.randn(s, generator=rng, dtype=torch.float64, requires_grad=True) for s in shapes)
    owner = torch.tensor([0, 0, 0, 1, 2, 3, 3, 4, 5, 6, 7, 7])
    target = torch.tensor([0, 2, 5, 1, 4, 3, 0, 5, 2, 1, 0, 4])
    scores, learned = known @ matrix.t() + bias, [known, matrix, bias]
    popularity = additions = None
    if slots:
        logs = torch.randn(slots, 6, 2, generator=rng, dtype=torch.float64)
        popularity = losses.Popularity(weight, logs, torch.randint(0, slots, (8,), generator=rng))
        scores, learned = scores + (logs[popularity.slot] @ weight[..., None])[..., 0], [*learned, weight]
    if added:
        additions = losses.Additions(torch.randint(0, 6, (8, 3), generator=rng), amount)  # the same row more than once, too
        scores, learned = scores.scatter_add(1, additions.rows, amount), [*learned, amount]
    plain = basket_cross_entropy(scores, owner, target, smoothing)
    blocked = losses.basket_softmax(known, matrix, bias, owner, target, smoothing, popularity, additions)
    torch.testing.assert_close(blocked, plain)
    for one, other in zip(torch.autograd.grad(3 * plain, learned), torch.autograd.grad(3 * blocked, learned), strict=True):
        torch.testing.assert_close(one, other)


def test_rounded_factors_give_nearly_the_same_loss_and_gradients():
    rng = torch.Generator().manual_seed(0)
    known, matrix, bias = (torch.randn(s, generator=rng, requires_grad=True) for s in [(600, 16), (50, 16), (50,)])
    owner, target = torch.arange(600), torch.randint(0, 50, (600,), generator=rng)
    whole, rounded = (losses.basket_softmax(known, matrix, bias, owner, target, factor=f) for f in (None, torch.bfloat16))
    assert rounded.item() == pytest.approx(whole.item(), rel=2e-3)
    for one, other in zip(*(torch.autograd.grad(loss, [known, matrix, bias]) for loss in (whole, rounded)), strict=True):
        assert torch.linalg.norm(one - other) < 0.01 * torch.linalg.norm(one)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_items_that_were_seen_play_no_part_but_for_targets(smoothing, monkeypatch):
    monkeypatch.setattr(losses, "BLOCK", 3)
    rng = torch.Generator().manual_seed(0)
    known, matrix, bias = (torch.randn(s, generator=rng, dtype=torch.float64, requires_grad=True) for s in [(5, 4), (6, 4), (6,)])
    owner, target = torch.tensor([0, 1, 1, 2, 3, 4]), torch.tensor([0, 2, 5, 1, 4, 3])
    first = torch.full((2, 6), NEVER, dtype=torch.int32)
    first[0, [1, 3]], first[1, [0, 4]] = torch.tensor([10, 12]).int(), torch.tensor([0, 2]).int()
    seen = Seen(first, torch.tensor([0, 0, 1, 1, 1]), torch.tensor([11, 13, 0, 2, 3]).int())
    had = [[1], [1, 3], [], [0], [0, 4]]  # what is first had at a query's own row is not seen yet
    losses_ = []
    for query, items in enumerate(had):
        free = [item for item in range(6) if item not in items or item in target[owner == query].tolist()]
        scores = (known[query] @ matrix.t() + bias)[free]
        wanted = torch.tensor([free.index(t) for t in target[owner == query].tolist()])
        losses_.append(basket_cross_entropy(scores[None], torch.zeros(len(wanted), dtype=torch.int64), wanted, smoothing))
    plain = torch.stack(losses_).mean()
    blocked = losses.basket_softmax(known, matrix, bias, owner, target, smoothing, seen=seen)
    torch.testing.assert_close(blocked, plain)
    for one, other in zip(*(torch.autograd.grad(loss, [known, matrix, bias]) for loss in (plain, blocked)), strict=True):
        torch.testing.assert_close(one, other)


def test_what_was_seen_is_what_the_lists_leave_out():
    seq = random_world(seed=4)
    rows = np.flatnonzero(np.arange(len(seq.item)) % 2)
    one = np.arange(len(rows) + 1, dtype=np.int64)
    queries = Queries(seq.user[rows], rows, seq.time[rows], one, np.maximum(seq.item[rows], 0))
    mask = seen_of(seq, queries).mask(slice(0, len(rows)))
    for query, row in enumerate(rows.tolist()):
        assert set(np.flatnonzero(mask[query].numpy())) == set(seen_items(seq, int(seq.user[row]), row))
