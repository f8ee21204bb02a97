"""Where nets are trained: what is chosen, what is refused, and that what is kept can be read anywhere."""

import dataclasses
from collections import OrderedDict

import numpy as np
import pytest
import torch
from elsewhere import Elsewhere, elsewhere
from tiny_run import tiny_settings

from model.data.synthetic import synthetic_world
from model.device import DeviceError, device_of, on_cpu
from model.loop import CHECKPOINT
from model.nets import longwave
from model.precision import factors
from model.predict import ranked_lists, top_k
from model.task import make_task
from model.teach import teach
from model.teacher import ROWS
from model.train import Trainer


@pytest.fixture(scope="module")
def task():
    return make_task(synthetic_world("tiny").dataset, tiny_settings().data)


def with_train(**changes):
    settings = tiny_settings()
    return dataclasses.replace(settings, train=dataclasses.replace(settings.train, epochs=1, **changes))


def step_of(run, batch):
    run.net.eval()  # no dropout
    return run._loss(batch)


@pytest.mark.parametrize(
    ("asked", "there", "expected"),
    [("auto", True, "cuda:0"), ("auto", False, "cpu"), ("cpu", True, "cpu"), ("cuda", True, "cuda:0")],
)
def test_cuda_is_taken_where_there_is_one_unless_the_cpu_is_asked_for(asked, there, expected, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: int(there))
    assert device_of(asked) == torch.device(expected)


def test_cuda_where_there_is_none_is_refused_before_anything_is_built(task, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(DeviceError, match=r'train\.device = "cuda": torch sees no CUDA device; use "auto" or "cpu"'):
        Trainer(task, with_train(device="cuda"), tmp_path)


def test_each_process_has_a_device_of_its_own(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert device_of("auto") == torch.device("cuda", 1)
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(DeviceError, match=r"process 3 .* torch sees 2"):
        device_of("auto")


def test_bfloat16_is_chosen_on_cuda_by_what_the_device_can_do(monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)
    for fast in (True, False):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation, fast=fast: fast)
        assert factors("auto", torch.device("cuda")) == (torch.bfloat16 if fast else torch.float32)


def test_a_run_goes_on_whatever_device_and_compilation_it_was_begun_with(task, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(torch, "compile", lambda net: asked.append(net) or net)
    begun = Trainer(task, with_train(device="cpu", compile=True), tmp_path)
    assert asked == [begun.net]
    begun._keep(begun._kept(begun._resumable()))
    gone_on = Trainer(task, with_train(device="auto"), tmp_path)
    assert gone_on.resume()
    assert len(asked) == 1


def test_nothing_is_copied_that_is_on_the_cpu_already(task):
    tensor = torch.zeros(2)
    kept = on_cpu({"a": [tensor, OrderedDict(b=tensor)], "c": (0.9, 0.999)})
    assert kept["a"][0] is tensor
    assert kept["a"][1]["b"] is tensor
    assert kept["c"] == (0.9, 0.999)
    assert task.inputs.on(torch.device("cpu")) is task.inputs


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"negatives": 20, "interests": 1},
        {"mask_seen": True, "interests": 1, "smoothing": 0.1},
        {"precision": "bfloat16"},
        {"precision": "bfloat16", "interests": 1, "mask_seen": True},
        {"precision": "bfloat16", "along": True},
    ],
)
def test_a_step_and_a_validation_leave_nothing_on_the_cpu(changes, task, tmp_path, monkeypatch):
    """Without gradients: autograd asks torch's build for the device. Those of the softmax are made on the way forward."""
    if changes.get("along"):  # where nearly every moment of a long chunk is asked about
        monkeypatch.setattr(longwave, "BLOCK", 8)
    said = {key: value for key, value in changes.items() if key not in ("interests", "along")}
    settings = with_train(**{"precision": "float32"} | said)
    settings.model["interests"] = changes.get("interests", 2)
    here = Trainer(task, settings, tmp_path / "here")
    batches = [batch for batch, _ in zip(here.batches(here.rng), range(3), strict=False)]
    expected = [step_of(here, batch).item() for batch in batches]
    lists = ranked_lists(here.net, task.inputs, task.seq, task.split, task.split.valid)
    with torch.no_grad(), elsewhere(monkeypatch):
        there = Trainer(task, settings, tmp_path / "there")
        there.net.requires_grad_(False)
        assert all(isinstance(tensor, Elsewhere) for tensor in there.net.state_dict().values())
        assert [step_of(there, batch).item() for batch in batches] == pytest.approx(
            expected, rel=1e-4 if "precision" not in changes else 0.02
        )
        assert {type(each) for state in there.carried.state.values() for each in state.values()} == {Elsewhere}
        there._keep(there._kept({}))
        kept = torch.load(tmp_path / "there" / CHECKPOINT, weights_only=True)  # would refuse an `Elsewhere`
        assert all(type(tensor) is torch.Tensor for tensor in kept["weights"].values())
        asked = ranked_lists(there.net, task.inputs, task.seq, task.split, task.split.valid)
        assert (asked == lists).mean() > 0.99


def test_lists_break_ties_alike_on_any_device(monkeypatch):
    scores = torch.tensor([[1.0, 2.0, 2.0, -torch.inf, 2.0], [-torch.inf] * 5, [0.0] * 5])
    here = top_k(scores, 4)
    assert here.tolist() == [[1, 2, 4, 0], [-1] * 4, [0, 1, 2, 3]]
    with elsewhere(monkeypatch):
        assert top_k(Elsewhere(scores), 4).tolist() == here.tolist()


def test_teachers_say_the_same_on_any_device(tiny_run, tmp_path, monkeypatch):
    teach(tiny_run.data, [tiny_run.run], tmp_path / "here", top=5, device="cpu")
    with elsewhere(monkeypatch):
        teach(tiny_run.data, [tiny_run.run], tmp_path / "there", top=5, device="cuda")
    here, there = (np.load(tmp_path / place / ROWS) for place in ("here", "there"))
    assert (here == there).mean() > 0.99
