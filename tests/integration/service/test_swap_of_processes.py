"""A swap of `longwave serve --workers 2`, as it is run: no request fails, and after the 200 none is answered by the old model."""

from __future__ import annotations

import json
import signal
import threading
import time
import warnings

import httpx
import pytest
from test_serving_process import purchase, serving, within

QUESTION = "/v1/users/u/recommendations?as_of=1300000100000"


@pytest.fixture
def two_models(tmp_path):
    """A folder with two bundles, each named by its model id, and these ids."""
    folder = tmp_path / "bundles"
    models = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch's own, of the exporter that we use on purpose
        from tiny_bundle import write_tiny_bundle

        for seed in (0, 1):
            bundle = write_tiny_bundle(folder / "new", seed=seed)
            models.append(json.loads((bundle / "manifest.json").read_bytes())["model_id"])
            bundle.rename(folder / models[-1])
    return folder, *models


@pytest.mark.parametrize("workers", ["1", "2"])
def test_who_waits_for_an_activation_at_a_stop_is_told_so_at_once(two_models, tmp_path, monkeypatch, workers):
    folder, old, new = two_models
    monkeypatch.setenv("LONGWAVE_BUNDLES_DIR", str(folder))
    monkeypatch.setenv("LONGWAVE_BACKFILL_DAYS", "36500")
    monkeypatch.setenv("LONGWAVE_BACKFILL_EVENTS_PER_S", "1")
    told: list[httpx.Response] = []

    def activate() -> None:
        told.append(httpx.post(f"{url}/v1/models/{new}/activate", timeout=60))

    with serving(folder / old, tmp_path / "data", "--workers", workers) as (url, process):
        httpx.post(f"{url}/v1/events", json=[purchase("u", n, n) for n in range(40)]).raise_for_status()
        thread = threading.Thread(target=activate)
        thread.start()
        within(20, lambda: [m["status"] for m in httpx.get(f"{url}/v1/models").json()["models"]].count("backfilling") == 1)
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        thread.join()
        assert time.monotonic() - began < 3
        process.wait(20)
        assert time.monotonic() - began < 8
    (answer,) = told
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    assert answer.json()["detail"] == "shutting down; the running model keeps serving"
    log = (tmp_path / "serve.log").read_text()
    assert "the worker that brought it was stopped" in log
    assert "Traceback" not in log


def test_no_request_fails_or_sees_the_old_model_after_the_activation(two_models, tmp_path, monkeypatch):
    folder, old, new = two_models
    monkeypatch.setenv("LONGWAVE_BUNDLES_DIR", str(folder))
    monkeypatch.setenv("LONGWAVE_BACKFILL_DAYS", "36500")
    answers: list[tuple[float, str, bool]] = []  # when it was asked, which model answered, whether it was not the fallback
    failed: list[str] = []
    stop = threading.Event()

    def ask(url: str, number: int) -> None:
        for n in range(100_000):
            if stop.is_set():
                return
            began = time.monotonic()
            try:  # a connection for each, so that both workers are met
                got = httpx.get(url + QUESTION)
                posted = httpx.post(f"{url}/v1/events", json=purchase(f"writer {number}", n % 60, n)) if n % 3 == 0 else got
            except httpx.HTTPError as error:
                failed.append(repr(error))
                continue
            failed.extend(response.text for response in (got, posted) if response.status_code != 200)
            if got.status_code == 200:
                answer = got.json()
                answers.append((began, answer["model_id"], answer["source"] == "model" and not answer["degraded"]))

    with serving(folder / old, tmp_path / "data", "--workers", "2") as (url, _):
        httpx.post(f"{url}/v1/events", json=[purchase("u", n, n) for n in range(30)]).raise_for_status()
        threads = [threading.Thread(target=ask, args=(url, number)) for number in range(4)]
        for thread in threads:
            thread.start()
        swaps = []
        try:
            for model_id in (new, old, new):
                time.sleep(1.0)
                response = httpx.post(f"{url}/v1/models/{model_id}/activate", timeout=60)
                assert (response.status_code, response.json()) == (200, {"model_id": model_id, "status": "active"})
                swaps.append((time.monotonic(), model_id))
            time.sleep(1.0)
        finally:
            stop.set()
            for thread in threads:
                thread.join()
    assert failed == []
    assert all(by_model for _, _, by_model in answers)
    assert len(answers) > 20
    for began, model_id in ((began, model_id) for began, model_id, _ in answers):
        done = [of for at, of in swaps if at < began]
        coming = [of for at, of in swaps if at >= began][:1]
        assert model_id in {done[-1] if done else old, *coming}
    assert {model_id for _, model_id, _ in answers} == {old, new}
