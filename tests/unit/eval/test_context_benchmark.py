"""Popularity in context, offline: against the formula, and on worlds whose truth is known."""

import dataclasses
import json

import numpy as np
import polars as pl
import pytest
from random_world import random_world
from typer.testing import CliRunner

from model.baselines.context_popularity import ContextCounts
from model.benchmark.context import CHOSEN, PLAIN, SERVED, first_questions, measure_context
from model.cli import app
from model.data.build import build_dataset
from model.data.clean import CleaningReport
from model.data.dataset import to_sequences, write_dataset
from model.data.schema import EventType
from model.errors import TrainerError
from model.loop import COLD
from model.publish import read_cold

DAY = 86_400_000
START = 1_300_000_000_000


def counts_of(events, items=4, days=10.0):
    """Counts of (item, value, days ago) as of START."""
    seq = random_world(0)
    table = np.asarray([(item, value, START - int(ago * DAY)) for item, value, ago in events])
    seq = dataclasses.replace(
        seq,
        item_ids=[f"i{item}" for item in range(items)],
        offsets=np.asarray([0, len(events)]),
        user_ids=["u"],
        item=table[:, 0].astype(np.int32),
        type=np.zeros(len(events), np.int32),
        time=table[:, 2],
        basket=np.zeros(len(events), np.int32),
    )
    counts = ContextCounts(seq, [table[:, 1].astype(np.int32)], [days])
    counts.observe(0, len(events))
    return counts


def test_lifts_are_those_of_the_formula():
    counts = counts_of([(0, 1, 0), (0, 1, 10), (1, 2, 0), (1, 1, 20), (2, 0, 0)])
    own = np.asarray([1.5, 0.25, 0, 0])
    share = np.asarray([1.5, 1.25, 1, 0]) / 3.75
    expected = (own[:3] + 5 * share[:3]) / (own.sum() + 5) / share[:3]
    found = np.exp(counts.log_lift([1], 10.0, [5.0], START))
    np.testing.assert_allclose(found[:3], expected)
    # Of what nobody used nothing is known.
    assert found[3] == pytest.approx(5 / (own.sum() + 5))


@pytest.mark.parametrize("value", [0, 3])
def test_a_value_that_is_missing_or_new_lifts_nothing(value):
    np.testing.assert_array_equal(counts_of([(0, 1, 0), (1, 2, 0)]).log_lift([value], 10.0, [5.0], START), np.zeros(4))


def test_items_beyond_those_kept_share_what_is_left():
    counts = counts_of([(0, 1, 0)] * 9 + [(1, 1, 0)] + [(2, 1, 0)] * 2 + [(1, 2, 0)] * 3)
    found = np.exp(counts.log_lift([1], 10.0, [5.0], START, kept=1))
    rest = 3 / (6 / 15)
    np.testing.assert_allclose(found, [(9 / (9 / 15) + 5) / 17] + [(rest + 5) / 17] * 3)


def world(users=3000, places=("here", "there"), taste=True):
    """Users who come once, two thirds of them here; with `taste` those of each place like the items of that place."""
    rng = np.random.default_rng(0)
    place = np.where(rng.random(users) < 2 / 3, *places)
    item = rng.integers(0, 30, users) + np.where((place == places[1]) & taste, 30, 0)
    events = pl.DataFrame(
        {
            "user_id": [f"u{n}" for n in range(users)],
            "item_id": [f"i{row}" for row in item],
            "type": "view",
            "timestamp": START + np.arange(users) * 600_000,
        }
    )
    return build_dataset(
        events,
        CleaningReport(users, users, []),
        name="world",
        source="made up",
        licence="none",
        event_types=[EventType(name="view")],
        users=pl.DataFrame({"user_id": events["user_id"], "country": place}),
    )


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """A function from whether places have tastes to what was measured."""

    def measure(taste):
        folder = tmp_path_factory.mktemp("context")
        write_dataset(world(taste=taste), folder / "world")
        path = measure_context(str(folder / "world"), ["country"], folder / "out")
        assert path == folder / "out" / "context" / "world.json"
        return json.loads(path.read_text())

    return measure


def test_places_with_tastes_of_their_own_gain_and_the_questions_are_parted_in_time(measured):
    found = measured(True)
    reported = found["contexts"]["country"]["reported"]
    for name in (SERVED, CHOSEN):
        assert reported["elsewhere"]["comparisons"][name]["recall@20"]["low"] > 0
    assert reported["elsewhere"]["models"][PLAIN]["recall@20"]["mean"] < 0.2  # the first 20 are those of the others
    assert reported["elsewhere"]["questions"] == pytest.approx(reported["all"]["questions"] / 3, rel=0.2)
    assert found["questions"] == {"choosing": 900, "reporting": 900}
    moments = found["moments_ms"]
    assert moments["choosing_from"] < moments["reporting_from"] < moments["until"]


def test_places_without_tastes_gain_nothing(measured):
    compared = measured(False)["contexts"]["country"]["reported"]["all"]["comparisons"][SERVED]["ndcg@20"]
    assert compared["low"] < 0.01
    assert abs(compared["mean"]) < 0.02


def test_only_the_first_visit_is_asked_and_nothing_from_the_test_part_on():
    seq = to_sequences(world(users=200))
    queries, (first, middle, last) = first_questions(seq, "time")
    assert (queries.position == seq.offsets[queries.user]).all()
    assert ((queries.as_of >= first) & (queries.as_of < last)).all()
    assert first < middle < last


def test_a_facet_that_is_none_is_refused_by_name(tmp_path):
    write_dataset(world(users=60), tmp_path / "world")
    with pytest.raises(TrainerError, match=r"no facet 'planet'.*country"):
        measure_context(str(tmp_path / "world"), ["planet"], tmp_path)
    with pytest.raises(TrainerError, match="at least one facet"):
        measure_context(str(tmp_path / "world"), [], tmp_path)
    assert not (tmp_path / "context" / "world.json").exists()


def test_a_blend_is_measured_on_the_validation_part_and_goes_with_the_run_only_where_it_helps(tiny_run, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "checkpoint.pt").write_bytes((tiny_run.run / "checkpoint.pt").read_bytes())
    (run / COLD).write_text('{"of": "another time"}')
    name = next(iter(json.loads((tiny_run.data / "manifest.json").read_text())["user_attributes"]))
    words = ["measure-cold", str(tiny_run.data), "--run", str(run), "--facet", name, "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    (path,) = (tmp_path / "out" / "context").glob("*-blend.json")
    found = json.loads(path.read_text())
    assert found["part"] == "valid"
    assert found["questions"]["choosing"] > 0 < found["questions"]["reporting"]
    assert found["after"].keys() == {"1", "2", "3", "5", "7", "10"}
    for after in found["after"].values():
        for decided in after.values():
            ndcg = next(name for name in decided["all"] if name.startswith("ndcg"))
            best = max(decided["choosing"], key=lambda one, ndcg=ndcg: one[ndcg])
            assert best[ndcg] == next(one for one in decided["choosing"] if one["weight"] == decided["chosen"])[ndcg]
    assert read_cold(run) == found["cold"]
