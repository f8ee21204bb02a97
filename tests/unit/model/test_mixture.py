"""Several interests with a gate: what it says, and that the loss in blocks is the loss at once."""

import dataclasses

import numpy as np
import pytest
import torch
from tiny_run import tiny_settings
from torch.nn.functional import cross_entropy

from model import train as module
from model.data.synthetic import synthetic_world
from model.losses import basket_cross_entropy
from model.nets.mixture import Mixture
from model.settings import ConfigError, check_together
from model.task import make_task
from model.train import Trainer


def test_a_score_is_the_mean_of_the_matches_by_the_gate():
    torch.manual_seed(0)
    mixture = Mixture(4, 6, 3)
    interests, context, items = torch.randn(2, 3, 6), torch.randn(2, 4), torch.randn(5, 6)
    scores = mixture(interests, context, items)
    for user in range(2):
        for item in range(5):
            match = interests[user] @ items[item]
            gate = mixture.user(context[user]) + mixture.item @ items[item] + mixture.cross * match
            assert torch.allclose(scores[user, item], torch.softmax(gate, 0) @ match, atol=1e-5)


def test_a_gate_that_has_decided_leaves_one_interest():
    mixture = Mixture(4, 6, 3)
    with torch.no_grad():
        mixture.user.weight.zero_()
        mixture.item.zero_()
        mixture.cross.zero_()
        mixture.user.bias.copy_(torch.tensor([0.0, 90.0, 0.0]))
    interests, items = torch.randn(2, 3, 6), torch.randn(5, 6)
    assert torch.allclose(mixture(interests, torch.randn(2, 4), items), interests[:, 1] @ items.t(), atol=1e-6)


def test_what_was_seen_has_no_part_in_the_softmax_but_as_a_target():
    logits, target = torch.randn(3, 6), torch.tensor([1, 4, 0])
    seen = torch.tensor([[1, 1, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0], [0, 0, 1, 1, 1, 0]])
    others = seen.bool().scatter(1, target[:, None], False)
    expected = cross_entropy(logits.masked_fill(others, -torch.inf), target)
    torch.testing.assert_close(basket_cross_entropy(logits, torch.arange(3), target, seen=seen), expected)


@pytest.mark.parametrize("mixture", [False, True])
def test_the_loss_in_blocks_is_the_loss_at_once_gradients_included(mixture, tmp_path, monkeypatch):
    settings = tiny_settings()
    shape = {**settings.model, "mixture": mixture, "dropout": 0.0, "item_dropout": 0.0, "id_dropout": 0.0}
    settings = dataclasses.replace(
        settings, model=shape, train=dataclasses.replace(settings.train, mask_seen=True, precision="float32")
    )
    task = make_task(synthetic_world("tiny").dataset, settings.data)
    task = dataclasses.replace(task, split=dataclasses.replace(task.split, filter_seen=True))
    run = Trainer(task, settings, tmp_path)
    batch = next(iter(run.batches(np.random.default_rng(0))))
    found = []
    for block in (10**6, 7):
        monkeypatch.setattr(module, "BLOCK", block)
        run.begin_epoch()
        loss = run._loss(batch)
        named = [(name, p) for name, p in run.net.named_parameters() if p.requires_grad]
        found.append((loss, torch.autograd.grad(loss, [p for _, p in named], allow_unused=True)))
    torch.testing.assert_close(found[0][0], found[1][0])
    assert any(name.startswith("mixture.") for name, _ in named) == mixture
    for (name, _), one, other in zip(named, found[0][1], found[1][1], strict=True):
        assert (one is None) == (other is None), name
        if one is not None:
            torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-3)
        elif name.startswith("mixture."):
            raise AssertionError(f"{name} learns nothing")


def test_a_mixture_of_one_is_refused(tmp_path):
    settings = dataclasses.replace(tiny_settings(), model={"mixture": True})
    with pytest.raises(ConfigError, match=r"model\.interests"):
        check_together(tmp_path, settings)
