"""The bench against the real service, shortened."""

import json
import os
import subprocess

import pytest

from loadtests.machine import ROOT
from loadtests.report import missed
from loadtests.world import choose_bundle

pytestmark = pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="the bench needs two cores")


def test_one_round_measures_every_figure_and_exits_by_the_limits(tiny_bundle, python, tmp_path):
    out = tmp_path / "latest.json"
    done = python("-m", "loadtests.bench", "--bundle", tiny_bundle, "--rounds", 1, "--out", out, COLUMNS="200")
    assert out.exists(), done.stderr
    found = json.loads(out.read_text())
    assert done.returncode == (1 if missed(found) else 0)
    assert (found["items"], found["model_id"]) == (60, choose_bundle(tiny_bundle).model_id)
    assert "get_floor_ratio" in done.stdout
    assert "<= 5" in done.stdout
    # HTTP costs something, folding an event costs something, and the floor is a floor
    assert found["get_service_p50_ms"] < found["get_client_p50_ms"]
    assert found["fold_event_p50_ms"] > found["get_fold_p50_ms"]
    assert found["get_floor_ratio"] > 1
    assert found["throughput_floor_rps"] > found["throughput_get_rps"]
    assert str(tmp_path) not in out.read_text()


def test_a_folder_that_is_no_bundle_ends_in_one_line(python, tmp_path):
    done = python("-m", "loadtests.bench", "--bundle", tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {tmp_path}/manifest.json: missing")
    assert done.stderr.count("\n") == 1


def test_make_bench_runs_the_bench_with_its_arguments():
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    command = ["make", "--dry-run", "bench", "ARGS=--rounds 3"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.splitlines()[-1] == ".venv/bin/python -m loadtests.bench --rounds 3"
