import dataclasses
import json
import math
import os

import numpy as np
import pytest

from model.data.splits import leave_one_out, next_basket, select
from model.evaluate import baseline_lists, check_lists, evaluate, history_buckets, summarise, training_counts
from model.files import OutputError
from model.intervals import UserBootstrap
from model.report import to_json, to_markdown, write_report


@pytest.fixture
def measured(world):
    seq = world(7, users=60)
    split = next_basket(seq, 0.7, 0.4)
    lists, settings, _ = baseline_lists(seq, split, k=6)
    vectors = np.random.default_rng(0).normal(size=(seq.items, 4))
    report = evaluate(
        seq,
        split,
        lists,
        dataset="World",
        ours="own frequency",
        settings=settings,
        ks=(3, 6),
        item_vectors=vectors,
        resamples=200,
    )
    return seq, split, lists, report


def test_micro_counts_queries_and_macro_counts_users():
    estimate = UserBootstrap(np.array([0, 0, 0, 7])).estimate(np.array([1.0, 1.0, 1.0, 0.0]))
    assert (estimate.mean, estimate.per_user) == (0.75, 0.5)


def test_queries_without_a_value_are_left_out():
    estimate = UserBootstrap(np.array([0, 1, 2])).estimate(np.array([1.0, np.nan, 0.0]))
    assert (estimate.mean, estimate.per_user) == (0.5, 0.5)
    nothing = UserBootstrap(np.array([0])).estimate(np.array([np.nan]))
    assert math.isnan(nothing.mean)
    assert nothing.low is None


@pytest.mark.parametrize("other", [0.5, np.nan])
def test_one_user_alone_says_nothing_of_how_sure_a_figure_is(other):
    user, values = np.array([3, 3, 3, 9]), np.array([1.0, 0.5, 1.0, other])
    one = np.isnan(other)  # a user without a value is none
    bootstrap, against = UserBootstrap(user), np.array([0.5, 0.5, 0.5, 0.25])
    difference = bootstrap.difference(values, against)
    assert (difference.p == 1) == one
    for found in (bootstrap.estimate(values), difference, bootstrap.ratio(values, against)):
        assert (found.low is None, found.high is None) == (one, one)
        assert found.mean > 0


def test_a_report_on_one_user_is_written_without_intervals(world, tmp_path):
    seq = world(2, users=20)
    split = leave_one_out(seq)
    split = dataclasses.replace(split, test=select(split.test, np.arange(1)))
    lists, _, _ = baseline_lists(seq, split, k=5)
    report = evaluate(seq, split, lists, ks=(5,), ours="own frequency", resamples=50)
    assert "| – | 1.000 |" in to_markdown(report)
    assert json.loads(to_json(report))["comparisons"]["popularity"]["ndcg@5"]["low"] is None
    write_report(report, tmp_path)


def test_the_error_is_that_of_users_not_of_queries():
    # 100 users of 50 equal queries each: the error of the mean is that of 100 values, seven times that of 5,000.
    rng = np.random.default_rng(1)
    user = np.repeat(np.arange(100), 50)
    values = rng.integers(0, 2, 100).astype(float)[user]
    estimate = UserBootstrap(user, 2000).estimate(values)
    assert estimate.standard_error == pytest.approx(values.std() / np.sqrt(100), rel=0.05)
    assert estimate.low < estimate.mean < estimate.high
    assert estimate.high - estimate.low == pytest.approx(2 * 1.96 * estimate.standard_error, rel=0.1)


def test_a_paired_difference_is_surer_than_two_separate_means():
    rng = np.random.default_rng(2)
    user = np.arange(300)
    base = rng.random(300)
    bootstrap = UserBootstrap(user)
    difference = bootstrap.difference(base + 0.01 + rng.normal(0, 0.01, 300), base)
    assert 0 < difference.low < difference.mean < difference.high < 0.02
    assert difference.p < 0.01
    assert difference.standard_error < bootstrap.estimate(base).standard_error / 10
    assert bootstrap.difference(base, base).p == 1


