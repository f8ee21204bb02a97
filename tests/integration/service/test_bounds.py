"""What clients of `longwave serve` can make it hold: headers, bodies that never end, connections."""

from __future__ import annotations

import json
import socket
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import pytest
from test_serving_process import purchase, serving, within

POST = b"POST /v1/events HTTP/1.1\r\nHost: x\r\n"
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"


@pytest.fixture
def served(tiny_bundle, tmp_path, redis_url, monkeypatch):
    """Serve with such settings; yields the URL and the process."""

    @contextmanager
    def run(**settings):
        for name, value in {"redis_url": redis_url, **settings}.items():
            monkeypatch.setenv(f"LONGWAVE_{name.upper()}", str(value))
        with serving(tiny_bundle, tmp_path / "data") as (url, process):
            yield url, process
        assert "Traceback" not in (tmp_path / "serve.log").read_text()

    return run


def opened(stack, url):
    connection = stack.enter_context(socket.create_connection(("127.0.0.1", httpx.URL(url).port)))
    connection.settimeout(10)
    return connection


def rest_of(connection):
    """Everything until the server closes."""
    got = b""
    try:
        while piece := connection.recv(65536):
            got += piece
    except ConnectionResetError:
        pass  # it closed with some of ours unread
    return got


def answer_to(url, *pieces):
    with ExitStack() as stack:
        connection = opened(stack, url)
        try:
            for piece in pieces:
                connection.sendall(piece)
        except (ConnectionResetError, BrokenPipeError):
            pass
        return rest_of(connection)


def problem(answer):
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"content-type: application/problem+json" in head
    assert b"connection: close" in head.lower()
    assert json.loads(body)["status"] == int(head.split()[1])
    return int(head.split()[1])


