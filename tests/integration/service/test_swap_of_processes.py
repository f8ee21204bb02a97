"""A swap of `longwave serve --workers 2`, as it is run: no request fails, and after the 200 none is answered by the old model."""

from __future__ import annotations

import json
import threading
import time
import warnings

import httpx
from test_serving_process import purchase, serving

QUESTION = "/v1/users/u/recommendations?as_of=1300000100000"


def test_no_request_fails_or_sees_the_old_model_after_the_activation(tmp_path, monkeypatch):
    folder = tmp_path / "bundles"
    models = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch's own, of the exporter that we use on purpose
        from tiny_bundle import write_tiny_bundle

        for seed in (0, 1):
            bundle = write_tiny_bundle(folder / "new", seed=seed)
            models.append(json.loads((bundle / "manifest.json").read_bytes())["model_id"])
            bundle.rename(folder / models[-1])
    old, new = models
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
    assert len(answers) > 100
    for began, model_id in ((began, model_id) for began, model_id, _ in answers):
        done = [of for at, of in swaps if at < began]
        coming = [of for at, of in swaps if at >= began][:1]
        assert model_id in {done[-1] if done else old, *coming}
    assert {model_id for _, model_id, _ in answers} == {old, new}
