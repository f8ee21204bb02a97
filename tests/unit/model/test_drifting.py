"""Whether drift tells who changed: what is measured, and of what."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from random_world import random_world
from scipy import stats
from tiny_run import MODEL, TinyRun

from model import drifting
from model.assess import load_run
from model.benchmark.page_drift import drift_lines
from model.benchmark.results import Comparison
from model.data.turning import turning_world
from model.drifting import NET, SINCE, auc, drift_report, fading_label_drift, label_drift, net_drift, spearman, told
from model.inputs import Inputs
from model.nets import Longwave
from model.nets.leaning import HALF_LIVES
from model.nets.portrait import drift
from model.report import plain
from model.settings import DataSettings, Settings
from model.task import make_task


@pytest.fixture(scope="module")
def turned():
    """A net that has learned nothing, and the task of a small world of its kind."""
    task = make_task(turning_world(0, 40).dataset, DataSettings(protocol="time"))
    torch.manual_seed(0)
    return Longwave(task.model_config(dataclasses.replace(Settings(), model=dict(MODEL)))), task


def test_area_and_rank_correlation_are_those_of_the_definition_with_ties():
    rng = np.random.default_rng(0)
    values, amount = rng.integers(0, 6, 40).astype(float), np.maximum(rng.integers(-4, 5, 40), 0) / 4
    moved = amount > 0
    pairs = [(one > other) + (one == other) / 2 for one in values[moved] for other in values[~moved]]
    assert auc(values, moved) == pytest.approx(np.mean(pairs))
    assert spearman(values, amount) == pytest.approx(stats.spearmanr(values, amount).statistic)


def test_what_tells_everything_and_what_tells_nothing():
    amount = np.array([0.0, 0.0, 0.0, 0.2, 0.5, 0.9])
    drawn = drifting._resamples(amount > 0, 0)
    assert {len(np.flatnonzero(amount[rows])) for rows in drawn} == {3}
    whole = told(amount, amount, drawn)
    assert (whole.auc.mean, whole.auc.low, whole.spearman.mean) == (1.0, 1.0, pytest.approx(1.0))
    assert (whole.stayed, whole.turned) == (0.0, pytest.approx(1.6 / 3))
    assert told(np.array([0.3, 0.2, 0.1, 0.3, 0.2, 0.1]), amount, drawn).auc.mean == 0.5


def test_label_frequencies_are_compared_as_a_loop_would():
    seq = random_world(seed=5)
    share = np.eye(seq.items, dtype=np.float32)[:, :3]
    upto = np.random.default_rng(0).integers(0, np.diff(seq.offsets) + 1)
    fading = fading_label_drift(seq, share, upto)
    for newer, older in ((3, None), (3, 2)):
        found = label_drift(seq, share, upto, newer, older)
        for user, (start, count) in enumerate(zip(seq.offsets, upto, strict=False)):
            had = np.array([share[item] if item >= 0 else np.zeros(3) for item in seq.item[start : start + count]]).reshape(-1, 3)
            early = had[:-newer] if older is None else had[:-newer][-older:]
            assert found[user] == pytest.approx(apart(had[-newer:].sum(0), early.sum(0)), abs=1e-6)
            ago = np.arange(count - 1, -1, -1)[:, None]
            late, long = ((had * 0.5 ** (ago / half)).sum(0) for half in HALF_LIVES)
            assert fading[user] == pytest.approx(apart(late, long), abs=1e-6)


def apart(one, other):
    size = np.linalg.norm(one) * np.linalg.norm(other)
    return 1 - one @ other / size if size else 1.0


@torch.no_grad()
def test_the_drift_that_is_asked_is_that_of_a_user_folded_event_by_event(turned, monkeypatch):
    net, task = turned
    seq = task.seq
    upto = np.random.default_rng(0).integers(1, 30, seq.users)
    monkeypatch.setattr(drifting, "LANES", 7)
    found = net_drift(net, task.inputs, task.labels.share, seq, upto)
    assert (found > 1e-5).mean() > 0.5
    inputs = Inputs.of(seq)
    matrix, _ = net.item(None, None)
    for user in range(5):
        state = net.initial_state(inputs.attributes[user : user + 1])
        for row in range(seq.offsets[user], seq.offsets[user] + upto[user]):
            state = net.step(inputs.events(torch.tensor([row]), matrix), state)
        assert found[user] == pytest.approx(float(drift(state["leaning"])), abs=1e-5)


def test_the_world_with_a_known_turn_is_measured_on_users_of_its_own_and_no_other_data_is(turned, tiny_run: TinyRun):
    net, task = turned
    report = drift_report(net, task, users=60)
    assert report is not None
    assert (report.users, report.turned) == (60, 30)
    assert {tuple(of) for of in report.by_events.values()} == {SINCE}
    plainly = report.by_events["labels, last 30 against all before"][30]
    assert 0.5 < plainly.auc.low < plainly.auc.mean < plainly.auc.high <= 1  # type: ignore[operator]
    assert plainly.turned > plainly.stayed > 0
    checkpoint, other = load_run(tiny_run.run, tiny_run.data)
    assert drift_report(checkpoint.net, other) is None
    said = json.loads(json.dumps(plain(dataclasses.asdict(report))))
    comparison = Comparison("turning", "time", "p", "f", [], [{"drift": {"longwave": said}}])
    (line,) = [line for line in drift_lines(comparison) if line.startswith(f"| **{NET}**, AUC |")]
    assert f"{report.by_events[NET][5].auc.mean:.4f} ± " in line
    assert drift_lines(dataclasses.replace(comparison, parts=[{}])) == []
