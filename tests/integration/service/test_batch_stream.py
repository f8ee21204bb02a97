"""A batch of lists over a real connection: hanging up, stopping the service, and other requests meanwhile."""

import json
import re
import signal
import time

import httpx
import pytest
from test_serving_process import serving, within

BODY = {"user_ids": [f"user {number}" for number in range(10_000)], "k": 60}


@pytest.fixture
def served(tiny_bundle, tmp_path, redis_url, monkeypatch):
    monkeypatch.setenv("LONGWAVE_REDIS_URL", redis_url)
    with serving(tiny_bundle, tmp_path / "data") as (url, process):
        yield url, process
    assert "Traceback" not in (tmp_path / "serve.log").read_text()


def made(url):
    """Lists that were made so far; nobody has a history here."""
    found = re.search(r'longwave_fallbacks_total\{reason="unknown_user"\} (\S+)', httpx.get(f"{url}/metrics").text)
    return float(found[1]) if found else 0.0


def stands_still(url):
    before = made(url)
    time.sleep(0.3)
    return made(url) == before


def test_who_hangs_up_ends_the_work_and_who_reads_slowly_is_waited_for(served):
    url, _ = served
    with httpx.stream("POST", f"{url}/v1/recommendations/batch", json=BODY, timeout=30) as response:
        read = response.iter_lines()
        assert [json.loads(next(read))["user_id"] for _ in range(3)] == BODY["user_ids"][:3]
        within(60, lambda: stands_still(url))  # the buffers of the connection are full, and what nobody reads is not made
        held = made(url)
        for _ in range(int(held) - 100):
            next(read)
        within(60, lambda: made(url) > held)
    within(60, lambda: stands_still(url))
    assert made(url) < 10_000


def test_lists_of_one_are_answered_while_a_batch_is_made(served):
    url, _ = served
    with httpx.Client(base_url=url, timeout=30) as client, client.stream("POST", "/v1/recommendations/batch", json=BODY) as batch:
        lines = batch.iter_lines()
        seconds = []
        with httpx.Client(base_url=url, timeout=30) as other:
            for number in range(50):
                for _ in range(100):
                    next(lines)
                began = time.monotonic()
                assert other.get(f"/v1/users/user {number}/recommendations").status_code == 200
                seconds.append(time.monotonic() - began)
        assert sorted(seconds)[25] < 0.2  # ours here are milliseconds; behind thousands it would be seconds
        assert len(list(lines)) == 5_000


def test_a_service_that_is_stopped_ends_a_batch_with_a_line_that_says_so(served):
    url, process = served
    with httpx.stream("POST", f"{url}/v1/recommendations/batch", json=BODY, timeout=30) as response:
        read = response.iter_lines()
        next(read)
        process.send_signal(signal.SIGTERM)
        time.sleep(0.5)
        last = json.loads(list(read)[-1])
    assert (last["user_id"], last["problem"]["status"]) == (None, 503)
    assert process.wait(15) == 0
