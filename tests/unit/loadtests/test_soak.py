"""What the soak takes for growth, and a short one against the real service."""

import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from itertools import islice
from pathlib import Path

import pytest

from app.state.embedded import EmbeddedRedis
from loadtests.busy import family
from loadtests.client import Client
from loadtests.connection import get
from loadtests.errors import BenchError
from loadtests.machine import ROOT
from loadtests.servers import Server, serving
from loadtests.soak import Memory, Swaps, mixed, trend
from loadtests.twin import twins
from loadtests.world import choose_bundle

two_cores = pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="the soak needs two cores")


def test_flat_memory_has_no_slope_and_the_warm_up_does_not_count():
    found = trend([0, 10, 20, 30], [50, 100 << 20, 100 << 20, 100 << 20], warm_up_s=5)
    assert (found["slope_mib_per_hour"], found["max_deviation"], found["samples"]) == (0, 0, 3)


def test_memory_that_grows_has_the_slope_of_its_growth():
    found = trend([0, 3_600, 7_200], [100 << 20, 110 << 20, 120 << 20], warm_up_s=0)
    assert found["slope_mib_per_hour"] == pytest.approx(10)
    assert found["max_deviation"] == pytest.approx(10 / 110)


def test_a_mix_has_two_reads_for_each_write():
    requests = mixed(iter([b"r1", b"r2", b"r3", b"r4"]), iter([b"w1", b"w2"]))
    assert list(islice(requests, 6)) == [b"r1", b"r2", b"w1", b"r3", b"r4", b"w2"]


@two_cores
def test_a_short_one_says_what_each_process_had(tiny_bundle, python, tmp_path):
    out = tmp_path / "soak.json"
    done = python("-m", "loadtests.soak", "--bundle", tiny_bundle, "--minutes", 0.1, "--out", out)
    assert out.exists(), done.stderr
    found = json.loads(out.read_text())
    assert found["swaps"] == 0
    assert found["latency"]["get"]["samples"] > found["latency"]["post"]["samples"] > 0
    assert {"service", "archiver 1", "redis"} <= set(found["processes"])
    assert found["processes"]["service"]["samples"] >= 6
    assert found["processes"]["service"]["median_mib"] > 20
    assert done.returncode == (0 if found["max_deviation"] <= found["limit"] else 1)


def test_the_model_changes_back_and_forth_and_memory_is_what_it_was_before(tiny_bundle, tmp_path):
    both, core = twins(tiny_bundle, tmp_path / "bundles"), min(os.sched_getaffinity(0))
    first = choose_bundle(tiny_bundle).model_id
    with ExitStack() as stack:
        store = stack.enter_context(EmbeddedRedis(tmp_path / "redis", fsync="no"))
        options = {"bundles_dir": both.folder}
        server = stack.enter_context(serving(both.first, store.url, [core], tmp_path / "service.log", **options))
        pool = stack.enter_context(ThreadPoolExecutor(1))
        swaps = Swaps(server, (first, both.other), Memory({"redis": store.pid}), pool)
        served = [_served(server)]
        for at_s in (1.0, 2.0, 3.0):
            swaps.swap(at_s)
            swaps.check()
            served.append(_served(server))
        unknown = Swaps(server, (first, "0" * 16), swaps.resting, pool)
        unknown.swap(4.0)
        with pytest.raises(BenchError, match="404"):
            unknown.check()
    assert served == [first, both.other, first, both.other]
    assert swaps.resting.at_s[:3] == [1.0, 2.0, 3.0]


@two_cores
def test_sigterm_ends_what_it_has_started_too(tiny_bundle, tmp_path):
    command = [sys.executable, "-m", "loadtests.soak", "--bundle", str(tiny_bundle), "--out", str(tmp_path / "soak.json")]
    soak = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        started = _await_children(soak.pid, 3)  # Redis, the service, a worker
        soak.terminate()
        assert soak.wait(60) == 128 + signal.SIGTERM
    finally:
        soak.kill()
    assert not [pid for pid in started if Path(f"/proc/{pid}").exists()]
    assert not (tmp_path / "soak.json").exists()


def _await_children(pid: int, least: int) -> list[int]:
    deadline = time.monotonic() + 60
    while len(children := family(pid)[1:]) < least:
        assert time.monotonic() < deadline, children
        time.sleep(0.1)
    return children


def _served(server: Server) -> str:
    with Client(server) as client:
        return json.loads(client.answer(get("/readyz")).body)["model_id"]
