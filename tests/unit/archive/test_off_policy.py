"""What other policies would have brought: from lists drawn by chance as the service draws them, against known truths."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from itertools import permutations
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from experiment_archive import HOUR_MS, ExperimentWorld

from app.archive.experiment.making import make_report
from app.archive.experiment.policy import Policy, read_policy
from app.archive.experiment.rows import Events, Shown
from app.archive.experiment.show import to_json
from app.archive.experiment.statistics import ratio
from app.archive.experiment.tally import ANY, Question, Tally
from app.errors import ReportError
from app.recommend.explore import Exploration, draw

ITEMS = 6  # that are drawn from; each list has one more that is certain
PLACES = 2
SCORES = np.array([1.2, 0.6, 0.3, 0.0, -0.3, -0.9])
CLICKS = np.array([0.05, 0.1, 0.1, 0.2, 0.3, 0.5])  # the model has it the wrong way round
CERTAIN_CLICKS = 0.4
TARGET = -SCORES  # what the target policy draws by
USERS = 60
LISTS = 4


def truth(scores: np.ndarray) -> float:
    """Click-through per shown item where each place is drawn by these scores, given what was drawn before it in fact."""
    logging, target = np.exp(SCORES), np.exp(scores)
    total = CERTAIN_CLICKS
    for first, second in permutations(range(ITEMS), PLACES):
        left = [item for item in range(ITEMS) if item != first]
        chance = logging[first] / logging.sum()
        total += chance * (target / target.sum() @ CLICKS) / (ITEMS - 1)
        total += chance * target[second] / target[left].sum() * CLICKS[second]
    return total / (1 + PLACES)


@dataclass
class Log:
    """One simulated log: a tally of it, with the target policy."""

    tally: Tally

    def sums(self, name: str) -> np.ndarray:
        return self.tally.column(name)


@cache
def logs(count: int, seed: int, clip: float = 10.0) -> list[Log]:
    rng = np.random.default_rng(seed)
    return [Log(simulate(rng, clip)) for _ in range(count)]


def simulate(rng: np.random.Generator, clip: float) -> Tally:
    """Users of different eagerness (on average 1) see some lists each: a certain item and two that were drawn."""
    rows = USERS * LISTS
    user = np.repeat(np.arange(1, USERS + 1), LISTS)
    eager = rng.uniform(0.0, 2.0, USERS)[user - 1]
    order = np.argsort(-(SCORES + rng.gumbel(size=(rows, ITEMS))), axis=1)[:, :PLACES]
    logging, target = np.tile(np.exp(SCORES), (rows, 1)), np.tile(np.exp(TARGET), (rows, 1))
    chances, wanted = np.ones((rows, 1 + PLACES)), np.ones((rows, 1 + PLACES))
    for place in range(PLACES):
        chosen = order[:, [place]]
        for weights, out in ((logging, chances), (target, wanted)):
            out[:, place + 1] = (np.take_along_axis(weights, chosen, 1) / weights.sum(1, keepdims=True))[:, 0]
            np.put_along_axis(weights, chosen, 0.0, 1)
    rates = np.column_stack([np.full(rows, CERTAIN_CLICKS), CLICKS[order]])
    clicked = (rng.random(rates.shape) < rates * eager[:, None]).reshape(-1)
    keys = np.arange(1, rows + 1).astype(np.uint64)
    pairs = np.arange(1, rows * (1 + PLACES) + 1).astype(np.uint64)
    propensity = chances.copy()
    propensity[:, 0] = np.nan
    none = np.zeros(int(clicked.sum()), np.int64)
    events = Events(np.repeat(keys, 1 + PLACES)[clicked], pairs[clicked], none, none, none + 1, none + 5, none, ["click"], 0)
    tally = Tally(events, Question((ANY,), None, None, 10, clip, Policy(pairs, wanted.reshape(-1))))
    zeros = np.zeros(rows, np.int64)
    tally.add(
        Shown(
            list_key=keys, user_key=user.astype(np.uint64), arm=zeros, time_ms=zeros, counts=zeros + 1 + PLACES,
            weighable=np.ones(rows, bool), pair_key=pairs, propensity=propensity.reshape(-1),
        )
    )  # fmt: skip
    tally.finish()
    return tally


def estimates(of: str, over: str, seed: int = 1, clip: float = 10.0) -> list[float]:
    return [ratio(log.sums(of), log.sums(over)).value for log in logs(300, seed, clip)]


def test_weighted_lists_tell_what_the_target_would_have_brought_and_unweighted_ones_do_not():
    expected, logged = truth(TARGET), truth(SCORES)
    for numerator, denominator in ((f"target:w:{ANY}", "places"), (f"target:w:{ANY}", "target:w")):
        found = estimates(numerator, denominator)
        assert abs(np.mean(found) - expected) < 3 * np.std(found) / np.sqrt(len(found))
    as_it_was = estimates(f"places:{ANY}", "places")
    assert np.mean(as_it_was) == pytest.approx(logged, abs=0.005)
    assert abs(logged - expected) > 10 * np.std(as_it_was) / np.sqrt(len(as_it_was))


def test_smaller_weights_vary_less_and_fall_short_of_the_truth():
    plain, clipped = estimates(f"target:w:{ANY}", "places"), estimates(f"target:clipped:{ANY}", "places", clip=2.0)
    assert np.std(clipped) < np.std(plain)
    assert np.mean(clipped) < truth(TARGET) - 0.02


def test_intervals_of_both_hold_the_truth_in_95_of_100_logs():
    expected = truth(TARGET)
    for denominator in ("places", "target:w"):
        held = 0
        for log in logs(300, 1):
            found = ratio(log.sums(f"target:w:{ANY}"), log.sums(denominator))
            held += found.low <= expected <= found.high
        assert 0.9 <= held / 300 <= 0.98


def test_weights_are_1_on_average_where_the_target_shows_what_could_be_shown():
    found = estimates("target:w", "places")
    assert abs(np.mean(found) - 1) < 3 * np.std(found) / np.sqrt(len(found))


def test_without_exploration_what_was_certain_is_told_and_the_explored_places_count_as_nothing_or_as_the_rest():
    lower, extended = estimates(f"greedy:w:{ANY}", "places"), estimates(f"greedy:w:{ANY}", "greedy:w")
    assert np.mean(lower) == pytest.approx(CERTAIN_CLICKS / (1 + PLACES), abs=0.005)
    assert np.mean(extended) == pytest.approx(CERTAIN_CLICKS, abs=0.01)


def test_lists_as_the_service_draws_them_go_through_an_archive_and_a_file(tmp_path: Path):
    """With the service's own draws and propensities: one place, and a list for each user."""
    world, policy, weights, clicks = ExperimentWorld(), ["recommendation_id,item_id,probability"], [], []
    rng = np.random.default_rng(3)
    for number in range(3_000):
        (drawn,) = draw(Exploration(np.ones(ITEMS, bool), 1, 2, number), range(ITEMS), SCORES.tolist(), taken=[1])
        world.shown(f"u{number}", "a", f"L{number}", ["sure", f"i{drawn.row}"], propensities=[None, drawn.propensity])
        chance = float(np.exp(TARGET[drawn.row]) / np.exp(TARGET).sum())
        policy += [f"L{number},sure,1", f"L{number},i{drawn.row},{chance!r}"]
        weights += [1.0, chance / drawn.propensity]
        clicks += [False, rng.random() < CLICKS[drawn.row]]
        if clicks[-1]:
            world.event(f"u{number}", "a", f"L{number}", f"i{drawn.row}")
    world.shown("w", "a", "unweighed", ["sure"])  # says nothing of chances: not in it
    file = tmp_path / "policy.csv"
    file.write_text("\n".join(policy), encoding="utf-8")
    report = make_report(world.write(tmp_path / "a", 2), "home", Question((ANY,), None, None, HOUR_MS, 2.0, read_policy(file)))
    greedy, target = report.off_policy
    w, c = np.array(weights), np.array(clicks)
    assert (target.lists, target.items, target.drawn, target.users) == (3_000, 6_000, 3_000, 3_000)
    assert target.ips.value == pytest.approx(float(w @ c) / 6_000)
    assert target.clipped_ips.value == pytest.approx(float(np.minimum(w, 2) @ c) / 6_000)
    assert target.snips.value == pytest.approx(float(w @ c) / w.sum())
    assert target.effective_items == pytest.approx(w.sum() ** 2 / (w @ w))
    assert target.logged.value == pytest.approx(c.mean())
    real = float(np.exp(TARGET) / np.exp(TARGET).sum() @ CLICKS) / 2
    assert target.ips.low < real < target.ips.high
    assert not target.logged.low < real < target.logged.high
    assert (greedy.policy, greedy.ips.value, greedy.clipped_ips, greedy.mean_weight.value) == ("greedy", 0.0, None, 0.5)
    assert not any("on average, and not 1" in note for note in report.notes)


