"""No child outlives the demo."""

from __future__ import annotations

import fcntl
import os
import signal
import sys
import time

import pytest

from app.demo.children import Children, console_script
from app.demo.errors import DemoError
from app.demo.signals import Interrupted, Signals

SLEEP = "import time; print('asleep', flush=True); time.sleep(60)"


def python(code):
    return [sys.executable, "-c", code]


def await_words(log, words):
    deadline = time.monotonic() + 20
    while words not in log.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_children_end_with_the_context_the_latest_first(tmp_path):
    ends = tmp_path / "ends"
    code = "import sys, time\ntry: print('up'); time.sleep(60)\nfinally:\n with open(sys.argv[1], 'a') as f: f.write(sys.argv[2])"
    with Signals() as signals, Children(signals) as children:
        for name in "ab":
            child = children.start(name, [*python(code), str(ends), name], log=tmp_path / name)
            await_words(tmp_path / name, "up")
            assert child.running
    assert not child.running
    assert ends.read_text() == "ba"


def test_a_child_that_will_not_end_is_killed_with_its_own_children(tmp_path, monkeypatch):
    monkeypatch.setattr("app.demo.children._STOP_S", 0.2)
    lock = (tmp_path / "lock").open("w")
    grandchild = f"import fcntl; lock = open({lock.name!r}); fcntl.flock(lock, fcntl.LOCK_EX); {SLEEP}"
    code = f"""
import signal, subprocess, sys
signal.signal(signal.SIGINT, signal.SIG_IGN)
subprocess.Popen([sys.executable, '-c', {grandchild!r}])
signal.pause()
"""
    with lock, Signals() as signals:
        with Children(signals) as children:
            child = children.start("stubborn", python(code), log=tmp_path / "log")
            await_words(tmp_path / "log", "asleep")
            with pytest.raises(BlockingIOError):
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        assert child.process.returncode == -signal.SIGKILL
        deadline = time.monotonic() + 10  # the grandchild was sent its signal, but is not ours to wait for
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                assert time.monotonic() < deadline
                time.sleep(0.01)


def test_a_signal_ends_the_demo_once_and_is_no_error_of_the_children(tmp_path):
    before = signal.getsignal(signal.SIGINT)  # ignored, where the tests run in the background
    with pytest.raises(Interrupted) as caught, Signals() as signals, Children(signals) as children:  # noqa: PT012
        child = children.start("child", python(SLEEP), log=tmp_path / "log")
        await_words(tmp_path / "log", "asleep")
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)
        finally:
            os.kill(os.getpid(), signal.SIGINT)  # impatience while things are being stopped changes nothing
    assert caught.value.code == 128 + signal.SIGTERM
    assert not child.running
    assert signal.getsignal(signal.SIGINT) is before


def test_a_signal_waits_while_something_must_not_be_cut_in_two():
    done = []
    with pytest.raises(Interrupted), Signals() as signals, signals.deferred():  # noqa: PT012
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.01)
        done.append(True)
    assert done


def test_the_failure_of_a_child_shows_its_last_lines(tmp_path):
    with Signals() as signals, Children(signals) as children:
        child = children.start("child", python("for n in range(40): print(f'line {n}.')"), log=tmp_path / "log")
        child.process.wait()
        said = child.failure("it ended").detail
    assert said.startswith(f"it ended; its last lines ({tmp_path}/log):\nline 25.")
    assert said.endswith("line 39.")


def test_a_nicer_child_is_nicer(tmp_path):
    with Signals() as signals, Children(signals) as children:
        children.start("child", python("import os; print(os.nice(0))"), log=tmp_path / "log", niceness=3).process.wait()
    assert int((tmp_path / "log").read_text()) == min(19, os.nice(0) + 3)


def test_a_command_that_is_not_installed_is_named():
    with pytest.raises(DemoError, match="there is no longwave-nothing beside"):
        console_script("longwave-nothing")
