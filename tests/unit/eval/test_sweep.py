"""Many settings of one net, from one file, on the validation part."""

import json

import pytest
from tiny_run import TinyRun
from typer.testing import CliRunner

from model.benchmark.sweep import read_sweep
from model.checkpoint import load_checkpoint
from model.cli import app
from model.loop import CHECKPOINT

SHORT = """
[all.train]
epochs = 1
least_steps = 0
lanes = 16

[all.model]
width = 16
ring = 4
ring_width = 8
accumulator_width = 4

[all.gru4rec]
width = 8
"""


@pytest.fixture
def asked(tmp_path):
    """Write a file and sweep it."""

    def ask(text: str, *words):
        (tmp_path / "widths.toml").write_text(text)
        places = ["--out", tmp_path / "out", "--work", tmp_path / "work"]
        return CliRunner().invoke(app, ["sweep", *map(str, [tmp_path / "widths.toml", *places, *words])], env={"COLUMNS": "200"})

    return ask


def test_every_run_is_trained_and_held_to_the_first(tiny_run: TinyRun, asked, tmp_path):
    runs = "[runs.first]\n[runs.wide.model]\nwidth = 24\n[runs.smooth.train]\nsmoothing = 0.1\n"
    result = asked(f'benchmark = "{tiny_run.data}"\nseed = 3\n{SHORT}{runs}')
    assert result.exit_code == 0, result.output
    found = json.loads((tmp_path / "out" / "widths.json").read_text())
    assert [each["run"] for each in found["runs"]] == ["first", "wide", "smooth"]
    assert [each["settings"] for each in found["runs"]] == [{}, {"model.width": 24}, {"train.smoothing": 0.1}]
    assert found["runs"][0]["against"] is None
    for each in found["runs"]:
        assert found["trained"][each["run"]]["valid_ndcg"] == pytest.approx(each["ndcg"]["mean"], rel=1e-5)
        assert load_checkpoint(tmp_path / "work" / "widths" / each["run"] / CHECKPOINT).settings["train"]["seed"] == 3
        assert found["trained"][each["run"]]["machine"]["cpu"]
    assert found["part"] == "valid"


