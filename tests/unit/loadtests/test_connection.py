"""The bench's bare HTTP client, against a real server."""

import json

import pytest

from loadtests.connection import Connection, get, post, saturate
from loadtests.errors import BenchError


def test_one_connection_posts_and_reads_again_and_again(service_port):
    event = {"user_id": "u", "item_id": "item-001", "type": "purchase"}
    with Connection(service_port) as connection:
        for n in range(1, 4):
            assert connection.ask(post("/v1/events", json.dumps(event).encode())).status == 200
            answer = connection.ask(get("/v1/users/u/recommendations?k=60"))  # longer than one segment
            assert json.loads(answer.body)["applied_events"] == n
            assert answer.timing.startswith("load;dur=")
            assert answer.seconds > 0
        assert connection.ask(get("/nothing")).status == 404
        assert connection.ask(get("/healthz")).timing == ""


def test_saturation_counts_whole_answers_and_refuses_bad_ones(service_port):
    answers, seconds = saturate(service_port, [get("/healthz"), get("/v1/users/u/recommendations")], 4, 0.3)
    assert answers > 40
    assert 0.3 <= seconds < 5
    with pytest.raises(BenchError, match="404"):
        saturate(service_port, [get("/nothing")], 2, 5.0)


def test_a_port_where_nobody_listens_is_an_error_with_its_number():
    with pytest.raises(BenchError, match="port 1:"):
        Connection(1)
