"""The Locust scenario as it is run, against the real service and against one that forgets."""

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

SCENARIO = (
    "-m",
    "locust",
    "-f",
    "loadtests/locustfile.py",
    "--headless",
    "--only-summary",
    "--json",
    "-u",
    3,
    "-r",
    3,
    "-t",
    "6s",
)


def stats(done):
    """The statistics by method and name, from the JSON on stdout."""
    return {f"{one['method']} {one['name']}": one for one in json.loads(done.stdout)}


def test_visits_run_against_the_real_service_without_a_failure(service_port, python):
    done = python(*SCENARIO, "--host", f"http://127.0.0.1:{service_port}")
    assert done.returncode == 0, done.stdout + done.stderr
    found = stats(done)
    assert found["GET /v1/users/{unknown}/recommendations"]["num_requests"] == 3  # once a visitor, to learn the items
    looks = found["GET /v1/users/{id}/recommendations"]["num_requests"]
    assert 0 <= found["POST /v1/events"]["num_requests"] - looks <= 3  # the end may fall between the two
    assert 3 <= looks <= 21  # a constant rate: one a second and visitor


def test_items_come_from_a_file_where_one_is_given(service_port, tiny_bundle, python):
    items = {"LONGWAVE_ITEMS": str(tiny_bundle / "items/items.jsonl")}
    done = python(*SCENARIO, "--host", f"http://127.0.0.1:{service_port}", **items)
    assert done.returncode == 0, done.stdout + done.stderr
    assert set(stats(done)) == {"POST /v1/events", "GET /v1/users/{id}/recommendations"}


def test_an_event_type_that_the_model_does_not_know_fails_and_the_reason_is_shown(service_port, python):
    done = python(*SCENARIO, "--host", f"http://127.0.0.1:{service_port}", LONGWAVE_EVENT_TYPE="nap")
    assert done.returncode == 1
    assert "the model knows cancellation, purchase, view" in done.stdout + done.stderr


class Forgetful(BaseHTTPRequestHandler):
    """Acknowledges everything and remembers nothing."""

    protocol_version = "HTTP/1.1"

    def do_POST(self):
        event = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self._answer({"stored": 1, "totals": {event["user_id"]: 1}, "results": []})

    def do_GET(self):
        self._answer({"applied_events": 0, "items": [{"item_id": "a"}]})

    def _answer(self, document):
        body = json.dumps(document).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def forgetful_url():
    with _serving(ThreadingHTTPServer(("127.0.0.1", 0), Forgetful)) as port:
        yield f"http://127.0.0.1:{port}"


@contextmanager
def _serving(server):
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_a_service_that_forgets_what_it_acknowledged_fails_the_scenario(forgetful_url, python):
    done = python(*SCENARIO, "--host", forgetful_url)
    assert done.returncode == 1
    found = stats(done)
    looks = found["GET /v1/users/{id}/recommendations"]
    assert looks["num_requests"] == looks["num_failures"] > 0
    assert found["POST /v1/events"]["num_failures"] == 0
