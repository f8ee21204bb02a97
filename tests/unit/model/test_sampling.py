"""Sampled softmax against the full one: right on average, and the same where every item is drawn."""

import dataclasses

import numpy as np
import pytest
import torch
from tiny_run import tiny_settings

from model.data.synthetic import synthetic_world
from model.losses import Additions, basket_softmax
from model.memory import Memories
from model.sampling import CandidateSampler
from model.settings import DataSettings
from model.task import make_task
from model.train import Trainer

ITEMS = 200


@pytest.fixture
def step():
    """Scores that differ much, and targets of which a few items have most: known (n, D), matrix, bias, owner, target, counts."""
    rng = np.random.default_rng(0)
    share = 1 / np.arange(1, ITEMS + 1)
    target = rng.choice(ITEMS, 60, p=share / share.sum())
    known, matrix = torch.as_tensor(rng.normal(size=(40, 6))).float(), torch.as_tensor(rng.normal(size=(ITEMS, 6))).float()
    bias = torch.as_tensor(np.log(share)).float()
    return known, matrix, bias, torch.arange(60) % 40, torch.as_tensor(target), 1000 * share


def sampled(step, sampler, rng, corrected=True):
    known, matrix, bias, owner, target, _ = step
    owner, order = torch.sort(owner, stable=True)
    target = target[order]
    found = sampler.draw(target, torch.empty(0, dtype=torch.int64), rng)
    assert set(target.tolist()) <= set(found.needed[found.chosen].tolist())
    if not corrected:
        found = dataclasses.replace(found, log_chance=torch.zeros_like(found.log_chance))
    rows = found.needed[found.chosen]
    own, (places, _) = found.own(owner, target, len(known)), found.among(target)
    return basket_softmax(known, matrix[rows], bias[rows] - found.log_chance, owner, places, 0.0, None, own).item()


def full(step):
    known, matrix, bias, owner, target, _ = step
    owner, order = torch.sort(owner, stable=True)
    return basket_softmax(known, matrix, bias, owner, target[order]).item()


def test_the_sampled_loss_approaches_the_full_one_and_only_with_the_correction(step):
    def mean(negatives, corrected=True):
        sampler, rng = CandidateSampler(step[-1], negatives), np.random.default_rng(1)
        return np.mean([sampled(step, sampler, rng, corrected) for _ in range(200)])

    # The sum is right on average, its logarithm a little too small: less so with every draw.
    assert mean(60) == pytest.approx(full(step), rel=0.03)
    assert mean(400) == pytest.approx(full(step), rel=0.005)
    assert mean(60, corrected=False) < 0.95 * full(step)


def test_the_chance_of_an_item_is_how_often_it_is_a_candidate():
    counts = 1000 / np.arange(1, 31) ** 2.0
    sampler, rng = CandidateSampler(counts, 10), np.random.default_rng(2)
    share, seen, chance = counts / counts.sum(), np.zeros(30), np.zeros(30)
    for _ in range(5_000):
        target = torch.as_tensor(rng.choice(30, 4, p=share))
        found = sampler.draw(target, torch.empty(0, dtype=torch.int64), rng)
        rows = found.needed[found.chosen].numpy()
        seen[rows] += 1
        chance[rows] = np.exp(found.log_chance.numpy())
    np.testing.assert_allclose(seen / 5_000, chance, atol=0.025)


def test_the_only_item_is_a_candidate_for_certain():
    found = CandidateSampler(np.ones(1), 3).draw(torch.tensor([0]), torch.tensor([-1]), np.random.default_rng(0))
    assert found.log_chance.tolist() == pytest.approx([0.0], abs=1e-6)


@pytest.mark.parametrize("protocol", ["basket", "time", "loo"])
def test_a_step_that_draws_every_item_learns_what_a_full_one_does(protocol, tmp_path):
    losses = {}
    for negatives in (0, 100_000):
        run = trainer(tmp_path / str(negatives), protocol, negatives)
        run.net.eval()  # no dropout
        losses[negatives] = [run._loss(batch).item() for batch in list(run.batches(np.random.default_rng(0)))[:3]]
    assert losses[100_000] == pytest.approx(losses[0], rel=1e-4)


@pytest.mark.parametrize("negatives", [0, 4])
def test_a_step_looks_into_its_memories_once_and_learns_what_two_looks_would_say(negatives, tmp_path, monkeypatch):
    run = trainer(tmp_path, "basket", negatives)
    run.net.eval()
    batches = list(run.batches(np.random.default_rng(0)))[:3]
    look, looks = Memories.at, []
    monkeypatch.setattr(Memories, "at", lambda self, queries: looks.append(len(queries)) or look(self, queries))
    once = [run._loss(batch).item() for batch in batches]
    assert len(looks) == len(batches)
    run.begin_epoch()  # draws the same again
    softmax = run._softmax
    monkeypatch.setattr(run, "_softmax", lambda *arguments: softmax(*arguments[:6]))
    assert [run._loss(batch).item() for batch in batches] == once
    assert len(looks) == (3 if negatives else 2) * len(batches)


def test_a_step_learns_of_no_more_items_than_it_needs(tmp_path):
    run = trainer(tmp_path, "basket", 4)
    batch = next(run.batches(np.random.default_rng(0)))
    loss = run._loss(batch)
    torch.autograd.backward(loss)
    touched = run.net.item.id.weight.grad.abs().sum(1) > 0
    assert 0 < int(touched.sum()) < len(touched)


def test_sampling_learns_about_as_well_as_the_full_softmax(tmp_path):
    best = {n: max(each["valid_ndcg"] for each in trainer(tmp_path / str(n), "basket", n).run().history) for n in (0, 30)}
    assert best[30] > 0.9 * best[0]


def trainer(folder, protocol, negatives):
    settings = tiny_settings()
    train = dataclasses.replace(settings.train, precision="float32", negatives=negatives)
    model = settings.model | {"interests": 1}
    settings = dataclasses.replace(settings, data=DataSettings(protocol=protocol), train=train, model=model)
    return Trainer(make_task(synthetic_world("tiny").dataset, settings.data), settings, folder)


def test_own_repeats_that_are_no_candidates_play_no_part():
    found = CandidateSampler(np.ones(10), 1).draw(torch.tensor([4]), torch.tensor([1, 2, 4]), np.random.default_rng(0))
    rows, amount = found.repeated(torch.tensor([[4, 1, 2]]), torch.tensor([[1.0, 2.0, 3.0]]))
    candidates = found.needed[found.chosen]
    assert amount[0, 0] == 1
    assert candidates[rows[0, 0]] == 4
    assert [float(a) for a in amount[0, 1:]] == [x if row in candidates.tolist() else 0 for row, x in ((1, 2.0), (2, 3.0))]
    assert isinstance(found.own(torch.tensor([0]), torch.tensor([4]), 1), Additions)
