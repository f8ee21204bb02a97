"""torchrun with two processes: the same training as with one."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny_run import TinyRun

from model.alone import alone
from model.checkpoint import load_checkpoint
from model.loop import CHECKPOINT

TOML = """
[train]
epochs = 2
least_steps = 0
lanes = 16
chunk = 32
warmup_steps = 5
learning_rate = 5e-3
threads = 1
precision = "float32"
[model]
width = 16
heads = 2
ring = 8
ring_width = 8
repeats = 16
dropout = 0.0
id_dropout = 0.0
"""


@pytest.fixture(scope="module")
def runs(tiny_run: TinyRun, tmp_path_factory):
    """The same training by one process and by two."""
    folder = tmp_path_factory.mktemp("processes")
    (folder / "preset.toml").write_text(TOML)
    for name, processes in (("one", 1), ("two", 2)):
        done = train(tiny_run.data, folder, name, processes)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("2 epochs, best validation") == 1  # only one of them speaks
    return folder


def train(data: Path, folder: Path, name: str, processes: int, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m"]
    if processes > 1:
        command += ["torch.distributed.run", "--standalone", "--nproc-per-node", str(processes), "-m"]
    words = ["model.cli", "train", str(data), "--config", str(folder / "preset.toml"), "--out", str(folder / name)]
    return subprocess.run([*command, *words, *options], capture_output=True, text=True, timeout=240)


def test_two_processes_learn_what_one_does(runs):
    one, two = (load_checkpoint(runs / name / CHECKPOINT) for name in ("one", "two"))
    for epoch, other in zip(one.history, two.history, strict=True):
        assert other["loss"] == pytest.approx(epoch["loss"], rel=1e-4)
        assert other["valid_ndcg"] == pytest.approx(epoch["valid_ndcg"], rel=0.02)
    weights, found = one.net.state_dict(), two.net.state_dict()
    moved = torch.cat([(found[name] - weights[name]).flatten() for name in weights])
    size = torch.cat([weights[name].flatten() for name in weights])
    assert torch.linalg.norm(moved) < 0.01 * torch.linalg.norm(size)


def test_a_folder_that_holds_a_run_is_refused_by_all(runs, tiny_run: TinyRun):
    refused = train(tiny_run.data, runs, "two", 2)
    assert refused.returncode != 0
    assert "holds a run" in refused.stderr
    assert json.dumps(load_checkpoint(runs / "two" / CHECKPOINT).history)


def test_a_folder_in_which_others_train_is_refused_by_all(runs, tiny_run: TinyRun):
    with alone(runs / "two"):
        refused = train(tiny_run.data, runs, "two", 2, "--resume")
    assert refused.returncode != 0
    assert refused.stderr.count("another process trains there") == 2
