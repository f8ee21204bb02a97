"""`longwave experiment`: what it prints, what machines get, and what it says to those who asked wrongly."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from experiment_archive import ExperimentWorld
from typer.testing import CliRunner

from app.cli import cli


def run(*words: object) -> tuple[int, str]:
    result = CliRunner().invoke(cli, ["experiment", *map(str, words)])
    return result.exit_code, result.output


def split(folder: Path, control: int, b: int) -> Path:
    """An archive with so many users in each arm, of whom every tenth clicks."""
    world = ExperimentWorld()
    for number in range(control + b):
        name = "control" if number < control else "b"
        world.shown(f"u{number}", name, f"L{number}", ["x"])
        if number % 10 == 0:
            world.event(f"u{number}", name, f"L{number}", "x")
    world.write(folder)
    return folder


@pytest.fixture(scope="module")
def fair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return split(tmp_path_factory.mktemp("fair"), 510, 490)


def test_a_split_that_cannot_be_chance_is_said_first_and_loudly(tmp_path: Path, fair: Path):
    shifted = split(tmp_path / "archive", 1_040, 960 - 100)
    code, said = run("home", "--archive-dir", shifted, "--expected", "control=0.5,b=0.5")
    assert code == 0
    assert "sample ratio mismatch" in said.splitlines()[0]
    assert "The comparison does not count" in said
    assert "Against control (does not count, see above)" in said
    code, said = run("home", "--archive-dir", fair, "--expected", "control=1,b=1")
    assert "Users by arm fit --expected: chi-square 0.40" in said
    assert "not count" not in said


def test_without_shares_it_says_that_the_arms_were_not_checked(fair: Path):
    code, said = run("home", "--archive-dir", fair)
    assert code == 0
    assert "was not checked: --expected or --experiment-file" in said
    assert "home, version 1; lists shown at any time, events within 24 h of that" in said


def test_machines_get_one_json_object_beside_the_tables_or_instead_of_them(fair: Path, tmp_path: Path):
    file = tmp_path / "report.json"
    code, said = run("home", "--archive-dir", fair, "--metric", "view,buy", "--window", "90m", "--json", file)
    assert (code, "Arms" in said) == (0, True)
    code, printed = run("home", "--archive-dir", fair, "--metric", "view", "--metric", "buy", "--window", "5400s", "--json", "-")
    told = json.loads(printed)
    assert (code, told) == (0, json.loads(file.read_text(encoding="utf-8")))
    assert (told["experiment"], told["versions"], told["metrics"], told["window_s"]) == ("home", [1], ["view", "buy"], 5400.0)
    control = told["arms"][0]
    assert (control["name"], control["users"], control["counts"]["view"]) == ("control", 510, {"lists": 51, "items": 51})
    assert control["rates"]["view"]["users"]["value"] == pytest.approx(0.1)
    assert {"arm", "metric", "measure", "difference", "low", "high", "lift", "lift_low", "lift_high", "p", "p_holm"} <= set(
        told["comparisons"][0]
    )


def test_the_experiments_own_file_says_shares_and_control(fair: Path, tmp_path: Path):
    file = tmp_path / "home.json"
    arms = [{"name": "b", "share": 1, "scenario": "new"}, {"name": "control", "share": 1}]
    resource = {"name": "home", "version": 1, "arms": arms, "holdout": 0, "salt": "home", "stopped": False}
    file.write_text(json.dumps(resource), encoding="utf-8")
    code, said = run("home", "--archive-dir", fair, "--experiment-file", file, "--json", "-")
    told = json.loads(said)
    assert (code, told["control"], told["sample_ratio"]["expected"]) == (0, "b", {"b": 0.5, "control": 0.5})
    file.write_text(json.dumps(resource | {"holdout": 0.2}), encoding="utf-8")
    told = json.loads(run("home", "--archive-dir", fair, "--experiment-file", file, "--json", "-")[1])
    assert told["sample_ratio"]["expected"] == pytest.approx({"b": 0.4, "control": 0.4, "holdout": 0.2})
    assert told["sample_ratio"]["mismatch"]
    for changed, words in (
        ({"version": 2, "stopped": True}, "has no list of that one; GET /v1/experiments/home?version=1 gives the other"),
        ({"name": "cart"}, "'cart', not 'home'"),
    ):
        file.write_text(json.dumps(resource | changed), encoding="utf-8")
        code, said = run("home", "--archive-dir", fair, "--experiment-file", file)
        assert (code, words in said) == (2, True)
    for broken in ("{", '{"name": "home"}', json.dumps(resource | {"arms": []}), json.dumps(resource | {"holdout": 1})):
        file.write_text(broken, encoding="utf-8")
        assert run("home", "--archive-dir", fair, "--experiment-file", file)[0] == 2
    assert run("home", "--archive-dir", fair, "--experiment-file", tmp_path / "none.json")[0] == 2


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--since", "yesterday"], "--since: expected a time"),
        (["--until", "2026-13-01"], "--until: expected a time"),
        (["--since", "2026-11-02", "--until", "2026-11-02T00:00:00Z"], "--until: expected a time after --since"),
        (["--window", "0h"], "--window: expected a time above 0"),
        (["--window", "1 week"], "--window: expected a time above 0"),
        (["--metric", "view,,buy"], "--metric: expected event types"),
        (["--expected", "control"], "--expected: 'control' is no arm with a share"),
        (["--expected", "control=1,b=0"], "--expected: 'b=0' is no arm with a share"),
        (["--expected", "control=1,b=nan"], "is no arm with a share"),
        (["--expected", "control=1,b=1e-300"], "the share of the arm 'b' is next to nothing"),
        (["--expected", "control=1e308,b=1e308"], "is next to nothing"),
        (["--expected", "b=1,b=2"], "the arm 'b' is there twice"),
        (["--expected", "control=1"], "no share of the arm 'b'"),
        (["--expected", "b=1", "--experiment-file", "x"], "cannot both be"),
        (["--version", "1", "--all-versions"], "cannot both be"),
        (["--version", "7"], "there is no 7 of 'home'; there are 1"),
        (["--control", "c"], "there is no arm 'c'; there are b, control"),
        (["--clip", "0.5"], "--clip: expected a weight of at least 1"),
        (["--policy", "none.csv"], "none.csv: cannot be read"),
        (["--json", "/nowhere/at/all.json"], "/nowhere/at/all.json cannot be written"),
    ],
)
def test_what_was_asked_wrongly_is_one_line_that_names_it(fair: Path, options: list[str], said: str):
    code, output = run("home", "--archive-dir", fair, *options)
    assert code == 2
    assert said in output
    assert len(output.splitlines()) == 1


def test_a_name_that_is_not_there_is_answered_with_those_that_are(fair: Path, tmp_path: Path):
    code, said = run("Home", "--archive-dir", fair)
    assert (code, "it has 'home'" in said) == (2, True)
    code, said = run("home", "--archive-dir", tmp_path / "none")
    assert (code, "no archive is there" in said) == (2, True)
