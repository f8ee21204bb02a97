"""The load generator: against the real service, and against a server whose faults are known."""

import json
import os
import resource
import socket
import threading
import time
from contextlib import contextmanager
from itertools import repeat

import pytest

from loadtests.connection import Connection, get, post
from loadtests.errors import BenchError
from loadtests.loop import Loop
from loadtests.pace import saturate, steadily
from loadtests.samples import percentile

ANSWER = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}"


def test_one_connection_posts_and_reads_again_and_again(service_port):
    event = {"user_id": "u", "item_id": "item-001", "type": "purchase"}
    with Connection(service_port) as connection:
        for n in range(1, 4):
            assert connection.ask(post("/v1/events", json.dumps(event).encode())).status == 200
            answer = connection.ask(get("/v1/users/u/recommendations?k=60"))  # longer than one segment
            assert json.loads(answer.body)["applied_events"] == n
            assert "load;dur=" in answer.timing
            assert answer.seconds > 0
        assert connection.ask(get("/nothing")).status == 404
        assert connection.ask(get("/healthz")).timing == ""


def test_saturation_counts_whole_answers_and_refuses_bad_ones(service_port):
    found = saturate(service_port, iter([get("/healthz"), get("/v1/users/u/recommendations")] * 50_000), 4, 0.3)
    assert found.answers > 5
    assert 0.3 <= found.seconds < 5
    with pytest.raises(BenchError, match="404"):
        saturate(service_port, repeat(get("/nothing")), 2, 5.0)


def test_a_port_where_nobody_listens_is_an_error_with_its_number():
    with pytest.raises(BenchError, match="port 1:"):
        Connection(1)


@contextmanager
def serving(answer):
    """A server of one connection at a time; `answer(n)` gives the bytes for the n-th request."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve():
            number = 0
            while True:
                try:
                    connection, _ = listening.accept()
                except OSError:
                    return
                with connection:
                    while connection.recv(65_536):
                        connection.sendall(answer(number))
                        number += 1

        threading.Thread(target=serve, daemon=True).start()
        yield listening.getsockname()[1]
        listening.shutdown(socket.SHUT_RDWR)


def test_a_constant_rate_sends_what_is_due_and_is_on_time():
    with serving(lambda n: ANSWER) as port:
        found = steadily(port, repeat(get("/")), 200, 1, 0.5)
    assert 90 <= len(found.latencies) <= 101
    assert percentile(found.late, 50) < 0.002
    assert found.queued < 10


def test_a_server_that_stalls_pays_for_everyone_who_would_have_come_meanwhile():
    def stalling(n):
        if n == 20:
            time.sleep(0.2)
        return ANSWER

    with serving(stalling) as port:
        found = steadily(port, repeat(get("/")), 200, 1, 0.5)
    # 40 requests were due in these 200 ms, and waited 100 of them on average; a closed loop would have seen one slow answer
    assert sum(seconds > 0.05 for seconds in found.latencies) >= 25
    assert found.queued >= 25


def test_an_answer_that_comes_in_pieces_is_one_answer():
    head, body = ANSWER[:-1], ANSWER[-1:]

    def pieces(n):
        return head if n == 0 else body

    with serving(pieces) as port, Loop() as loop:
        replies = []
        wire = loop.wire(port)

        def done(reply):
            replies.append(reply)
            loop.stop()

        wire.send(get("/"), done)
        # the server gives the rest when it hears anything at all
        loop.at(time.perf_counter() + 0.05, lambda: wire.send(b"more", done))
        loop.run(5.0)
    assert [reply.raw for reply in replies] == [ANSWER]


def test_a_loop_that_waits_for_what_does_not_come_gives_up():
    with Loop() as loop, pytest.raises(BenchError, match=r"did not end within 0\.05 s"):
        loop.run(0.05)


def test_timers_fire_in_their_order_and_stop_may_come_before_the_run():
    with Loop() as loop:
        fired = []
        now = time.perf_counter()
        loop.at(now + 0.02, loop.stop)
        loop.at(now + 0.01, lambda: fired.append("second"))
        loop.at(now, lambda: fired.append("first"))
        loop.run(5.0)
        assert fired == ["first", "second"]
        loop.stop()
        loop.run(5.0)


def test_a_process_with_many_open_files_can_still_measure():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(max(soft, 4_096), hard), hard))
    open_files = [os.open(os.devnull, os.O_RDONLY) for _ in range(1_100)]  # select knows the first 1,024 alone
    try:
        with serving(lambda n: ANSWER) as port:
            found = steadily(port, repeat(get("/")), 200, 1, 0.2)
    finally:
        for descriptor in open_files:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert len(found.latencies) == 40