def test_runs_trained_elsewhere_are_taken_up_as_they_are(tiny_run: TinyRun, asked, tmp_path):
    text = f'benchmark = "{tiny_run.data}"\nnet = "gru4rec"\n{SHORT}[runs.first]\n[runs.second.gru4rec]\ndropout = 0.5\n'
    result = asked(text, "--only", "second")
    assert result.exit_code == 0, result.output
    assert not (tmp_path / "out" / "widths.json").exists()
    assert not (tmp_path / "work" / "widths" / "first").exists()
    trained = (tmp_path / "work" / "widths" / "second" / CHECKPOINT).stat().st_mtime_ns
    assert asked(text).exit_code == 0
    assert (tmp_path / "work" / "widths" / "second" / CHECKPOINT).stat().st_mtime_ns == trained
    found = json.loads((tmp_path / "out" / "widths.json").read_text())
    assert [each["settings"] for each in found["runs"]] == [{}, {"model.dropout": 0.5}]
    changed = asked(text.replace("0.5", "0.6"))
    assert changed.exit_code == 2
    assert "second" in changed.output
    assert "other data or settings" in changed.output
    assert "--overwrite" not in changed.output  # which a sweep has not


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[runs.a]\n", "benchmark is missing"),
        ('benchmark = "not-trained"\n', "no [runs.NAME]"),
        ('benchmark = "not-trained"\n[runs]\na = 3\n', "runs.a must be tables of keys, got 3"),
        ('benchmark = "not-trained"\n[runs.a]\nmodel = 3\n', "runs.a.model must be a table of keys, got 3"),
        ('benchmark = "not-trained"\n[runs.a.model]\nwidht = 3\n', "unknown key model.widht"),
        ('benchmark = "not-trained"\n[runs.a.modle]\nwidth = 3\n', "unknown table [modle]"),
        ('benchmark = "not-trained"\n[runs."../a"]\n', "runs.'../a' must name a folder"),
        ('benchmark = "not-trained"\n[runs.".."]\n', "runs.'..' must name a folder"),
        ('benchmark = "not-trained"\n[runs.""]\n', "runs.'' must name a folder"),
        ('benchmark = "not-trained"\n[runs."a\\u0000"]\n', "must name a folder"),
        (f'benchmark = "not-trained"\n[runs.{"a" * 300}]\n', "in at most 60 characters"),
        ('benchmark = "not-trained"\npreset = "a\\u0000"\n[runs.a]\n', "not TOML: embedded null"),
        ('benchmark = "not-trained"\npreset = "huge"\n[runs.a]\n', "huge: neither a readable TOML file nor a preset"),
        ('benchmark = "not-trained"\nnet = "bert"\n[runs.a]\n', "net must be one of longwave, sasrec, gru4rec, got 'bert'"),
        ('benchmark = "not-trained"\nseed = "0"\n[runs.a]\n', "seed must be of type int, got '0'"),
        ('benchmark = "not-trained"\nseed = -1\n[runs.a]\n', "runs.a: train.seed must be a whole number"),
        ('benchmark = "not-trained"\nseeds = 0\n[runs.a]\n', "unknown key seeds"),
        ('benchmark = "not-trained"\nnet = "sasrec"\n[runs.a.model]\nwidth = 8\n', "runs.a.model says nothing to sasrec"),
        ('benchmark = "not-trained"\n[runs.a.sasrec]\nwidth = 8\n', "runs.a.sasrec says nothing to longwave"),
        ('benchmark = "not-trained"\nnet = "sasrec"\n[runs.a.train]\nlanes = 8\n', "runs.a.train.lanes says nothing to sasrec"),
        ('benchmark = "nothing"\n[runs.a]\n', "nothing: neither a benchmark"),
        ('benchmark = "ml-100k"\n[runs.a]\n', "benchmark must be one that is asked in one way, for all items, got 'ml-100k'"),
        ('benchmark = "synthetic-cold"\n[runs.a]\n', "got 'synthetic-cold'"),
        ("benchmark = \n", "not TOML"),
    ],
)
def test_a_file_that_cannot_be_swept_is_refused_before_anything_is_trained(asked, tmp_path, text, said):
    result = asked(text)
    assert result.exit_code == 2
    assert said in " ".join(result.output.split())
    assert not (tmp_path / "out" / "widths.json").exists()
    assert not list((tmp_path / "work").glob("*/*")) if (tmp_path / "work").exists() else True


def test_a_preset_that_is_none_is_refused(asked, tmp_path):
    (tmp_path / "odd.toml").write_text("train = 3\n")
    result = asked(f'benchmark = "not-trained"\npreset = "{tmp_path / "odd.toml"}"\n[runs.a]\n')
    assert result.exit_code == 2
    assert "no table but 3" in " ".join(result.output.split())


def test_runs_that_could_not_be_compared_are_refused_before_they_are_trained(tiny_run: TinyRun, asked, tmp_path):
    text = f'benchmark = "{tiny_run.data}"\n{SHORT}[runs.first]\n[runs.second.data]\nmin_item_events = 2\n'
    for words in ((), ("--only", "second")):
        result = asked(text, *words)
        assert result.exit_code == 2
        assert "runs.second is asked in another way than runs.first" in " ".join(result.output.split())
    assert not list((tmp_path / "work").glob("*/*"))


def test_a_seed_is_that_of_the_run_else_of_all_else_of_the_file(tmp_path):
    path = tmp_path / "seeds.toml"
    for said, expected in (("", 0), ("seed = 3\n", 3), ("[all.train]\nseed = 5\n", 5), ("seed = 3\n[all.train]\nseed = 5\n", 5)):
        path.write_text(f'benchmark = "not-trained"\n{said}[runs.a]\n[runs.b.train]\nseed = 7\n')
        assert [run.train.seed for run in read_sweep(path).settings.values()] == [expected, 7]


def test_a_run_that_is_not_in_the_file_is_named(asked):
    result = asked('benchmark = "not-trained"\n[runs.a]\n[runs.b]\n', "--only", "c")
    assert result.exit_code == 2
    assert "no run c; it has a, b" in " ".join(result.output.split())
