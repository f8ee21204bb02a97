"""Comparing runs on the validation part."""

import dataclasses
import json

import pytest
import torch
from tiny_run import TinyRun, tiny_settings
from typer.testing import CliRunner

from model.checkpoint import load_checkpoint, save_checkpoint
from model.cli import app
from model.loop import CHECKPOINT
from model.task import load_task
from model.train import Trainer


@pytest.fixture
def spoiled(tiny_run: TinyRun, tmp_path):
    """The same run, but for item vectors that say something else and one setting."""
    checkpoint = load_checkpoint(tiny_run.run / CHECKPOINT)
    with torch.no_grad():
        checkpoint.net.item.id.weight.normal_(std=3.0, generator=torch.Generator().manual_seed(0))
    checkpoint.settings["train"]["learning_rate"] = 7.0
    save_checkpoint(checkpoint, tmp_path / "spoiled" / CHECKPOINT)
    return tmp_path / "spoiled"


def call(tiny_run, *words):
    return CliRunner().invoke(app, ["compare", str(tiny_run.data), *map(str, words)], env={"COLUMNS": "200"})


def test_a_run_is_held_to_the_first_on_the_same_queries(tiny_run: TinyRun, spoiled, tmp_path):
    out = tmp_path / "ablations" / "tiny.json"
    result = call(tiny_run, tiny_run.run, spoiled, "--out", out)
    assert result.exit_code == 0, result.output
    assert "spoiled" in result.output
    found = json.loads(out.read_text())
    first, other = found["runs"]
    history = load_checkpoint(tiny_run.run / CHECKPOINT).history
    assert first["ndcg"]["mean"] == pytest.approx(max(epoch["valid_ndcg"] for epoch in history), rel=1e-5)
    assert first["settings"] == {}
    assert first["against"] is None
    assert other["settings"] == {"train.learning_rate": 7.0}
    assert other["against"]["mean"] == pytest.approx(other["ndcg"]["mean"] - first["ndcg"]["mean"], abs=1e-5)
    assert other["against"]["mean"] < 0
    assert (found["part"], found["name"]) == ("valid", "data")


def test_each_run_is_asked_with_the_texts_that_it_was_trained_with(tiny_run: TinyRun, tmp_path):
    settings = tiny_settings()
    settings = dataclasses.replace(settings, train=dataclasses.replace(settings.train, epochs=1))
    Trainer(load_task(tiny_run.data, settings.data), settings, tmp_path / "without").run()
    out = tmp_path / "both.json"
    result = call(tiny_run, tmp_path / "without", tiny_run.run, "--out", out)
    assert result.exit_code == 0, result.output
    checkpoint = load_checkpoint(tiny_run.run / CHECKPOINT)
    assert checkpoint.item_text is not None
    best = max(epoch["valid_ndcg"] for epoch in checkpoint.history)
    told = json.loads(out.read_text())["runs"][1]
    assert told["ndcg"]["mean"] == pytest.approx(best, rel=1e-5)
    assert told["settings"]["data.text_encoder"] == checkpoint.settings["data"]["text_encoder"]


def test_a_run_that_was_told_items_alone_is_asked_the_same(tiny_run: TinyRun, tmp_path):
    settings = tiny_settings()
    data = dataclasses.replace(settings.data, text_encoder="", items_only=True)
    settings = dataclasses.replace(settings, data=data, train=dataclasses.replace(settings.train, epochs=1))
    history = Trainer(load_task(tiny_run.data, data), settings, tmp_path / "ids").run().history
    out = tmp_path / "both.json"
    result = call(tiny_run, tiny_run.run, tmp_path / "ids", "--out", out)
    assert result.exit_code == 0, result.output
    ids = json.loads(out.read_text())["runs"][1]
    assert ids["settings"]["data.items_only"] is True
    assert ids["ndcg"]["mean"] == pytest.approx(history[0]["valid_ndcg"], rel=1e-5)


def test_a_run_from_before_a_key_of_data_was_cut_by_its_default(tiny_run: TinyRun, spoiled, tmp_path):
    older = load_checkpoint(spoiled / CHECKPOINT)
    del older.settings["data"]["platform"]
    save_checkpoint(older, spoiled / CHECKPOINT)
    result = call(tiny_run, tiny_run.run, spoiled)
    assert result.exit_code == 0, result.output


def test_auto_is_the_protocol_that_it_stands_for(tiny_run: TinyRun, spoiled, tmp_path):
    named = load_checkpoint(spoiled / CHECKPOINT)
    assert named.settings["data"]["protocol"] == "auto"
    named.settings["data"]["protocol"] = "basket"
    save_checkpoint(named, spoiled / CHECKPOINT)
    result = call(tiny_run, tiny_run.run, spoiled)
    assert result.exit_code == 0, result.output
    named.settings["data"]["protocol"] = "time"
    save_checkpoint(named, spoiled / CHECKPOINT)
    assert call(tiny_run, tiny_run.run, spoiled).exit_code == 2


def test_a_neural_baseline_is_compared_too(tiny_run: TinyRun, tmp_path):
    (tmp_path / "mine.toml").write_text("[train]\nepochs = 1\nleast_steps = 0\nthreads = 1\n[sasrec]\nwidth = 16\nlength = 20\n")
    words = ["benchmark", tiny_run.data, "--preset", tmp_path / "mine.toml", "--model", "sasrec", "--out", tmp_path / "out"]
    done = CliRunner().invoke(app, [*map(str, words), "--work", str(tmp_path / "work")])
    assert done.exit_code == 0, done.output
    (run,) = (tmp_path / "work").glob("*/*/sasrec")
    result = call(tiny_run, run, run)
    assert result.exit_code == 0, result.output
    assert "1.00" in result.output


@pytest.mark.parametrize("case", ["missing", "damaged", "cut otherwise"])
def test_what_cannot_be_compared_is_one_line(tiny_run: TinyRun, spoiled, tmp_path, case):
    other = {"missing": tmp_path / "nowhere"}.get(case, spoiled)
    if case == "damaged":
        (spoiled / CHECKPOINT).write_bytes(b"no checkpoint")
    if case == "cut otherwise":
        checkpoint = load_checkpoint(spoiled / CHECKPOINT)
        checkpoint.settings["data"]["test_quantile"] = 0.8
        save_checkpoint(checkpoint, spoiled / CHECKPOINT)
    result = call(tiny_run, tiny_run.run, other)
    assert result.exit_code == 2
    assert len(result.stderr.strip().splitlines()) == 1
    assert str(other) in result.stderr
