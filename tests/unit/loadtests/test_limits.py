"""Limits and the document: what is judged, in which order, and what stands beside."""

import json
import re

import pytest

from loadtests.limits import LIMITS, TABLE, Limit, missed
from loadtests.machine import ROOT
from loadtests.report import document, table, write
from loadtests.stand import Part

LATEST = ROOT / "loadtests/results/latest.json"
KEYS = [
    "get_throughput_ratio",
    "get_p99_ratio",
    "post_throughput_ratio",
    "batch_events_per_second",
    "fold_p99_ms",
    "history_ratio",
    "recompute_ratio",
    "user_bytes",
]


def test_the_table_has_its_keys_in_the_order_of_the_requirements():
    assert [limit.key for limit in TABLE] == KEYS


@pytest.mark.parametrize("limit", LIMITS, ids=lambda limit: limit.key)
def test_a_limit_holds_at_its_value_and_not_just_beyond_it(limit):
    beyond = limit.must * (1.001 if limit.sense == "<=" else 0.999)
    assert missed({limit.key: limit.must}) == []
    assert missed({limit.key: beyond}) == [limit.key]


@pytest.mark.parametrize("limit", TABLE, ids=lambda limit: limit.key)
def test_an_aim_is_harder_than_its_limit(limit):
    assert limit.holds(limit.aim)
    assert not limit.reaches_aim(limit.must)


def test_what_was_not_measured_is_neither_met_nor_missed():
    assert missed({"fold_p99_ms": None}) == []
    assert TABLE[0].describe(None) == {"must_be": ">= 0.6", "aim": ">= 0.75", "met": None}
    assert Limit("a", "<=", 5.0, None, "").describe(4.0) == {"must_be": "<= 5", "met": True}


def test_the_file_has_the_figures_in_order_with_limits_and_ingredients():
    found = Part({"user_bytes": 40_000.0}, {"user_bytes": {"users": 60}}, {"state_bytes": 9_000}, ["user_bytes: no"])
    whole = document({"commit": {}}, found)
    assert [key for key in whole if key in KEYS] == KEYS
    assert whole["user_bytes"] == 40_000.0
    assert whole["get_p99_ratio"] is None
    assert whole["limits"]["user_bytes"] == {"must_be": "<= 65536", "aim": "<= 32768", "met": True, "aim_met": False}
    assert whole["limits"]["state_bytes"] == {"must_be": "<= 16384", "met": True}
    assert whole["made_of"]["user_bytes"] == {"users": 60}
    assert whole["does_not_count"] == ["user_bytes: no"]
    assert table(whole, "title", meanings=True).row_count >= len(KEYS)


def test_the_verdict_is_that_of_the_figure_as_it_is_written():
    whole = document({}, Part({"history_ratio": 1.10049}))
    assert whole["history_ratio"] == 1.1
    assert whole["limits"]["history_ratio"]["met"] is True


def test_the_file_is_replaced_whole(tmp_path):
    write({"a": 1}, tmp_path / "new" / "latest.json")
    write({"a": 2}, tmp_path / "new" / "latest.json")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["latest.json"]
    assert json.loads((tmp_path / "new" / "latest.json").read_text()) == {"a": 2}


def test_the_kept_results_have_every_figure_and_say_where_they_are_from():
    kept = json.loads(LATEST.read_text(encoding="utf-8"))
    assert [key for key in kept if key in KEYS] == KEYS
    assert None not in [kept[key] for key in KEYS]
    assert kept["made_of"].keys() == set(KEYS)
    assert kept.keys() >= {"date", "commit", "machine", "load_average", "model_id", "bundle", "data", "items", "limits"}
    assert kept["machine"].keys() >= {"cpu", "cores", "memory_gib", "kernel", "python", "onnxruntime"}
    assert re.fullmatch("[0-9a-f]{40}", kept["commit"]["id"])
    assert 3_500 <= kept["items"] <= 5_000
    # Figures are of one machine in one hour: whether they are met is what the file must tell, truly, and the docs repeat.
    assert [key for key, limit in kept["limits"].items() if not limit["met"]] == missed(kept)
    docs = (LATEST.parents[2] / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    assert docs.count("**missed**") == len(missed(kept))
