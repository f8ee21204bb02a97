"""What an archive's rows become in a report: which events count, for whom, and what is said of the rest."""

from __future__ import annotations

import random
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from experiment_archive import HOUR_MS, START_MS, WITH_EXPERIMENTS, ExperimentWorld
from hypothesis import given, settings
from hypothesis import strategies as st

from app.archive.archive import Archive
from app.archive.columns import SCHEMA
from app.archive.experiment.making import make_report
from app.archive.experiment.report import ArmReport, Report
from app.archive.experiment.shares import parse_expected
from app.archive.experiment.tally import ANY, Question
from app.errors import ArchiveError, ReportError

ASKED = Question((ANY,), None, None, 24 * HOUR_MS, 10.0)


def report_on(archive: Archive, *metrics: str, **asked: Any) -> Report:
    mine = {name: asked.pop(name) for name in ("since_ms", "until_ms", "window_ms", "policy", "clip") if name in asked}
    return make_report(archive, asked.pop("name", "home"), replace(ASKED, metrics=metrics or (ANY,), **mine), **asked)


def arm(report: Report, name: str) -> ArmReport:
    return next(one for one in report.arms if one.name == name)


def counts(report: Report, name: str, metric: str = ANY) -> tuple[int, int, int, int, int]:
    """Users, lists, items, lists and items with an event."""
    found = arm(report, name)
    return found.users, found.lists, found.items, found.counts[metric]["lists"], found.counts[metric]["items"]


def test_an_event_counts_for_an_item_that_was_shown_in_its_list_within_the_window_after_that(tmp_path: Path):
    world = ExperimentWorld()
    for number in range(7):
        world.shown("u", "a", f"L{number}", ["x", "y"], after_h=10)
    world.event("u", "a", "L0", "x", after_h=10)  # at that moment
    world.event("u", "a", "L1", "y", after_h=34)  # the last one
    world.event("u", "a", "L2", "y", after_h=34.001)
    world.event("u", "a", "L3", "y", after_h=9.999)
    world.event("u", "a", "L4", "z", after_h=11)
    world.event("u", "a", "L5", None, after_h=11)  # a comment about nothing
    world.event("u", "a", "L9", "x", after_h=11)
    world.event("u", "a", "L6", "x", "purchase", after_h=11)
    report = report_on(world.write(tmp_path), "view", "purchase")
    assert counts(report, "a", "view") == (1, 7, 14, 2, 2)
    assert counts(report, "a", "purchase") == (1, 7, 14, 1, 1)
    fates = {name: count for name, count in arm(report, "a").events.items() if count}
    assert fates == {"attributed": 3, "after_window": 1, "before_shown": 1, "item_not_shown": 2, "without_impression": 1}
    assert report.events_by_type == {"view": 7, "purchase": 1}
    assert any("1 events are of lists of which nobody said" in note for note in report.notes)


def test_whatever_is_there_twice_counts_once(tmp_path: Path):
    world = ExperimentWorld()
    for _ in range(2):
        world.shown("u", "a", "L", ["x", "y", "y"])
        world.event("u", "a", "L", "x", event_id="e1")
        world.event("u", "a", "L", "y")
    world.event("u", "a", "L", "x", event_id="e2", after_h=2)  # another look at the same item
    world.shown("u", "a", "L", ["z"])  # the list is known; what else was seen of it is not
    world.event("u", "a", "L", "z")
    report = report_on(world.write(tmp_path, files=3))
    assert counts(report, "a") == (1, 1, 2, 1, 2)
    assert (report.repeated_impressions, report.repeated_events) == (2, 2)
    assert (arm(report, "a").events["attributed"], arm(report, "a").events["item_not_shown"]) == (3, 1)


def test_a_click_of_somebody_else_counts_for_whom_the_list_was_shown_to(tmp_path: Path):
    world = ExperimentWorld()
    world.shown("cookie", "a", "L", ["x"])
    world.event("account", "a", "L", "x")
    assert counts(report_on(world.write(tmp_path)), "a") == (1, 1, 1, 1, 1)


