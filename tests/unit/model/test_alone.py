"""One training at a time in a folder."""

import os
import signal
import subprocess
import sys

import pytest
from tiny_run import TinyRun, tiny_settings
from typer.testing import CliRunner

import model.alone
from model.alone import alone
from model.benchmark.contenders import _trained
from model.checkpoint import load_checkpoint
from model.cli import app
from model.files import OutputError
from model.loop import CHECKPOINT
from model.task import load_task
from model.train import Trainer

HOLDER = """
import sys, time
from pathlib import Path
from model.alone import alone
with alone(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(model.alone, "PATIENCE_S", 0.0)


@pytest.mark.parametrize("option", ["--resume", "--overwrite", None])
def test_a_folder_in_which_another_process_trains_is_refused_and_untouched(tiny_run: TinyRun, tmp_path, impatient, option):
    words = ["train", str(tiny_run.data), "--out", str(tmp_path), *([option] if option else [])]
    (tmp_path / CHECKPOINT).write_bytes(b"of the other")
    (tmp_path / f".{CHECKPOINT}.1.tmp").write_bytes(b"what it is writing")
    with alone(tmp_path):
        result = CliRunner().invoke(app, words)
    assert result.exit_code == 2
    assert result.stderr.startswith(f"error: {tmp_path}: another process trains there; ")
    assert result.stderr.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == [f".{CHECKPOINT}.1.tmp", CHECKPOINT]


def test_a_folder_is_free_right_after_the_process_that_had_it_was_killed(tmp_path):
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "held\n"
        os.kill(holder.pid, signal.SIGKILL)
        with alone(tmp_path):
            pass


def test_of_a_training_that_wrote_nothing_no_folder_stays(tiny_run: TinyRun, tmp_path):
    result = CliRunner().invoke(app, ["train", str(tmp_path / "nothing"), "--out", str(tmp_path / "deep" / "run")])
    assert result.exit_code == 2
    assert "manifest.json: not there" in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_benchmark_leaves_a_run_to_the_process_that_trains_it(tmp_path, impatient):
    with alone(tmp_path), pytest.raises(OutputError, match="another process trains there"):
        _trained(tmp_path, lambda: pytest.fail("it is not built"), None)


def test_a_benchmark_takes_a_run_that_another_process_has_finished_since_it_looked(tiny_run: TinyRun):
    settings = tiny_settings(tiny_run.encoder)
    before = (tiny_run.run / CHECKPOINT).stat().st_mtime_ns
    task = load_task(tiny_run.data, settings.data)
    found = _trained(tiny_run.run, lambda: Trainer(task, settings, tiny_run.run), None)
    assert found.history == load_checkpoint(tiny_run.run / CHECKPOINT).history
    assert (tiny_run.run / CHECKPOINT).stat().st_mtime_ns == before
