"""The command that asks, platform by platform, whether going on from a general model there is worth it, on the smallest world."""

import json

import polars as pl
import pytest
from tiny_run import TinyRun
from typer.testing import CliRunner

from model.benchmark.page import section
from model.checkpoint import load_checkpoint
from model.cli import app
from model.data.build import with_events
from model.data.dataset import read_dataset, write_dataset
from model.ledger import read_ledger

TOML = (
    "[train]\nepochs = 2\nleast_steps = 0\nlanes = 16\nchunk = 32\nwarmup_steps = 5\nlearning_rate = 5e-3\nthreads = 1\n"
    "[model]\nwidth = 16\nheads = 2\nring = 8\nring_width = 8\naccumulator_width = 8\nrepeats = 16\nrepeat_hidden = 8\n"
)


def call(data, place, *options):
    (place / "mine.toml").write_text(TOML)
    words = ["measure-platforms", data, "--preset", place / "mine.toml", "--out", place / "out", "--work", place / "work"]
    return CliRunner().invoke(app, [*map(str, words), *options])


@pytest.fixture(scope="module")
def place(tmp_path_factory, tiny_run: TinyRun):
    """A folder with trained runs and the result of one call. What is called there again must not train."""
    folder = tmp_path_factory.mktemp("platforms")
    result = call(tiny_run.data, folder)
    assert result.exit_code == 0, result.output
    return folder


@pytest.fixture(scope="module")
def found(place):
    return json.loads((place / "out" / "platforms" / "data-mine-0.json").read_text())


def test_each_platform_is_asked_its_own_questions_of_all_three_and_of_the_baselines(found, tiny_run):
    dataset = read_dataset(tiny_run.data)
    assert found["data"]["fingerprint"] == dataset.manifest.fingerprint
    assert set(found["platforms"]) == {"app", "web"}
    for asked in found["platforms"].values():
        report = asked["report"]
        models = {"general", "fine-tuned", "there alone", "popularity", "recent popularity", "own frequency"}
        assert models <= set(report["models"])
        assert report["ours"] == "fine-tuned"
        against = report["comparisons"]["general"][f"ndcg@{found['k']}"]
        assert against["low"] <= against["mean"] <= against["high"]
        ours, general = (report["models"][model]["metrics"][f"ndcg@{found['k']}"]["mean"] for model in ("fine-tuned", "general"))
        assert against["mean"] == pytest.approx(ours - general, abs=1e-5)
    queries = [asked["report"]["queries"] for asked in found["platforms"].values()]
    assert min(queries) > 20
    assert queries[0] != queries[1]


def test_the_fine_tuned_begins_with_the_general_model_and_the_other_one_does_not(place, found):
    work = place / "work" / "data-mine-0"
    bundle = (work / "bundles" / "current").resolve().name
    for platform in ("app", "web"):
        tuned, alone = (load_checkpoint(work / f"{what},-{platform}" / "checkpoint.pt") for what in ("fine-tuned", "there-alone"))
        assert (tuned.settings["data"]["platform"], alone.settings["data"]["platform"]) == (platform, platform)
        assert tuned.settings["init_from"] == bundle
        assert "init_from" not in alone.settings
    assert load_checkpoint(work / "general" / "checkpoint.pt").settings["data"]["platform"] == ""


def test_every_look_at_the_test_part_is_noted(place, found):
    lines = read_ledger(place / "out" / "ledger.jsonl")
    assert [line["run"] for line in lines] == ["data-mine-0, app", "data-mine-0, web"]
    for line in lines:
        report = found["platforms"][line["run"].split(", ")[1]]["report"]
        assert (line["command"], line["part"], line["queries"]) == ("measure-platforms", "test", report["queries"])
        assert line["metrics"]["fine-tuned"]["ndcg@20"] == pytest.approx(
            report["models"]["fine-tuned"]["metrics"]["ndcg@20"]["mean"], abs=1e-5
        )


def test_what_is_trained_is_kept_and_says_the_same_again(place, found, tiny_run):
    stamps = {path: path.stat().st_mtime_ns for path in (place / "work").rglob("checkpoint.pt")}
    assert len(stamps) == 5
    assert call(tiny_run.data, place, "--out", str(place / "again")).exit_code == 0
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps
    again = json.loads((place / "again" / "platforms" / "data-mine-0.json").read_text())
    assert again["platforms"] == found["platforms"]


def test_the_page_has_a_line_for_each_platform_and_seed_and_the_means(found):
    other = json.loads(json.dumps(found | {"seed": 1}))
    other["platforms"]["web"]["report"]["comparisons"]["general"]["ndcg@20"]["mean"] += 0.02
    lines = section([], "figures", [], fine_tunings=[found, other]).splitlines()
    rows = [line.strip("| ").split(" | ") for line in lines if line.startswith("| ")]
    assert [tuple(row[:2]) for row in rows[2:]] == [(on, seed) for on in ("app", "web") for seed in ("0", "1", "mean")]
    assert len({len(row) for row in rows}) == 1
    report = found["platforms"]["web"]["report"]
    figure, against = report["models"]["general"]["metrics"]["ndcg@20"], report["comparisons"]["general"]["ndcg@20"]
    general, difference = rows[0].index("general"), rows[0].index("fine-tuned - general")
    assert rows[5][general] == f"{figure['mean']:.4f} ± {figure['standard_error']:.4f}"
    assert rows[5][difference].startswith(f"{against['mean']:+.4f} [{against['low']:+.4f}, {against['high']:+.4f}], p ")
    assert rows[7][difference] == f"{against['mean'] + 0.01:+.4f}"
    assert "### data, fine-tuned for a platform, preset mine" in lines


def test_where_there_is_no_choice_of_platforms_it_is_one_line(tiny_run, tmp_path):
    dataset = read_dataset(tiny_run.data)
    events = dataset.events.with_columns(pl.lit("web").alias("platform"))
    write_dataset(with_events(dataset, events), tmp_path / "data")
    said = call(tmp_path / "data", tmp_path)
    assert (said.exit_code, len(said.stderr.splitlines())) == (2, 1), said.output
    assert "has 1 platforms, expected two or more" in said.stderr


def test_a_platform_that_asks_nothing_is_one_line_before_anything_is_trained(tiny_run, tmp_path):
    dataset = read_dataset(tiny_run.data)
    late = dataset.events.get_column("timestamp").quantile(0.8)
    moved = pl.when(pl.col("timestamp") > late).then(pl.lit("app")).otherwise("platform").alias("platform")
    write_dataset(with_events(dataset, dataset.events.with_columns(moved)), tmp_path / "data")
    said = call(tmp_path / "data", tmp_path)
    assert (said.exit_code, len(said.stderr.splitlines())) == (2, 1), said.output
    assert "the validation part asks nothing on web" in said.stderr
    assert not (tmp_path / "work").exists()
    assert not (tmp_path / "out" / "platforms" / "data-mine-0.json").exists()