def test_a_report_holds_every_metric_of_every_model_and_compares_ours(measured):
    seq, split, lists, report = measured
    assert set(report.models) == {"popularity", "recent popularity", "own frequency", "co-transition"}
    names = {"recall", "hit_rate", "ndcg", "mrr", "precision", "f1", "coverage", "intra_list_diversity", "novelty"}
    assert set(report.models["popularity"].metrics) == {f"{name}@{k}" for name in names for k in (3, 6)}
    assert set(report.comparisons) == set(report.models) - {"own frequency"}
    ours, other = (report.models[name].metrics["ndcg@6"].mean for name in ("own frequency", "popularity"))
    difference = report.comparisons["popularity"]["ndcg@6"]
    assert difference.mean == pytest.approx(ours - other)
    assert difference.ratio == pytest.approx(ours / other)
    assert sum(report.history_queries.values()) == report.queries == len(split.test)
    assert report.models["own frequency"].settings["own_weight"] > 0
    alone = summarise(lists["popularity"], split.test, seq, (6,), popularity=training_counts(seq, split))
    assert alone["novelty@6"].mean == report.models["popularity"].metrics["novelty@6"].mean


def test_the_same_seed_gives_the_same_report(measured):
    seq, split, lists, _ = measured
    first, second = (evaluate(seq, split, lists, ks=(3,), resamples=50, seed=3) for _ in range(2))
    assert first == second


def test_history_is_counted_in_events_before_the_query(world):
    seq = world(7, users=60)
    queries = next_basket(seq, 0.7, 0.4).test
    for label, mask in history_buckets(seq, queries).items():
        low = int(label.split("-")[0])
        lengths = (queries.position - seq.offsets[queries.user])[mask]
        assert lengths.min() >= low
        assert label == "0" or lengths.max() <= int(label.split("-")[1])


@pytest.mark.parametrize(
    ("ranked", "complaint"),
    [
        (np.array([[0, 4]]), "outside the catalogue of 4"),
        (np.array([[0, 0]]), "query 0 has an item twice"),
        (np.array([[-1, 0]]), "after its end"),
        (np.array([[0.0, 1.0]]), "signed integers"),
    ],
)
def test_lists_that_would_flatter_a_model_are_refused(ranked, complaint):
    with pytest.raises(ValueError, match=complaint):
        check_lists(ranked, 4)


def test_a_short_list_may_end_in_several_blanks():
    check_lists(np.array([[3, -1, -1]]), 4)


def test_an_error_names_the_model_with_the_bad_lists(measured):
    seq, split, lists, _ = measured
    with pytest.raises(ValueError, match="broken: expected ranked lists"):
        evaluate(seq, split, {"broken": lists["popularity"][:-1]}, ks=(3,))
    with pytest.raises(ValueError, match="ours is 'nobody'"):
        evaluate(seq, split, lists, ours="nobody")


def test_the_json_is_strict_and_complete(measured):
    report = measured[-1]
    loaded = json.loads(to_json(report), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert loaded["models"]["popularity"]["metrics"]["ndcg@6"]["mean"] == report.models["popularity"].metrics["ndcg@6"].mean
    assert loaded["ks"] == [3, 6]


def test_the_markdown_tells_cuts_state_intervals_and_settings(measured):
    text = to_markdown(measured[-1])
    assert "# World: next basket, test" in text
    assert "live: every baseline has met all earlier events" in text
    assert "| **own frequency** |" in text
    assert "half_life_baskets" in text
    assert " ± " in text
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert all(line.endswith("|") for line in rows)


def test_a_report_is_written_with_its_plots(measured, tmp_path):
    paths = write_report(measured[-1], tmp_path / "new" / "folder")
    assert [path.name for path in paths] == ["report.json", "report.md", "models.png", "history.png"]
    assert all(path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n" for path in paths[2:])


@pytest.mark.parametrize("name", ["report.json", "report.md", "models.png", "history.png"])
def test_of_a_report_for_which_the_disk_is_too_small_no_file_is_cut_off(measured, tmp_path, name):
    (tmp_path / name).write_text("of before")
    (tmp_path / f".{name}.{os.getpid()}.tmp").symlink_to("/dev/full")
    with pytest.raises(OutputError, match=rf"{name}: cannot be written: No space left on device"):
        write_report(measured[-1], tmp_path)
    assert (tmp_path / name).read_text() == "of before"
    assert not list(tmp_path.glob(".*"))


def test_leave_one_out_reports_frozen_baselines_and_no_cut(world, tmp_path):
    seq = world(2, users=20)
    split = leave_one_out(seq)
    lists, _, _ = baseline_lists(seq, split, k=5)
    report = evaluate(seq, split, lists, ks=(5,), resamples=50)
    assert report.state == "frozen"
    text = to_markdown(report)
    assert "frozen:" in text
    assert "validation |" not in text
    write_report(report, tmp_path)  # without a model of ours and without vectors