def test_who_was_in_two_arms_is_counted_and_left_out(tmp_path: Path):
    world = ExperimentWorld()
    for user in ("u", "v"):
        world.shown(user, "a", f"A{user}", ["x"])
        world.event(user, "a", f"A{user}", "x")
    world.shown("u", "b", "B1", ["x"])
    world.shown("u", "b", "B2", ["x"])
    world.shown("w", "b", "B3", ["x"])
    report = report_on(world.write(tmp_path))
    assert counts(report, "a") == (1, 1, 1, 1, 1)
    assert counts(report, "b") == (1, 1, 1, 0, 0)
    assert (report.users_in_several_arms, report.lists_of_users_in_several_arms) == (1, 3)
    assert any(note.startswith("1 users were in more than one arm") for note in report.notes)


def test_merged_identities_are_one_user(tmp_path: Path):
    world = ExperimentWorld()
    world.shown("cookie", "a", "L1", ["x"])
    world.event("cookie", "a", "L1", "x", event_id="e")
    world.moved("cookie", "phone")
    world.event("phone", "a", "L1", "x", kind="h", event_id="e")  # as merges write it again
    world.shown("phone", "a", "L2", ["x"])
    world.moved("phone", "account")
    world.shown("account", "a", "L3", ["x"])
    world.shown("cookie", "a", "L4", ["x"])  # somebody new on that device
    world.shown("tablet", "b", "L5", ["x"])
    world.moved("tablet", "account")
    world.shown("other", "b", "L6", ["x"])
    report = report_on(world.write(tmp_path))
    assert report.users_in_several_arms == 1
    assert report.lists_of_users_in_several_arms == 4
    assert counts(report, "a") == (1, 1, 1, 0, 0)  # L4
    assert counts(report, "b") == (1, 1, 1, 0, 0)  # L6
    assert report.repeated_events == 1


def test_who_was_erased_is_not_there_also_before_the_files_are_rewritten(tmp_path: Path):
    world = ExperimentWorld()
    world.shown("u", "a", "L1", ["x"])
    world.event("u", "a", "L1", "x")
    world.shown("cookie", "a", "L2", ["x"])
    world.moved("cookie", "u")
    world.erased("u")
    world.erased("cookie")
    world.shown("tablet", "b", "L5", ["x"])
    world.moved("tablet", "v")
    world.erased("v")  # nothing says any more that the tablet was theirs
    world.shown("u", "a", "L3", ["x", "y"])  # came back
    world.shown("v", "a", "L4", ["x"])
    report = report_on(world.write(tmp_path))
    assert counts(report, "a") == (2, 2, 3, 0, 0)
    assert counts(report, "b") == (1, 1, 1, 0, 0)


def test_lists_that_were_shown_to_nobody_named_are_said_and_count_for_nothing(tmp_path: Path):
    world = ExperimentWorld()
    world.shown("", "a", "L1", ["x"])
    world.event("u", "a", "L1", "x")
    world.shown("u", "a", "L2", ["x"])
    report = report_on(world.write(tmp_path))
    assert counts(report, "a") == (1, 1, 1, 0, 0)
    assert arm(report, "a").lists_without_user == 1
    assert arm(report, "a").events["shown_to_nobody_named"] == 1
    assert any("1 lists were shown to nobody" in note for note in report.notes)


def test_the_newest_version_counts_unless_another_or_all_are_asked_for(tmp_path: Path):
    world = ExperimentWorld()
    for version, user in ((2, "u"), (10, "v"), (9, "u")):
        world.shown(user, "a", f"L{version}", ["x"], version=version)
        world.event(user, "a", f"L{version}", "x", version=version)
    archive = world.write(tmp_path)
    assert (report_on(archive).versions, counts(report_on(archive), "a")) == ([10], (1, 1, 1, 1, 1))
    assert report_on(archive, version=2).versions == [2]
    every = report_on(archive, all_versions=True)
    assert (every.versions, counts(every, "a")) == ([2, 9, 10], (2, 3, 3, 3, 3))
    assert any("Versions 2, 9, 10 are one here" in note for note in every.notes)
    assert report_on(archive).users_of_other_arms_before == 0
    with pytest.raises(ReportError, match="there are 2, 9, 10"):
        report_on(archive, version=3)


