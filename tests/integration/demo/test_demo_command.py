"""`longwave demo` as a process, with a stand-in for the trainer: everything else is real."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from app.demo.service import choose_port

HERE = Path(__file__).parent

# The command with the trainer exchanged: `console_script` is the one place that finds it.
LAUNCHER = """
import sys
import app.demo.trainer
trainer = sys.argv.pop(1)
app.demo.trainer.console_script = lambda name: trainer
from app.cli import main
main()
"""


@pytest.fixture
def demo(tiny_bundle, tmp_path):
    """Starts a demo in `tmp_path / "demo"`; its output goes to `tmp_path / "out"`, and none outlives the test."""
    trainer = tmp_path / "longwave-train"
    trainer.write_text(f'#!/bin/sh\nexec {sys.executable} {HERE / "stand_in_trainer.py"} "$@"\n')
    trainer.chmod(0o755)

    @contextmanager
    def run(*options: str, **environment: str):
        # A port of its own: demos of other tests run at the same time, and between the choice and the service lies a second.
        common = ["--dir", str(tmp_path / "demo"), "--port", str(choose_port("127.0.0.1", None, 0))]
        command = [sys.executable, "-W", "error", "-c", LAUNCHER, str(trainer), "demo", *common, *options]
        variables = os.environ | {"BUNDLE": str(tiny_bundle), "COLUMNS": "110"} | environment
        with (tmp_path / "out").open("wb") as out:
            process = subprocess.Popen(command, env=variables, stdout=out, stderr=subprocess.STDOUT)
        try:
            yield process
        finally:
            process.kill()
            process.wait()

    return run


def await_words(path, words, process):
    deadline = time.monotonic() + 60
    while not (found := re.search(words, path.read_text())):
        assert process.poll() is None, path.read_text()
        assert time.monotonic() < deadline, path.read_text()
        time.sleep(0.02)
    return found


def alive(folder):
    """Command lines of this machine's processes that have to do with the demo's folder."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            words = (entry / "cmdline").read_bytes()
            where = (entry / "cwd").readlink()  # Redis alone stands in its folder, and may name it nowhere
        except OSError:
            continue
        if os.fsencode(folder / "demo") in words or where.is_relative_to(folder / "demo"):
            found.append(words)
    return found


@pytest.mark.parametrize("limit", [0, 2])
def test_a_demo_once_ends_with_one_json_object_and_leaves_nothing_running(demo, tmp_path, limit):
    with demo("--once", "--limit", str(limit)) as process:
        assert process.wait(100) == 0, (tmp_path / "out").read_text()
    text = (tmp_path / "out").read_text()
    result = json.loads(text.splitlines()[-1])
    assert list(result) == ["dataset", "seconds_to_first_recommendation", "live", "offline", "baselines"]
    assert result["dataset"] == "by hand"
    assert 0 < result["seconds_to_first_recommendation"] < 100
    assert list(result["live"]) == ["recall@20", "ndcg@20"]
    assert result["offline"] == {"recall@20": 0.25, "ndcg@20": 0.125}
    assert result["baselines"] == {"popularity": {"recall@20": 0.25, "ndcg@20": 0.125}}
    assert "Online Retail cannot be had here, so the demo takes its synthetic world" in text
    assert ("customer regular (country France)" in text) == (limit == 0)  # with 2 questions nobody came back
    assert "LIVE DIFFERS FROM OFFLINE" in text  # the stand-in has measured nothing
    if sys.platform == "linux":
        assert alive(tmp_path) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_service_stays_until_it_is_stopped_and_then_nothing_is_left(demo, tmp_path, number):
    with demo("--dataset", "synthetic-demo") as process:
        url = await_words(tmp_path / "out", r"curl '(\S+)'", process)[1]
        await_words(tmp_path / "out", "Ctrl-C stops it", process)
        if sys.platform == "linux":
            assert len(alive(tmp_path)) == 3  # the demo, its service and its Redis
        answer = httpx.get(url).json()
        assert (answer["source"], answer["user_id"], len(answer["items"])) == ("model", "new", 5)
        process.send_signal(number)
        process.send_signal(number)  # impatience must not cut the stopping short
        assert process.wait(30) == 0
    assert "stopping" in (tmp_path / "out").read_text()
    with pytest.raises(httpx.TransportError):
        httpx.get(url)
    if sys.platform == "linux":
        assert alive(tmp_path) == []


@pytest.mark.parametrize("slow", ["train", "evaluate"])
def test_ctrl_c_in_the_middle_stops_every_child(demo, tmp_path, slow):
    where, words = (tmp_path / "out", "stand-in: train") if slow == "train" else (tmp_path / "demo" / "evaluate.log", "stand-in")
    with demo("--once", SLOW=slow) as process:
        await_words(tmp_path / "out", "Data", process)
        while not where.exists():
            time.sleep(0.02)
        await_words(where, words, process)
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 128 + signal.SIGINT
    assert "interrupted; everything that the demo started is stopped" in (tmp_path / "out").read_text()
    if sys.platform == "linux":
        assert alive(tmp_path) == []


def test_a_failed_command_of_the_trainer_stops_the_demo_with_its_words(demo, tmp_path):
    with demo("--once", BROKEN="train") as process:
        assert process.wait(60) == 2
    text = (tmp_path / "out").read_text()
    assert "stand-in: something is wrong" in text
    assert text.splitlines()[-1] == "error: `longwave-train train` failed with exit code 3; what it said is above"


def test_a_failed_evaluation_shows_the_end_of_its_log(demo, tmp_path):
    with demo("--once", BROKEN="evaluate") as process:
        assert process.wait(60) == 2
    text = (tmp_path / "out").read_text()
    assert "error: the offline evaluation failed with exit code 3; its last lines" in text
    assert text.splitlines()[-1] == "stand-in: something is wrong"
    if sys.platform == "linux":
        assert alive(tmp_path) == []


def test_data_that_was_asked_for_is_not_exchanged_for_other_data(demo, tmp_path):
    with demo("--once", "--dataset", "online-retail") as process:
        assert process.wait(60) == 2
    assert "error: no network" in (tmp_path / "out").read_text()


def test_a_kept_run_is_not_trained_again(demo, tmp_path):
    for options, trained in ((), True), (("--keep",), False), ((), True):
        with demo("--once", "--limit", "1", *options) as process:
            assert process.wait(60) == 0, (tmp_path / "out").read_text()
        assert ("stand-in: train" in (tmp_path / "out").read_text()) == trained
