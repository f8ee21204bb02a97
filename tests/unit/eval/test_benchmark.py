"""The benchmark command on the smallest world: what is in a result, what is kept, and what is refused."""

import json
import shutil
from typing import get_type_hints

import pytest
from typer.testing import CliRunner

from model import endurance
from model.benchmark import commands, names
from model.benchmark.contenders import STARTED, _started
from model.benchmark.page import section
from model.benchmark.results import read_results
from model.cli import app
from model.data.importers.registry import SOURCES
from model.data.prepare import SYNTHETIC
from model.ledger import read_ledger
from model.loop import CHECKPOINT
from model.settings import PROTOCOLS, DataSettings, Settings

TOML = (
    "[train]\nepochs = 1\nleast_steps = 0\nlanes = 16\nthreads = 1\n[model]\nwidth = 16\nring = 4\nring_width = 8\nrepeats = 4\n"
    "[sasrec]\nwidth = 16\nlength = 20\n[gru4rec]\nwidth = 16\nlength = 20\n"
)


@pytest.fixture(scope="module", autouse=True)
def short_life():
    """What a hundred thousand events do to a state is not what is tested here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(endurance, "EVENTS", 1_000)
        yield


@pytest.fixture(scope="module")
def place(tmp_path_factory, tiny_run):
    """A folder with a preset, and one finished benchmark of the prepared tiny world. Do not write into it; copy it."""
    folder = tmp_path_factory.mktemp("benchmark")
    (folder / "mine.toml").write_text(TOML)
    shutil.copytree(tiny_run.data, folder / "tiny")
    result = call(folder, "--seed", "3")
    assert result.exit_code == 0, result.output
    return folder


@pytest.fixture
def copy(place, tmp_path):
    return shutil.copytree(place, tmp_path / "copy")


def call(folder, *options):
    words = ["benchmark", str(folder / "tiny"), "--preset", str(folder / "mine.toml"), "--out", str(folder / "out")]
    return CliRunner().invoke(app, [*words, "--work", str(folder / "work"), *options])


def test_a_result_says_all_that_a_figure_needs(place):
    text = (place / "out" / "tiny-mine-3.json").read_text()
    # A figure and its errors are one line.
    assert any(line.strip().startswith('"ndcg@20": { "mean": ') and "standard_error" in line for line in text.splitlines())
    result = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert (result["name"], result["preset"], result["seed"]) == ("tiny", "mine", 3)
    assert result["commit"].keys() == {"id", "dirty"}
    assert result["machine"].keys() >= {"cpu", "cores", "threads", "torch"}
    assert len(result["data"]["fingerprint"]) == 64
    (protocol,) = result["protocols"]
    found = result["protocols"][protocol]
    trained = found["trained"]["longwave"]
    assert trained["settings"]["train"]["seed"] == 3
    assert trained["settings"]["model"]["width"] == 16
    assert trained["settings"]["model"]["heads"] == 4  # the default, said too
    assert trained["parameters"] > 0
    assert trained["epochs"] == trained["best_epoch"] == 1
    assert "a long life: " in section(read_results(place / "out"), "figures", [])
    assert found["endurance"]["longwave"].keys() >= {"users", "whole", "last", "norm_early", "norm_late"}
    assert trained["commit"] == result["commit"]
    report = found["report"]
    assert report["fingerprint"] == result["data"]["fingerprint"]
    assert {"longwave", "popularity", "own frequency", "co-transition", "tifu-knn", "session kNN"} <= set(report["models"])
    assert report["models"]["longwave"]["metrics"]["ndcg@20"]["standard_error"] > 0
    assert report["comparisons"]["popularity"]["ndcg@20"]["p"] > 0


def test_the_look_at_the_test_part_is_in_the_ledger_beside_the_results(place):
    (entry,) = read_ledger(place / "out" / "ledger.jsonl")
    assert (entry["command"], entry["run"], entry["part"]) == ("benchmark", "tiny-mine-3", "test")
    assert entry["metrics"]["longwave"].keys() == {"hit_rate@10", "ndcg@10", "recall@20", "ndcg@20"}


def test_what_is_trained_is_not_trained_anew_and_measures_the_same(copy):
    run = next((copy / "work").rglob(CHECKPOINT))
    first, trained = json.loads((copy / "out" / "tiny-mine-3.json").read_text()), run.stat().st_mtime_ns
    result = call(copy, "--seed", "3")
    assert result.exit_code == 0
    assert "longwave trained, best validation ndcg@20 0." in result.stdout
    assert "sasrec" not in result.stdout
    assert run.stat().st_mtime_ns == trained
    again = json.loads((copy / "out" / "tiny-mine-3.json").read_text())
    (protocol,) = again["protocols"]
    for part in ("report", "trained"):
        assert again["protocols"][protocol][part] == first["protocols"][protocol][part]
    assert len(read_ledger(copy / "out" / "ledger.jsonl")) == 2
    assert call(copy, "--seed", "3", "--overwrite").exit_code == 0
    assert run.stat().st_mtime_ns > trained


def test_a_model_that_comes_later_is_measured_beside_those_that_are_trained(copy):
    run = next((copy / "work").rglob(CHECKPOINT))
    trained = run.stat().st_mtime_ns
    assert call(copy, "--seed", "3", "--model", "sasrec", "--model", "gru4rec").exit_code == 0
    assert run.stat().st_mtime_ns == trained
    result = json.loads((copy / "out" / "tiny-mine-3.json").read_text())
    (found,) = result["protocols"].values()
    assert list(found["trained"]) == ["longwave", "sasrec", "gru4rec"]
    assert len({each["parameters"] for each in found["trained"].values()}) == 3
    assert found["report"]["ours"] == "longwave"
    assert 0 < found["report"]["comparisons"]["sasrec"]["ndcg@20"]["p"] <= 1
    # What the net of another architecture is made of is no reason to train ours anew.
    (copy / "mine.toml").write_text(TOML.replace("[gru4rec]\nwidth = 16", "[gru4rec]\nwidth = 8"))
    assert call(copy, "--seed", "3", "--model", "gru4rec").exit_code == 2
    assert call(copy, "--seed", "3", "--model", "gru4rec", "--overwrite").exit_code == 0
    assert run.stat().st_mtime_ns == trained


def test_a_run_of_other_settings_is_refused_and_the_result_left_alone(copy):
    before = (copy / "out" / "tiny-mine-3.json").read_text()
    (copy / "mine.toml").write_text(TOML.replace("ring = 4", "ring = 5"))
    result = call(copy, "--seed", "3")
    assert result.exit_code == 2
    assert "of other data or settings" in result.stderr
    assert (copy / "out" / "tiny-mine-3.json").read_text() == before
    assert [path.name for path in (copy / "out").iterdir() if path.suffix == ".tmp"] == []


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["nowhere"], "nowhere: neither a benchmark (ml-1m"),
        (["ml-1m", "--data", "missing"], "missing: not there (--data)"),
        (["synthetic", "--preset", "grand"], "grand: neither a readable TOML file nor a preset"),
        (["synthetic", "--model", "oracle"], "oracle: no such model; known are longwave, sasrec, gru4rec"),
        (["synthetic", "--out", "file"], "file: cannot be made a folder"),
        (["synthetic", "--work", "file/work"], "file/work: cannot be made a folder"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(tmp_path, monkeypatch, options, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("mine")
    result = CliRunner().invoke(app, ["benchmark", *options])
    assert result.exit_code == 2
    assert len(result.stderr.strip().splitlines()) == 1
    assert said in result.stderr
    assert list(tmp_path.rglob("*.json")) == []
    assert (tmp_path / "file").read_text() == "mine"


def test_every_benchmark_is_of_data_and_protocols_that_exist():
    for benchmark in names.BENCHMARKS.values():
        assert benchmark.source in {**SOURCES, **SYNTHETIC}
        assert set(benchmark.protocols) <= set(PROTOCOLS)


def test_the_help_names_every_benchmark():
    argument = get_type_hints(commands.benchmark, include_extras=True)["name"].__metadata__[0]
    assert set(names.BENCHMARKS) <= set(argument.help.replace(",", "").split())


def test_leave_one_out_reads_items_alone_and_never_sees_the_time_of_asking():
    settings = Settings(DataSettings(text_encoder="minilm"), model={"query_time": True, "width": 8})
    assert names.as_asked(settings, "loo", 4).data == DataSettings(protocol="loo", items_only=True)
    assert names.as_asked(settings, "loo", 4).model == {"query_time": False, "width": 8}
    assert names.as_asked(settings, "loo", 4).train.seed == 4
    assert names.as_asked(settings, "time", None).model["query_time"]
    assert names.as_asked(settings, "time", None).data == DataSettings(protocol="time", text_encoder="minilm")


@pytest.mark.parametrize("text", ["[]", "{", "\udcff"])
def test_a_run_that_does_not_say_when_it_was_started_is_measured_all_the_same(tmp_path, text):
    (tmp_path / STARTED).write_text(text, errors="surrogateescape")
    assert _started(tmp_path) == {}