def test_users_who_were_in_another_arm_under_another_version_are_counted(tmp_path: Path):
    world = ExperimentWorld()
    for user, name in (("moved", "a"), ("moved", "c"), ("stayed", "b"), ("", "a"), ("gone", "a"), ("cookie", "a")):
        world.shown(user, name, f"1{user}{name}", ["x"], version=1)
    world.moved("cookie", "account")
    for user in ("moved", "stayed", "account", "new"):
        world.shown(user, "b", f"2{user}", ["x"], version=2)
    archive = world.write(tmp_path, files=2, row_group=2)
    report = report_on(archive)
    assert (counts(report, "b")[0], report.users_in_several_arms, report.users_of_other_arms_before) == (4, 0, 2)
    assert any("2 of the users compared were in another arm" in note for note in report.notes)
    every = report_on(archive, all_versions=True)
    assert (counts(every, "b")[0], every.users_in_several_arms, every.users_of_other_arms_before) == (2, 2, 0)


def test_a_time_is_of_when_lists_were_shown_and_its_end_is_not_in_it(tmp_path: Path):
    world = ExperimentWorld()
    for hour in range(5):
        world.shown(f"u{hour}", "a", f"L{hour}", ["x"], after_h=hour)
        world.event(f"u{hour}", "a", f"L{hour}", "x", after_h=hour + 0.5, list_ms=START_MS + hour * HOUR_MS)
        world.event("u", "a", f"M{hour}", "x", list_ms=START_MS + hour * HOUR_MS)  # who knows whether it was shown
    archive = world.write(tmp_path)
    report = report_on(archive, since_ms=START_MS + HOUR_MS, until_ms=START_MS + 3 * HOUR_MS)
    assert counts(report, "a") == (2, 2, 2, 2, 2)
    assert arm(report, "a").events["outside_time"] == 3 + 3
    assert (arm(report, "a").events["without_impression"], report.lists_outside_time) == (2, 3)
    assert counts(report_on(archive, until_ms=START_MS), "a") == (0, 0, 0, 0, 0)
    with pytest.raises(ReportError, match="--since: nothing of 'home' has arrived"):
        report_on(archive, since_ms=START_MS + 9 * 86_400_000)


def test_another_name_is_answered_with_the_names_there_are(tmp_path: Path):
    world = ExperimentWorld()
    world.shown("u", "a", "L", ["x"])
    world.name = "cart"
    world.shown("u", "a", "M", ["x"])
    world.name = None
    world.event("u", None, None, "x")
    archive = world.write(tmp_path)
    with pytest.raises(ReportError, match=r"nothing of an experiment 'hom'; it has 'cart', 'home'$"):
        report_on(archive, name="hom")
    assert counts(report_on(archive, name="cart"), "a")[:3] == (1, 1, 1)


def test_an_archive_that_is_not_there_or_empty_or_of_before_experiments_says_so(tmp_path: Path):
    with pytest.raises(ArchiveError, match="no archive is there"):
        report_on(Archive(tmp_path / "nowhere"))
    with pytest.raises(ReportError, match="it has none at all"):
        report_on(ExperimentWorld().write(tmp_path / "empty"))
    world = ExperimentWorld()
    world.shown("u", "a", "L", ["x"])
    old = world.write(tmp_path / "old", schema=_without(SCHEMA, "list_experiment"))
    with pytest.raises(ReportError, match="it has none at all"):
        report_on(old)


def test_files_without_some_of_the_columns_are_read_as_having_none(tmp_path: Path):
    world = ExperimentWorld()
    world.shown("u", "a", "L", ["x"])
    report = report_on(world.write(tmp_path, schema=_without(WITH_EXPERIMENTS, "list_propensities", "list_ms")))
    assert (counts(report, "a")[:3], report.off_policy) == ((1, 1, 1), [])