def test_a_policy_that_wants_what_could_not_be_shown_is_told_by_its_weights(tmp_path: Path):
    world = ExperimentWorld()
    for number in range(10):
        world.shown(f"u{number}", "a", f"L{number}", ["x", "y"], propensities=[None, 0.5])
    file = tmp_path / "policy.parquet"
    rows = [{"recommendation_id": f"L{number}", "item_id": "y", "probability": 0.5} for number in range(10)]
    pq.write_table(pa.Table.from_pylist(rows), file)
    report = make_report(world.write(tmp_path / "a"), "home", Question((ANY,), None, None, 1, 10.0, read_policy(file)))
    assert report.off_policy[1].mean_weight.value == pytest.approx(0.5)
    assert any("weights are 0.500 on average" in note for note in report.notes)


@pytest.mark.parametrize("wrong", [[0.0, None], [None, 1.5], [None], [None, -0.1], [None, float("nan")], [None, 5e-324]])
def test_chances_that_are_none_take_their_list_out_of_it(tmp_path: Path, wrong: list[float | None]):
    world = ExperimentWorld()
    world.shown("u", "a", "L1", ["x", "y"], propensities=[None, 0.5])
    world.shown("u", "a", "L2", ["x", "y"], propensities=wrong)
    (found,) = make_report(world.write(tmp_path), "home", Question((ANY,), None, None, 1, 10.0)).off_policy
    assert (found.lists, found.items) == (1, 2)


