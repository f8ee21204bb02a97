"""What products are computed in: by the setting, and by what the processor can do."""

import dataclasses

import pytest
import torch
from tiny_run import tiny_settings

from model.data.synthetic import synthetic_world
from model.precision import factors
from model.task import make_task
from model.train import Trainer


@pytest.mark.parametrize(
    ("precision", "found", "expected"),
    [
        ("auto", {"avx512_bf16": True}, torch.bfloat16),
        ("auto", {"avx512_bf16": False, "amx_bf16": True}, torch.bfloat16),
        ("auto", {"avx2": True, "avx512_bf16": False}, torch.float32),
        ("auto", {}, torch.float32),
        ("float32", {"avx512_bf16": True}, torch.float32),
        ("bfloat16", {}, torch.bfloat16),
    ],
)
def test_bfloat16_is_chosen_by_itself_only_where_the_processor_multiplies_it(precision, found, expected, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: found)
    assert factors(precision) == expected


def test_a_step_in_bfloat16_learns_nearly_the_same_and_leaves_weights_and_states_in_float32(tmp_path):
    settings = tiny_settings()
    task = make_task(synthetic_world("tiny").dataset, settings.data)
    gradients = {}
    for precision in ("float32", "bfloat16"):
        train = dataclasses.replace(settings.train, precision=precision)
        run = Trainer(task, dataclasses.replace(settings, train=train), tmp_path / precision)
        run.net.eval()  # no dropout
        loss = run._loss(next(run.batches(run.rng)))
        assert loss is not None
        torch.autograd.backward(loss)
        gradients[precision] = torch.cat([p.grad.flatten() for p in run.net.parameters() if p.grad is not None])
        tensors = [tensor for state in run.carried.state.values() for tensor in state.values()]
        assert tensors
        assert {t.dtype for t in (gradients[precision], *tensors) if t.is_floating_point()} == {torch.float32}
    apart = torch.linalg.norm(gradients["float32"] - gradients["bfloat16"]) / torch.linalg.norm(gradients["float32"])
    assert 0 < apart < 0.05