def test_one_arm_has_rates_and_nothing_to_be_compared_with(tmp_path: Path):
    world = ExperimentWorld()
    for user in "uvw":
        world.shown(user, "only", f"L{user}", ["x"])
    world.event("u", "only", "Lu", "x")
    report = report_on(world.write(tmp_path), shares=parse_expected("only=1"))
    assert (report.control, report.comparisons, report.sample_ratio) == ("only", [], None)
    assert arm(report, "only").rates[ANY]["users"].value == pytest.approx(1 / 3)


def test_without_a_click_there_are_rates_of_zero_and_no_p_value(tmp_path: Path):
    world = ExperimentWorld()
    for number in range(20):
        world.shown(f"u{number}", "ab"[number % 2], f"L{number}", ["x"])
    report = report_on(world.write(tmp_path), "view")
    assert all((one.control, one.value, one.against.p, one.p_holm) == (0.0, 0.0, None, None) for one in report.comparisons)
    assert any("No event of the type 'view'" in note and "none at all" in note for note in report.notes)
    assert any(note.startswith("Few users") for note in report.notes)


def test_the_control_is_named_or_the_first_of_the_shares_or_called_so_or_the_first_by_name(tmp_path: Path):
    world = ExperimentWorld()
    for name in ("holdout", "b", "control"):
        world.shown(f"u{name}", name, f"L{name}", ["x"])
    archive = world.write(tmp_path / "1")
    assert report_on(archive).control == "control"
    assert report_on(archive, shares=parse_expected("b=1,control=1,holdout=1")).control == "b"
    assert report_on(archive, control="holdout").control == "holdout"
    assert [one.name for one in report_on(archive, control="b").arms] == ["b", "control", "holdout"]
    with pytest.raises(ReportError, match="no arm 'c'; there are b, control, holdout"):
        report_on(archive, control="c")
    with pytest.raises(ReportError, match="has no share of the arm 'holdout', which has 1 users"):
        report_on(archive, shares=parse_expected("control=1,b=1"))
    world.rows = [row for row in world.rows if row["list_arm"] != "control"]
    assert report_on(world.write(tmp_path / "2")).control == "b"


def test_an_arm_that_nobody_was_in_is_missed_by_the_check(tmp_path: Path):
    world = ExperimentWorld()
    for number in range(40):
        world.shown(f"u{number}", "a", f"L{number}", ["x"])
    report = report_on(world.write(tmp_path), shares=parse_expected("a=0.5,b=0.5"))
    assert report.sample_ratio.observed == {"a": 40, "b": 0}
    assert report.sample_ratio.mismatch
    assert [one.value for one in report.comparisons] == [None] * 3


def test_a_known_lift_is_found_in_an_archive_and_an_arm_that_is_like_the_control_is_not_different(tmp_path: Path):
    rng, world = random.Random(6), ExperimentWorld()
    for user in range(6_000):
        name = ("control", "better", "same")[user % 3]
        taste = rng.betavariate(2, 8) * (1.25 if name == "better" else 1.0)
        for number in range(rng.choice((1, 2, 2, 6))):
            world.shown(f"u{user}", name, f"L{user}.{number}", ["x"])
            if rng.random() < taste:
                world.event(f"u{user}", name, f"L{user}.{number}", "x")
    report = report_on(world.write(tmp_path, files=2), shares=parse_expected("control=1,better=1,same=1"))
    better, same = ([one for one in report.comparisons if one.arm == name] for name in ("better", "same"))
    assert all(one.p_holm < 0.001 for one in better)
    by_list = better[0].against
    assert by_list.lift_low < 0.25 < by_list.lift_high
    assert by_list.lift == pytest.approx(0.25, abs=0.1)
    assert all(one.p_holm > 0.05 for one in same)
    assert not report.sample_ratio.mismatch
    assert any(note.startswith("6 comparisons") for note in report.notes)