def memory_mb(process):
    status = Path(f"/proc/{process.pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) // 1024


def test_heads_beyond_their_bound_are_refused_however_they_come(served):
    line = b"X: " + b"a" * 997
    with served() as (url, process):
        just = POST.replace(b"POST", b"GET") + b"Connection: close\r\n" + (line + b"\r\n") * 63 + b"\r\n"
        assert answer_to(url, just).split()[1] == b"405"
        assert problem(answer_to(url, POST + (line + b"\r\n") * 70 + b"\r\n")) == 431  # in one piece
        before = memory_mb(process)
        for endless in (
            [POST, *[line + b"\r\n"] * 50_000],
            [POST + b"X: ", *[b"a" * 1000] * 50_000],
            [b"GET /", *[b"a" * 1000] * 50_000],
        ):
            assert answer_to(url, *endless)[9:12] in (b"431", b"")
        # What comes after a chunked body is kept like headers.
        assert answer_to(url, CHUNKED + b"0\r\n", *[line + b"\r\n"] * 50_000)[9:12] in (b"431", b"")
        assert memory_mb(process) - before < 20
        # A long body is no head, and neither is the start of another one behind it.
        body = json.dumps([purchase("u", n % 60, n) for n in range(900)]).encode() + b" " * 100_000
        request = b"Content-Length: %d\r\n\r\n" % len(body) + body
        assert answer_to(url, POST + request + POST + b"Connection: close\r\n" + request).count(b"HTTP/1.1 200") == 2
        pieces = [b"%x\r\n" % 1000 + body[at : at + 1000].ljust(1000) + b"\r\n" for at in range(0, len(body), 1000)]
        assert (
            answer_to(url, CHUNKED.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"), *pieces, b"0\r\n\r\n").split()[1]
            == b"200"
        )


def test_what_is_no_http_gets_a_problem_document(served):
    with served() as (url, _):
        assert problem(answer_to(url, b"\x16\x03\x01\x02\x00\x01\x00")) == 400


@pytest.mark.parametrize("protocol", [b"h2c", b"websocket"])
def test_a_wish_for_another_protocol_costs_no_request_its_body(served, protocol):
    upgrade = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: " + protocol + b"\r\nHTTP2-Settings: AAMAAABk\r\n"
    bodies = [json.dumps(purchase("u", n, n)).encode() for n in range(300)]
    requests = [POST + upgrade + b"Content-Length: %d\r\n\r\n" % len(body) + body for body in bodies]
    in_chunks = POST + upgrade + b"Transfer-Encoding: chunked\r\n\r\n" + b"%x\r\n%b\r\n0\r\n\r\n" % (len(bodies[0]), bodies[0])
    last = b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    with served() as (url, _):
        assert answer_to(url, requests[0] + last).count(b'{"stored":1,') == 1
        assert answer_to(url, *(requests[0][at : at + 1] for at in range(len(requests[0]))), last).count(b'{"stored":1,') == 1
        assert answer_to(url, in_chunks + last).count(b'{"stored":1,') == 1
        assert answer_to(url, b"".join(requests) + last).count(b'{"stored":1,') == 300
        assert httpx.get(f"{url}/v1/users/u").json()["events"] == 303
        assert problem(answer_to(url, POST + upgrade + b"X: " + b"a" * 70_000 + b"\r\n\r\n")) == 431


def test_requests_that_do_not_become_whole_are_closed(served):
    with served(request_timeout_s=1) as (url, _), ExitStack() as stack:
        silent, head, body, second = (opened(stack, url) for _ in range(4))
        head.sendall(b"GET /healthz HTTP/1.1\r\nHo")
        body.sendall(POST + b"Content-Length: 500\r\n\r\n{")
        second.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\nGET /healthz HTTP/1.1\r\n")
        began = time.monotonic()
        assert rest_of(silent) == b""
        assert problem(rest_of(head)) == 408
        assert problem(rest_of(body)) == 408
        answers = rest_of(second)
        assert (answers.count(b"HTTP/1.1 200"), answers.count(b"HTTP/1.1 408")) == (1, 1)
        assert 0.5 < time.monotonic() - began < 5


def test_a_connection_that_is_used_again_outlives_the_time_for_one_request(served):
    with served(request_timeout_s=1) as (url, _), httpx.Client(base_url=url) as client:
        for _ in range(8):
            client.post("/v1/events", json=purchase("u", 1)).raise_for_status()
            time.sleep(0.25)
        assert answer_to(url, b"\r\n") == b""


def test_long_bodies_have_room_together_and_short_ones_always(served):
    with served(max_bodies_bytes=10_000_000) as (url, process), ExitStack() as stack:
        before = memory_mb(process)
        head = POST + b"Content-Length: 4190000\r\n\r\n"
        refused = []
        for _ in range(20):
            connection = opened(stack, url)
            connection.sendall(head + b" " * 4_000_000)
            refused.append(connection)
        httpx.post(f"{url}/v1/events", json=purchase("u", 1)).raise_for_status()
        answers = []
        for connection in refused:
            connection.settimeout(1)
            try:
                answers.append(connection.recv(65536))
            except TimeoutError:
                answers.append(b"")
        assert answers.count(b"") == 2
        assert all(b" 503 " in answer and b"retry-after: 1" in answer.lower() for answer in answers if answer)
        assert memory_mb(process) - before < 60
        stack.close()

        def taken():
            return httpx.post(f"{url}/v1/events", content=b"[" + b" " * 3_000_000 + b"]").status_code != 503

        within(5, taken)  # what hung up holds nothing any more


def test_connections_beyond_their_number_are_told_so(served):
    with served(max_connections=5) as (url, _), ExitStack() as stack:
        within(5, lambda: httpx.get(f"{url}/healthz").status_code == 200)
        for _ in range(5):
            opened(stack, url).sendall(b"GET")
        answer = rest_of(opened(stack, url))
        assert problem(answer) == 503
        assert b"retry-after: 1" in answer.lower()
        stack.close()
        within(5, lambda: httpx.get(f"{url}/healthz").status_code == 200)


def test_nobody_is_sent_to_the_host_that_a_client_names(served):
    with served() as (url, _):
        for path in ("/v1/users", "/v1/events/", "/docs/"):
            answer = httpx.get(url + path, headers={"host": "elsewhere.example"})
            assert (answer.status_code, answer.headers.get("location")) == (404, None)
