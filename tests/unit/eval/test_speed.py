"""The speed command on the smallest world: every net is timed, in both precisions, and the page says so."""

import json

import numpy as np
import polars as pl
import pytest
from typer.testing import CliRunner

from model.benchmark.names import as_asked
from model.benchmark.page import section
from model.benchmark.results import read_speeds
from model.benchmark.speed import joined_histories
from model.cli import app
from model.data.dataset import read_dataset
from model.settings import load_settings
from model.task import make_task

TOML = (
    "[train]\nlanes = 4\nchunk = 16\nthreads = 1\n[model]\nwidth = 16\nring = 4\nring_width = 8\nrepeats = 4\n"
    "[sasrec]\nwidth = 16\n[gru4rec]\nwidth = 16\n"
)


def call(tiny_run, folder, *options):
    (folder / "mine.toml").write_text(TOML)
    words = ["speed", str(tiny_run.data), "--preset", str(folder / "mine.toml"), "--out", str(folder / "out"), "--steps", "2"]
    return CliRunner().invoke(app, [*words, *options])


def test_every_net_is_timed_in_both_precisions_at_every_length(tiny_run, tmp_path):
    result = call(tiny_run, tmp_path, "--length", "8", "--length", "60")
    assert result.exit_code == 0, result.output
    (speed,) = read_speeds(tmp_path / "out")
    assert json.loads((tmp_path / "out" / "speed" / "data-mine.json").read_text()) == speed
    lines = speed["measured"]
    assert {(line["model"], line["precision"], line["length"], line["histories"]) for line in lines} == {
        (model, precision, length, histories)
        for model in ("longwave", "sasrec", "gru4rec")
        for precision in ("float32", "bfloat16")
        for length in (8, 60)
        for histories in ("as they are", "joined")
    }
    assert all(0 < line["between"][0] <= line["targets_per_second"] <= line["between"][1] for line in lines)
    text = section([], "figures", [speed])
    assert "### data, training speed, preset mine" in text
    assert text.count("(ours ") == 16
    assert text.count("| **longwave** |") == 2


def test_joined_histories_have_one_length(tiny_run):
    dataset = read_dataset(tiny_run.data)
    joined = joined_histories(dataset, 60)
    sizes = joined.events.group_by("user_id").len().get_column("len")
    assert set(sizes) == {62}
    positive = dataset.events.filter(
        pl.col("type").is_in([t.name for t in dataset.manifest.event_types if t.polarity == "positive"])
    )
    assert len(sizes) == positive.height // 62
    settings = as_asked(load_settings("small"), "loo", 0)
    queries = make_task(joined, settings.data).train_queries
    assert set(np.bincount(queries.user)) == {60}


@pytest.mark.parametrize(
    ("options", "said"),
    [(("--preset", "none"), "none"), (("--length", "1"), "length"), (("--length", "10000000"), "not one history")],
)
def test_bad_input_writes_nothing(tiny_run, tmp_path, options, said):
    result = call(tiny_run, tmp_path, *options)
    assert result.exit_code == 2
    assert said in result.output
    assert not (tmp_path / "out").exists()
