"""The bench against the real service, shortened."""

import json
import os
import subprocess

import pytest

from loadtests.limits import missed
from loadtests.machine import ROOT
from loadtests.world import choose_bundle

pytestmark = pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="the bench needs two cores")


def test_a_short_run_measures_every_figure_and_exits_by_the_limits(tiny_bundle, python, tmp_path):
    out = tmp_path / "latest.json"
    done = python("-m", "loadtests.bench", "--bundle", tiny_bundle, "--scale", 0.02, "--out", out, COLUMNS="200")
    assert out.exists(), done.stderr
    found = json.loads(out.read_text())
    assert done.returncode == (1 if missed(found) or found["does_not_count"] else 0)
    assert (found["items"], found["model_id"]) == (60, choose_bundle(tiny_bundle).model_id)
    assert None not in [found[key] for key in found["made_of"]]
    assert "get_throughput_ratio" in done.stdout
    assert ">= 0.6" in done.stdout
    assert found["get_service_p50_ms"] < found["get_client_p50_ms"]  # HTTP costs something
    assert min(found[key] for key in found["made_of"]) > 0
    batches = found["made_of"]["batch_events_per_second"]
    assert batches["folds_counted"] >= batches["events"] == 2_000  # in whole batches
    assert batches["acknowledged_s"] <= batches["folded_s"]
    lags = found["made_of"]["fold_p99_ms"]
    assert lags["samples"] == lags["buckets_ms"]["inf"] > lags["seen_by_a_client"]["samples"] == 20
    kinds = [value for key, value in found["made_of"]["user_bytes"].items() if key.endswith("_key_bytes")]
    # the keys themselves, and what the server's tables take for them
    assert sum(kinds) - 3_000 < found["user_bytes"] < sum(kinds) + 10_000
    assert str(tmp_path) not in out.read_text()


def test_a_part_alone_leaves_the_other_figures_unmeasured(tiny_bundle, python, tmp_path):
    out = tmp_path / "part.json"
    command = ("-m", "loadtests.bench", "--bundle", tiny_bundle, "--scale", 0.02, "--only", "footprint", "--out", out)
    done = python(*command, COLUMNS="200")
    found = json.loads(out.read_text())
    assert found["user_bytes"] > 1_000
    assert found["get_throughput_ratio"] is None
    assert "not measured" in done.stdout


def test_a_folder_that_is_no_bundle_ends_in_one_line(python, tmp_path):
    done = python("-m", "loadtests.bench", "--bundle", tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {tmp_path}/manifest.json: missing")
    assert done.stderr.count("\n") == 1


def test_make_bench_runs_the_bench_with_its_arguments():
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    command = ["make", "--dry-run", "bench", "ARGS=--scale 3"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240, check=True)
    assert done.stdout.splitlines()[-1] == ".venv/bin/python -m loadtests.bench --scale 3"
