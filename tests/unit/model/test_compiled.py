"""A net that torch.compile made faster is the same net; and what the preset `large` asks for can be trained."""

from __future__ import annotations

import dataclasses
import math
import shutil

import numpy as np
import pytest
import torch
from tiny_run import tiny_settings

from model.data.synthetic import synthetic_world
from model.settings import load_settings
from model.task import make_task
from model.train import Trainer


@pytest.fixture(scope="module")
def task():
    return make_task(synthetic_world("tiny").dataset, tiny_settings().data)


def first_batch(run):
    return next(iter(run.batches(np.random.default_rng(0))))


def learned_from_one_batch(run):
    """The loss of the first batch, without dropout, and all gradients."""
    run.net.eval()
    loss = run._loss(first_batch(run))
    loss.backward()
    return loss.item(), {name: p.grad for name, p in run.net.named_parameters() if p.grad is not None}


@pytest.mark.skipif(
    not (shutil.which("g++") or shutil.which("clang++")), reason="no C++ compiler, which torch.compile needs here"
)
@pytest.mark.filterwarnings("ignore")  # torch's own, of itself
def test_a_compiled_net_has_the_loss_and_the_gradients_of_the_net_as_it_is(task, tmp_path):
    # As little as has every part: each kernel takes the compiler a second.
    changes = {"layers": 1, "transition": 0, "kinship_decays": (), "repeats": 0, "interests": 1, "item_dropout": 0.0}
    settings = tiny_settings()
    settings.model.update(changes)
    train = dataclasses.replace(settings.train, precision="float32", lanes=4, chunk=8)
    plain = Trainer(task, dataclasses.replace(settings, train=train), tmp_path / "plain")
    loss, gradients = learned_from_one_batch(plain)
    compiled = Trainer(task, dataclasses.replace(settings, train=dataclasses.replace(train, compile=True)), tmp_path / "compiled")
    frames = torch._dynamo.utils.counters["frames"]
    before = frames["ok"]
    found, grown = learned_from_one_batch(compiled)
    assert frames["ok"] > before  # else nothing was compiled, and all would be the same for nothing
    assert found == pytest.approx(loss, rel=1e-4)
    assert grown.keys() == gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(grown[name], gradient, rtol=1e-3, atol=1e-4, msg=name)


def test_what_large_asks_for_is_built_and_learns(task, tmp_path):
    large = load_settings("large")
    assert large.train.device == "auto"
    train = dataclasses.replace(
        large.train, lanes=2, chunk=8, valid_queries=8, warmup_steps=0, compile=False, precision="bfloat16"
    )
    run = Trainer(task, dataclasses.replace(large, train=train), tmp_path)
    assert (run.factor, run.net.config.width, run.net.config.layers) == (torch.bfloat16, 256, 2)
    run.net.train()
    batch = first_batch(run)
    losses = [run.step(batch) for _ in range(2)]
    assert all(math.isfinite(loss) for loss in losses)
    run.net.eval()
    assert run._loss(batch).item() < losses[0]
    assert np.isfinite(run._validate()).any()
