"""Who counts as dead among several workers, and is replaced."""

import errno
from multiprocessing import Pipe

import pytest
import uvicorn

import app.workers
from app.workers import Workers

SILENT_S = 60


class Worker:
    """Of a supervisor that starts nobody: dies and answers when it is told to."""

    def __init__(self, *_):
        self.parent_conn, self.child_conn = Pipe()
        self.process, self.pid, self.exitcode = self, 1, None
        self.alive = self.begun = True

    def start(self):
        self.begun = True

    def is_alive(self):
        return self.alive

    def kill(self):
        self.alive, self.exitcode = False, -9

    def join(self, timeout=None):
        assert timeout is not None or not self.alive

    def answer(self):
        """What uvicorn's worker does when it is asked."""
        assert self.child_conn.recv() == b"ping"
        self.child_conn.send(True)


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(app.workers, "monotonic", lambda: now[0])
    return now


@pytest.fixture
def workers(monkeypatch):
    monkeypatch.setattr(app.workers, "Process", Worker)
    monkeypatch.setattr("signal.signal", lambda *_: None)
    config = uvicorn.Config("nothing", port=0, workers=3, timeout_worker_healthcheck=SILENT_S)
    found = Workers(config)
    found.processes = [Worker() for _ in range(3)]
    yield found
    for sock in found.sockets:
        sock.close()


def test_one_that_has_died_is_replaced_at_once_and_none_other_is(workers, clock):
    first, second, third = workers.processes
    workers.keep_subprocess_alive()
    second.alive = False
    clock[0] += 5
    workers.keep_subprocess_alive()
    assert [place is now for place, now in zip((first, second, third), workers.processes, strict=True)] == [True, False, True]
    assert workers.processes[1].alive


def test_one_that_is_silent_for_too_long_is_killed_and_replaced(workers, clock):
    first, second, third = workers.processes
    for _ in range(2 * SILENT_S - 1):
        workers.keep_subprocess_alive()
        first.answer()
        third.answer()
        clock[0] += 0.5
    assert workers.processes == [first, second, third]
    clock[0] += 0.5
    workers.keep_subprocess_alive()
    assert (workers.processes[0], workers.processes[2]) == (first, third)
    assert workers.processes[1] is not second
    assert second.exitcode == -9


def test_an_answer_that_comes_late_counts(workers, clock):
    (first, *_) = before = list(workers.processes)
    workers.keep_subprocess_alive()
    clock[0] += SILENT_S - 1
    for worker in before:
        worker.answer()
    workers.keep_subprocess_alive()
    clock[0] += SILENT_S - 1
    workers.keep_subprocess_alive()
    assert workers.processes == before
    assert first.child_conn.poll()  # it has been asked again


def fail_to_start(worker):
    worker.alive = False
    worker.kill = lambda: None
    worker.exitcode = uvicorn.config.STARTUP_FAILURE


def test_where_none_can_start_all_end(workers, clock):
    fail_to_start(workers.processes[0])
    workers.keep_subprocess_alive()
    assert workers.should_exit.is_set()
    assert workers.failed


def test_one_that_cannot_start_leaves_those_at_work_that_did(workers, clock):
    first, second, third = workers.processes
    workers.keep_subprocess_alive()
    first.answer()
    fail_to_start(second)
    clock[0] += 5
    workers.keep_subprocess_alive()
    assert not workers.should_exit.is_set()
    assert (workers.processes[0], workers.processes[2]) == (first, third)
    assert workers.processes[1].alive


def test_in_the_place_of_one_that_dies_at_once_none_starts_more_often_than_every_five_seconds(workers, clock):
    started = {id(workers.processes[1])}
    for _ in range(2 * SILENT_S):
        workers.keep_subprocess_alive()
        for other in (workers.processes[0], workers.processes[2]):
            other.answer()
        started.add(id(workers.processes[1]))
        workers.processes[1].alive = False
        clock[0] += 0.5
    assert SILENT_S / 6 < len(started) <= SILENT_S / 5 + 1
    assert not workers.should_exit.is_set()


def test_where_no_process_can_be_had_for_a_while_the_others_go_on(workers, clock, monkeypatch):
    def refuse(worker):
        raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")

    first, second, third = workers.processes
    workers.keep_subprocess_alive()
    first.answer()
    third.answer()
    second.alive = False
    clock[0] += 5
    with monkeypatch.context() as none_to_be_had:
        none_to_be_had.setattr(Worker, "start", refuse)
        workers.keep_subprocess_alive()
    assert workers.processes == [first, second, third]
    assert not workers.should_exit.is_set()
    clock[0] += 5
    workers.keep_subprocess_alive()
    assert (workers.processes[0], workers.processes[2]) == (first, third)
    assert workers.processes[1].alive


def test_at_the_end_one_that_stands_still_is_killed(workers, clock):
    first, second, third = workers.processes
    first.alive = third.alive = False
    workers.join_all()
    assert (first.exitcode, second.exitcode, third.exitcode) == (None, -9, None)
