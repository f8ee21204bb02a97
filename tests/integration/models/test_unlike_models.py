"""What a swap makes of models that differ (wrong numbers behind right checksums, other event types), and of missing states."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from bundle_edit import edit_manifest, replace_file
from conftest import event


def model_id_of(bundle: Path) -> str:
    return json.loads((bundle / "manifest.json").read_bytes())["model_id"]


def ids_and_scores(answer):
    return [(item["item_id"], item["score"]) for item in answer["items"]]


@pytest.mark.parametrize("name", ["step/out/h_out", "encode/out/h_out", "interest/out/interests", "score/out/scores"])
async def test_golden_vectors_that_do_not_come_out_are_refused_though_every_checksum_fits(start, two_models, tmp_path, name):
    folder, old, new = two_models
    copy = shutil.copytree(folder, tmp_path / "bundles")
    golden = dict(np.load(copy / new / "golden.npz"))
    golden[name] = golden[name] + np.float32(0.5)
    np.savez(tmp_path / "golden.npz", **golden)
    replace_file(copy / new, "golden.npz", (tmp_path / "golden.npz").read_bytes())
    wrong = model_id_of(copy / new)
    assert wrong != new
    async with start(copy, old) as one, start(copy, old) as other:
        await one.tell(*(event("u", n, n) for n in range(5)))
        response = await one.activate(wrong)
        assert response.status_code == 409, response.text
        assert f"golden.npz: {name}: off by" in json.loads(response.content)["detail"]
        assert {(await worker.ask("u"))["model_id"] for worker in (one, other)} == {old}
        assert (await other.models())["last_activation"]["result"] == "refused"


async def test_events_of_a_type_that_the_new_model_does_not_know_are_kept_and_passed_over(start, two_models, tmp_path):
    folder, old, new = two_models
    copy = shutil.copytree(folder, tmp_path / "bundles")
    types = json.loads((copy / new / "manifest.json").read_bytes())["event_types"]
    assert [one["name"] for one in types] == ["purchase", "view", "cancellation"]
    edit_manifest(copy / new, event_types=types[:2])
    fewer = model_id_of(copy / new)
    purchases = [event("u", 3 * n, 2 * n) for n in range(10)]
    cancellations = [event("u", 3 * n, 2 * n + 1) | {"type": "cancellation"} for n in range(10)]
    mixed = [one for pair in zip(purchases, cancellations, strict=True) for one in pair]
    only = [one | {"user_id": "only"} for one in cancellations]
    async with start(copy, old) as one, start(copy, old) as other:
        await one.tell(*mixed, *only)
        await one.tell(*(one | {"user_id": "plain"} for one in purchases))
        assert (await one.activate(fewer)).status_code == 200
        answer = await other.ask("u")
        assert (answer["model_id"], answer["source"], answer["applied_events"]) == (fewer, "model", 20)
        # as if they had not been: what the model does not know cannot move it
        assert [i for i, _ in ids_and_scores(answer)] == [i for i, _ in ids_and_scores(await other.ask("plain"))]
        answer = await other.ask("only")
        assert (answer["applied_events"], len(answer["items"])) == (10, 10)
        refused = await one.post("/v1/events", json=event("u", 1, 99) | {"type": "cancellation"})
        assert refused.status_code == 422
        assert "purchase, view" in refused.text
        await one.tell(event("u", 1, 99))
        # the way back finds all of them
        assert (await other.activate(old)).status_code == 200
        assert (await one.ask("u"))["applied_events"] == 21
        await one.tell(event("u", 2, 100) | {"type": "cancellation"})
        assert (await other.ask("u"))["applied_events"] == 22


async def test_lists_are_exactly_the_same_with_and_without_backfill(start, two_models, raw):
    folder, old, new = two_models
    users = [f"u{n}" for n in range(8)]
    answers = []
    for days in (36_500, 0):  # all users, none
        raw.flushall()
        async with (
            start(folder, old, backfill_days=days, commit_events=1) as one,
            start(folder, old, backfill_days=days) as other,
        ):
            for n, user in enumerate(users):  # of very different lengths: beyond what is folded between requests, too
                await one.tell(*(event(user, 7 * k + n, k) for k in range(1 + 30 * n)))
            assert (await one.activate(new)).status_code == 200
            stored = list(raw.scan_iter(f"lw:*:state:{new}:*"))
            assert len(stored) == (len(users) if days else 0)
            answers.append([ids_and_scores(await worker.ask(user, k=50)) for user in users for worker in (one, other)])
    for with_backfill, without in zip(*answers, strict=True):
        assert [item_id for item_id, _ in with_backfill] == [item_id for item_id, _ in without]
        np.testing.assert_allclose([score for _, score in with_backfill], [score for _, score in without], atol=1e-4)
