"""`longwave serve` as it is run: as a process of its own."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import onnxruntime
import pytest
import redis

LONGWAVE = Path(sys.executable).parent / "longwave"

# What the serving environment must do without, and the trainer.
FORBIDDEN = ("torch", "transformers", "onnx", "onnxscript", "polars", "pyarrow", "model", "scipy", "sklearn", "matplotlib")

WITHOUT_TORCH = """
import asyncio, importlib.abc, sys
forbidden = set(sys.argv[1].split(","))

class Refuse(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.partition(".")[0] in forbidden:
            raise ImportError(f"{name} is not in the serving environment")

sys.meta_path.insert(0, Refuse())
import httpx
from app.main import create_app
from app.settings import load_settings

async def serve():
    app = create_app(load_settings(bundle_dir=sys.argv[2], storage_dir=sys.argv[3]))
    transport = httpx.ASGITransport(app)
    async with app.router.lifespan_context(app), httpx.AsyncClient(transport=transport, base_url="http://s") as client:
        posted = await client.post("/v1/events", json={"user_id": "u", "item_id": "item-001", "type": "purchase"})
        got = await client.get("/v1/users/u/recommendations")
        print(posted.status_code, got.json()["source"], got.json()["applied_events"])

asyncio.run(serve())
assert not forbidden & set(sys.modules), forbidden & set(sys.modules)
import app.cli, app.doctor
"""


@contextmanager
def serving(bundle: Path, storage: Path, *options: str):
    """A running service on a free port; yields its URL and its process."""
    log = storage.parent / "serve.log"
    with log.open("ab") as stream:
        start = log.stat().st_size
        arguments = ["serve", "--bundle", bundle, "--storage-dir", storage, "--port", "0", *options]
        process = subprocess.Popen([LONGWAVE, *arguments], stderr=stream, stdout=stream)
    try:
        for _ in range(300):
            text = log.read_text()[start:]
            port = re.search(r"running on http://127\.0\.0\.1:(\d+)", text)
            if port and _ready(f"http://127.0.0.1:{port[1]}"):
                break
            assert process.poll() is None, text
            time.sleep(0.05)
        else:
            raise AssertionError(text)
        yield f"http://127.0.0.1:{port[1]}", process
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(20)


def _ready(url):
    try:
        return httpx.get(f"{url}/readyz").status_code == 200
    except httpx.TransportError:
        return False


def purchase(user_id, item, n=0):
    return {"user_id": user_id, "item_id": f"item-{item:03d}", "type": "purchase", "timestamp": 1_300_000_000_000 + n}


def test_the_service_imports_and_serves_without_torch(tiny_bundle, tmp_path):
    command = [sys.executable, "-W", "error", "-c", WITHOUT_TORCH, ",".join(FORBIDDEN), tiny_bundle, tmp_path / "data"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.split() == ["200", "model", "1"], done.stderr


def test_stop_and_start_and_users_are_still_known(tiny_bundle, tmp_path):
    question = "/v1/users/u/recommendations?as_of=1300000100000"
    with serving(tiny_bundle, tmp_path / "data") as (url, process):
        httpx.post(f"{url}/v1/events", json=[purchase("u", i, i) for i in range(5)]).raise_for_status()
        before = httpx.get(url + question).json()
    assert process.returncode == 0  # a graceful stop is no failure
    with serving(tiny_bundle, tmp_path / "data") as (url, _):
        after = httpx.get(url + question).json()
    assert (after["source"], after["applied_events"]) == ("model", 5)
    assert [i["item_id"] for i in after["items"]] == [i["item_id"] for i in before["items"]]


def test_two_workers_answer_with_every_acknowledged_event(tiny_bundle, tmp_path):
    def session(user_id):
        # A new connection each time, so that writes and reads meet both workers.
        for n in range(1, 26):
            httpx.post(f"{url}/v1/events", json=purchase(user_id, n, n)).raise_for_status()
            answer = httpx.get(f"{url}/v1/users/{user_id}/recommendations?as_of=1300000100000").json()
            assert (answer["source"], answer["applied_events"]) == ("model", n)

    with serving(tiny_bundle, tmp_path / "data", "--workers", "2") as (url, process):
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        if children.exists():
            commands = [Path(f"/proc/{pid}/cmdline").read_bytes() for pid in children.read_text().split()]
            assert sum(b"spawn_main" in command for command in commands) == 2
            assert len(children_of(process.pid, b"redis-server")) == 1  # one, shared by both
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(session, ["a", "b", "c", "d"]))
        stored = re.search(r'longwave_events_total{result="stored"} (\d+)', httpx.get(f"{url}/metrics").text)
        assert int(stored[1]) == 100  # over both workers, whichever of them was asked


def test_two_services_on_one_redis_answer_with_what_either_has_acknowledged(tiny_bundle, tmp_path, redis_url, monkeypatch):
    monkeypatch.setenv("LONGWAVE_REDIS_URL", redis_url)
    for host in ("a", "b"):
        (tmp_path / host).mkdir()
    with serving(tiny_bundle, tmp_path / "a" / "data") as (a, _), serving(tiny_bundle, tmp_path / "b" / "data") as (b, _):
        for n in range(1, 21):
            told, asked = (a, b) if n % 2 else (b, a)
            # A view does not count towards popularity, of which the other service hears later.
            httpx.post(f"{told}/v1/events", json=purchase("u", n, n) | {"type": "view"}).raise_for_status()
            answers = [httpx.get(f"{url}/v1/users/u/recommendations?as_of=1300000100000").json() for url in (asked, told)]
            assert [(answer["source"], answer["applied_events"]) for answer in answers] == [("model", n)] * 2
            assert answers[0]["items"] == answers[1]["items"]


def children_of(pid, command):
    children = Path(f"/proc/{pid}/task").glob("*/children")
    pids = [int(child) for of_thread in children for child in of_thread.read_text().split()]
    return [child for child in pids if command in Path(f"/proc/{child}/cmdline").read_bytes()]


def gone(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def within(seconds, holds):
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.skipif(sys.platform != "linux", reason="finds the workers under /proc")
def test_a_worker_that_is_silent_for_some_seconds_is_not_killed(tiny_bundle, tmp_path):
    """As on a machine that is busy with something else."""
    with serving(tiny_bundle, tmp_path / "data", "--workers", "2") as (_, process):
        workers = children_of(process.pid, b"spawn_main")
        os.kill(workers[0], signal.SIGSTOP)
        time.sleep(8)
        os.kill(workers[0], signal.SIGCONT)
        time.sleep(1)
        assert children_of(process.pid, b"spawn_main") == workers


@pytest.mark.skipif(sys.platform != "linux", reason="finds the workers under /proc")
def test_a_killed_worker_is_replaced_while_another_is_silent(tiny_bundle, tmp_path):
    """One that is silent may be starting, or may have died just as it was asked: nobody is waited for."""
    with serving(tiny_bundle, tmp_path / "data", "--workers", "2") as (url, process):
        silent, killed = children_of(process.pid, b"spawn_main")
        os.kill(silent, signal.SIGSTOP)
        try:
            time.sleep(1.2)  # it has been asked for a sign of life, twice a second
            os.kill(killed, signal.SIGKILL)
            within(30, lambda: gone(killed) and len(children_of(process.pid, b"spawn_main")) == 2 and _ready(url))
            assert silent in children_of(process.pid, b"spawn_main")
        finally:
            os.kill(silent, signal.SIGCONT)


def test_where_no_worker_can_start_the_command_fails(tiny_bundle, tmp_path):
    """What started it must see that it did not end by being told to."""
    dies = "import os, sys\nif any('spawn_main' in word for word in sys.orig_argv): os._exit(3)\n"  # as uvicorn's workers do then
    (tmp_path / "sitecustomize.py").write_text(dies)
    command = ("serve", "--bundle", tiny_bundle, "--storage-dir", tmp_path / "data", "--port", "0", "--workers", "2")
    done = run(*command, PYTHONPATH=os.pathsep.join([str(tmp_path), *sys.path]))
    assert done.returncode == 3, done.stderr
    assert "No worker can start" in done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="finds the workers under /proc")
def test_the_service_ends_though_a_worker_stands_still(tiny_bundle, tmp_path):
    with serving(tiny_bundle, tmp_path / "data", "--workers", "2") as (_, process):
        silent, _ = children_of(process.pid, b"spawn_main")
        os.kill(silent, signal.SIGSTOP)
        process.terminate()
        assert process.wait(40) == 0
        assert gone(silent)


@pytest.mark.skipif(sys.platform != "linux", reason="the parent-death signal is Linux's")
def test_workers_end_with_a_killed_parent_and_free_the_port(tiny_bundle, tmp_path):
    with serving(tiny_bundle, tmp_path / "data", "--workers", "2") as (url, process):
        workers, servers = children_of(process.pid, b"spawn_main"), children_of(process.pid, b"redis-server")
        assert (len(workers), len(servers)) == (2, 1)
        process.kill()
        process.wait()
        within(15, lambda: all(map(gone, workers + servers)))
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{url}/healthz")


@pytest.mark.skipif(sys.platform != "linux", reason="finds the server under /proc")
@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_killed_embedded_redis_comes_back_with_its_users(tiny_bundle, tmp_path, workers):
    with serving(tiny_bundle, tmp_path / "data", "--workers", workers) as (url, process):
        httpx.post(f"{url}/v1/events", json=[purchase("u", i, i) for i in range(5)]).raise_for_status()
        (server,) = children_of(process.pid, b"redis-server")
        os.kill(server, signal.SIGKILL)
        within(10, lambda: httpx.post(f"{url}/v1/events", json=purchase("v", 1)).status_code == 200)
        # The other worker may hear a moment later that Redis is back; until then it says 503, and nothing else.
        within(10, lambda: httpx.get(f"{url}/v1/users/u").status_code != 503)
        answer = httpx.get(f"{url}/v1/users/u")
        assert (answer.status_code, answer.json().get("events")) == (200, 5), answer.text
        assert children_of(process.pid, b"redis-server") != [server]
    log = (tmp_path / "serve.log").read_text()
    assert "the embedded Redis has died and is started again" in log
    assert process.returncode == 0


def run(*arguments, **environment):
    return subprocess.run(
        [LONGWAVE, *arguments], capture_output=True, text=True, timeout=60, check=False, env=os.environ | environment
    )


def test_serving_a_damaged_bundle_fails_with_one_clear_line(tiny_bundle, tmp_path):
    folder = shutil.copytree(tiny_bundle, tmp_path / "bundle")
    (folder / "golden.npz").write_bytes(b"?")
    done = run("serve", "--bundle", folder, "--storage-dir", tmp_path / "data")
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {folder}/golden.npz: damaged")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(("name", "value"), [("LONGWAVE_WORKERS", "0"), ("LONGWAVE_DEVICE", "abacus")])
def test_a_bad_setting_fails_with_one_line_that_names_it(name, value):
    done = run("serve", **{name: value})
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {name}: ")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("workers", ["1", "2"])
@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("LONGWAVE_DEVICE", "cuda", "LONGWAVE_DEVICE=cuda, but"),
        ("LONGWAVE_REDIS_URL", "http://localhost", "LONGWAVE_REDIS_URL: "),
    ],
)
def test_what_cannot_be_had_is_refused_before_any_worker_starts(tiny_bundle, tmp_path, workers, name, value, says):
    if value == "cuda" and "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this machine may have CUDA")
    arguments = ["serve", "--bundle", tiny_bundle, "--storage-dir", tmp_path / "data", "--port", "0", "--workers", workers]
    done = run(*arguments, **{name: value})
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {says}")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("workers", ["1", "2"])
def test_options_win_over_the_environment_in_every_worker(tiny_bundle, tmp_path, monkeypatch, workers):
    monkeypatch.setenv("LONGWAVE_PORT", "abc")
    monkeypatch.setenv("longwave_workers", "none")
    monkeypatch.setenv("LONGWAVE_MAX_BATCH_EVENTS", "2")
    with serving(tiny_bundle, tmp_path / "data", "--workers", workers) as (url, _):
        assert httpx.post(f"{url}/v1/events", json=[purchase("u", n) for n in range(3)]).status_code >= 400
        httpx.post(f"{url}/v1/events", json=[purchase("u", n) for n in range(2)]).raise_for_status()
    log = (tmp_path / "serve.log").read_text()
    assert re.search(r"ready.*redis=embedded", log)


def test_two_services_do_not_share_a_storage_folder(tiny_bundle, tmp_path):
    with serving(tiny_bundle, tmp_path / "data") as (_, process):
        done = run("serve", "--bundle", tiny_bundle, "--storage-dir", tmp_path / "data", "--port", "0")
        assert done.returncode == 2
        assert f"is in use by process {process.pid}" in done.stderr


def test_the_doctor_finds_nothing_wrong_with_a_sound_installation(tiny_bundle, tmp_path):
    done = run("doctor", "--bundle", tiny_bundle, "--storage-dir", tmp_path / "data", COLUMNS="200")
    assert done.returncode == 0, done.stdout
    assert "golden outputs replayed" in done.stdout
    assert "CPUExecutionProvider" in done.stdout


def test_the_doctor_says_that_redis_keeps_no_file(tiny_bundle, redis_url):
    def asked():
        return run("doctor", "--bundle", tiny_bundle, LONGWAVE_REDIS_URL=redis_url, COLUMNS="250")

    assert "append-only" not in asked().stdout
    with redis.Redis.from_url(redis_url) as client:
        client.config_set("appendonly", "no")
        try:
            done = asked()
        finally:
            client.config_set("appendonly", "yes")
    assert done.returncode == 0  # a hosted one may have replicas instead
    assert "keeps no append-only file" in done.stdout


def test_the_doctor_names_what_is_broken_and_goes_on(tiny_bundle, tmp_path):
    redis_url = f"unix://{tmp_path}/none.sock"
    done = run("doctor", "--bundle", tmp_path / "none", LONGWAVE_REDIS_URL=redis_url, COLUMNS="200")
    assert done.returncode == 1
    lines = {line.split("│")[1].strip(): line for line in done.stdout.splitlines() if "│" in line}
    assert "broken" in lines["bundle"]
    assert "no such folder" in lines["bundle"]
    assert "broken" in lines["redis"]
    assert "ok" in lines["disk"]
