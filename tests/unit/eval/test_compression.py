"""Compression on the smallest world: exported bundles are asked as the service asks, and the page says what they cost."""

import json
import warnings

import numpy as np
import pytest
from typer.testing import CliRunner

from model.assess import load_run
from model.benchmark import compression
from model.benchmark.compression import Variant
from model.benchmark.opened import Opened
from model.benchmark.page import section
from model.benchmark.results import read_compressions
from model.cli import app
from model.metrics import ndcg
from model.predict import ranked_lists


def test_an_opened_bundle_gives_the_lists_of_the_trainer(tiny_run, trained_bundle):
    checkpoint, task = load_run(tiny_run.run, tiny_run.data)
    queries, k = task.split.valid, task.split.k
    live = Opened(trained_bundle).lists(task, queries)
    offline = ranked_lists(checkpoint.net, task.inputs, task.seq, task.split, queries)
    assert len(np.unique(queries.user)) < len(queries)  # users are folded on, from question to question
    assert (live == offline).all(1).mean() > 0.95  # the others have neighbours whose scores differ by noise alone
    assert np.nanmean(ndcg(live, queries, k)) == pytest.approx(np.nanmean(ndcg(offline, queries, k)), abs=1e-3)


def test_every_way_of_exporting_is_measured_beside_the_plain_one(tiny_run, tmp_path, monkeypatch):
    monkeypatch.setattr(compression, "VARIANTS", (Variant(), Variant("int8", "int8"), Variant(dynamic=("step", "encode"))))
    words = ["compression", tiny_run.data, tiny_run.run, "--out", tmp_path, "--queries", 30, "--rounds", 4]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch's own, of the exporter that we use on purpose
        result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exit_code == 0, result.output
    (found,) = read_compressions(tmp_path)
    assert json.loads((tmp_path / "compression" / "data-run.json").read_text()) == found
    plain, rounded, dynamic = found["measured"]
    assert plain["against_first"]["mean"] == 0
    assert all(rounded["bytes"][f"{graph}.onnx"] < plain["bytes"][f"{graph}.onnx"] for graph in ("step", "encode", "interest"))
    assert dynamic["bytes"]["encode.onnx"] != plain["bytes"]["encode.onnx"]
    assert "items/scales.npy" in rounded["bytes"]
    assert rounded["bytes"]["items/vectors.npy"] < 0.4 * plain["bytes"]["items/vectors.npy"]
    for line in found["measured"]:
        assert abs(line["ndcg@20"] - plain["ndcg@20"]) < 0.05
        assert all(0 < spread["low"] <= spread["median"] <= spread["high"] for spread in line["microseconds"].values())
    text = section([], "figures", [], compressions=[found])
    assert "### data, compressed bundles, run run" in text
    assert "| run | float32 | dynamic: step, encode (not offered) |" in text
    assert text.count("| run | ") == 4  # the head, too


def test_what_cannot_be_exported_is_refused_and_nothing_written(tiny_run, tmp_path):
    words = ["compression", str(tiny_run.data), str(tmp_path / "none"), "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 2
    assert "no such checkpoint" in result.output
    assert list((tmp_path / "out").rglob("*.json")) == []