@st.composite
def worlds(draw: st.DrawFn) -> ExperimentWorld:
    world = ExperimentWorld()
    users, lists, items = ["u", "v", "w", ""], ["L1", "L2", "L3", "L4"], ["x", "y", "z"]
    for _ in range(draw(st.integers(1, 14))):
        kind = draw(st.sampled_from(["shown", "event", "event", "moved"]))
        list_id, name = draw(st.sampled_from(lists)), draw(st.sampled_from("ab"))
        if kind == "shown":
            shown = draw(st.lists(st.sampled_from(items), max_size=3))
            world.shown(draw(st.sampled_from(users)), name, list_id, shown, draw(st.integers(0, 3)))
        elif kind == "event":
            type_, event_id = draw(st.sampled_from(["view", "buy"])), draw(st.sampled_from([None, "e"]))
            when = draw(st.integers(0, 5))
            world.event("u", name, list_id, draw(st.sampled_from(items)), type_, when, event_id=event_id)
        else:
            world.moved(draw(st.sampled_from("uv")), "w")
    return world


def plain(world: ExperimentWorld, window_h: int) -> dict[str, list[int]]:
    """The counts of each arm, row by row and without numpy."""
    first: dict[str, dict[str, Any]] = {}
    for row in world.rows:
        if row["kind"] == "v":
            first.setdefault(row["recommendation_id"], row)
    met, once = set(), []
    for row in world.rows:
        if row["kind"] == "e":
            what = row["event_id"] or (row["type"], row["time_ms"])
            same = (row["recommendation_id"], row["item_id"], what)
            once += [] if same in met else [row]
            met.add(same)
    sums: dict[tuple[str, str], list[int]] = defaultdict(lambda: [0] * 6)
    for row in first.values():
        user = row["user_id"]
        if any(move["kind"] == "m" and move["user_id"] == user and move["ms"] > row["ms"] for move in world.rows):
            user = "w"
        if not user:
            continue
        led = {"view": set(), "buy": set()}
        for event in once:
            later_ms = event["time_ms"] - row["time_ms"]
            mine = event["recommendation_id"] == row["recommendation_id"]
            if mine and event["item_id"] in row["list_items"] and 0 <= later_ms <= window_h * HOUR_MS:
                led[event["type"]].add(event["item_id"])
        found = [1, len(set(row["list_items"]))]
        found += [n for items in led.values() for n in (bool(items), len(items))]
        sums[user, row["list_arm"]] = [a + b for a, b in zip(sums[user, row["list_arm"]], found, strict=True)]
    arms: dict[str, list[int]] = {}
    for (user, name), found in sums.items():
        if sum(user == other for other, _ in sums) == 1:
            arms[name] = [a + b for a, b in zip(arms.get(name, [0] * 7), [1, *found], strict=True)]
    return arms


@settings(max_examples=80, deadline=None)
@given(worlds(), st.integers(1, 3), st.integers(1, 4), st.integers(1, 3))
def test_any_rows_in_any_files_are_counted_as_one_by_one(tmp_path_factory, world, files, row_group, window_h):
    archive = world.write(tmp_path_factory.mktemp("world"), files, row_group)
    expected = plain(world, window_h)
    try:
        report = report_on(archive, "view", "buy", window_ms=window_h * HOUR_MS)
    except ReportError:
        assert all(row["kind"] == "m" for row in world.rows)
        return
    for one in report.arms:
        view, buy = one.counts["view"], one.counts["buy"]
        found = [one.users, one.lists, one.items, view["lists"], view["items"], buy["lists"], buy["items"]]
        assert found == expected.get(one.name, [0] * 7)
    assert expected.keys() <= {one.name for one in report.arms}
    events = [row for row in world.rows if row["kind"] == "e"]
    assert sum(sum(one.events.values()) for one in report.arms) == len(events) - report.repeated_events
    assert np.all([count >= 0 for one in report.arms for count in one.events.values()])


def _without(schema: Any, *names: str) -> Any:
    for name in names:
        if name in schema.names:
            schema = schema.remove(schema.get_field_index(name))
    return schema