def test_lists_of_which_all_was_certain_are_weighed_and_those_that_say_nothing_are_not(tmp_path: Path):
    world = ExperimentWorld()
    world.shown("u", "a", "L1", ["x", "y"], propensities=[None, None])
    world.shown("u", "a", "L2", ["x", "y"])
    (found,) = make_report(world.write(tmp_path), "home", Question((ANY,), None, None, 1, 10.0)).off_policy
    assert (found.lists, found.items, found.drawn, found.mean_weight.value) == (1, 2, 0, 1.0)


def test_a_chance_of_next_to_nothing_does_not_take_the_report_beyond_all_numbers(tmp_path: Path):
    world = ExperimentWorld()
    world.shown("u", "a", "L1", ["x", "y"], propensities=[None, 0.5])
    world.shown("v", "a", "L2", ["x", "y"], propensities=[None, 1e-300])
    file = tmp_path / "policy.parquet"
    pq.write_table(
        pa.Table.from_pylist([{"recommendation_id": f"L{n}", "item_id": "y", "probability": 0.5} for n in (1, 2)]), file
    )
    report = make_report(world.write(tmp_path / "a"), "home", Question((ANY,), None, None, 1, 10.0, read_policy(file)))
    assert json.loads(to_json(report))["off_policy"][1]["effective_items"] == 1.0


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("p.csv", "recommendation_id,item_id\nL,x\n", "has no column probability"),
        ("p.csv", "recommendation_id,item_id,probability\nL,x,1\nL,y,1.2\n", r"row 2: 1\.2 is no probability"),
        ("p.csv", "recommendation_id,item_id,probability\nL,x,nan\n", "row 1"),
        ("p.csv", "recommendation_id,item_id,probability\nL,x,often\n", "cannot be read"),
        ("p.csv", "recommendation_id,item_id,probability\nL,x,1\nL,,1\n", "row 2 has no item_id"),
        ("p.csv", "recommendation_id,item_id,probability\nL,x,.1\nL,y,.2\nL,x,.3\n", "row 3 has the list and item of row 1"),
        ("p.csv", "", "cannot be read"),
        ("p.parquet", "no parquet", "cannot be read"),
        ("p.json", "{}", "expected a .parquet or .csv"),
    ],
)
def test_a_policys_file_that_is_wrong_is_refused_by_its_row(tmp_path: Path, name: str, content: str, said: str):
    (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(ReportError, match=said):
        read_policy(tmp_path / name)


def test_a_policys_file_that_is_not_there_or_of_other_lists_is_refused(tmp_path: Path):
    with pytest.raises(ReportError, match="cannot be read"):
        read_policy(tmp_path / "none.csv")
    (tmp_path / "p.csv").write_text("recommendation_id,item_id,probability\nother,x,1\n", encoding="utf-8")
    world = ExperimentWorld()
    world.shown("u", "a", "L", ["x"], propensities=[None])
    with pytest.raises(ReportError, match="no item of these lists"):
        make_report(world.write(tmp_path / "a"), "home", Question((ANY,), None, None, 1, 10.0, read_policy(tmp_path / "p.csv")))
