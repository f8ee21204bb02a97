"""Named interests in a user's profile."""

import hashlib
import json
import shutil

import numpy as np
import pytest

from app.errors import OverloadedError
from app.fold import Users
from app.runtime.bundle import content_id

START_MS = 1_300_000_000_000


def bought(row, at_ms):
    return {"user_id": "u", "type": "purchase", "item_id": f"item-{row:03d}", "timestamp": at_ms}


async def test_a_profile_names_what_the_user_is_interested_in_and_how_far_that_has_moved(start):
    async with start() as client:
        of_one = [row for row in range(60) if row % 3 == 0]
        await client.tell(*[bought(row, START_MS + at) for at, row in enumerate([*of_one, *of_one, 1, 4, 7, 10, 13, 16])])
        profile = await client.profile("u")
        weights = [interest["weight"] for interest in profile["interests"]]
        assert {interest["label"] for interest in profile["interests"]} == {"books", "cups", "lamps"}
        assert weights == sorted(weights, reverse=True)
        assert sum(weights) == pytest.approx(1, abs=1e-3)
        assert 0 < profile["drift"] <= 1
        # Fresh: the next event counts at once, with no background fold.
        await client.tell(bought(50, START_MS + 10**9))
        assert (await client.profile("u"))["interests"] != profile["interests"]


async def test_one_without_events_has_no_interests_and_no_drift(start):
    async with start() as client:
        assert (await client.put("/v1/users/u", json={"attributes": {"country": "France"}})).status_code == 200
        profile = await client.profile("u")
        assert (profile["events"], profile["interests"], profile["drift"]) == (0, [], None)


async def test_a_bundle_of_before_serves_and_says_nothing_in_words(start, tiny_bundle, tmp_path):
    old = tmp_path / "old"
    shutil.copytree(tiny_bundle, old)
    for name in ("profile.onnx", "items/labels.npy"):
        (old / name).unlink()
    golden = np.load(old / "golden.npz")
    manifest = json.loads((old / "manifest.json").read_text())
    assert any(name.startswith("profile") for name in golden.files)
    np.savez(old / "golden.npz", **{name: golden[name] for name in golden.files if not name.startswith("profile")})
    for name in ("profile.onnx", "items/labels.npy"):
        del manifest["files"][name]
    del manifest["graphs"]["profile"], manifest["labels"]
    manifest["files"]["golden.npz"] = hashlib.sha256((old / "golden.npz").read_bytes()).hexdigest()
    (old / "manifest.json").write_text(json.dumps(manifest | {"model_id": content_id(manifest)}))
    async with start(bundle_dir=old) as client:
        await client.tell(bought(1, START_MS))
        profile = await client.profile("u")
        assert (profile["events"], profile["interests"], profile["drift"]) == (1, [], None)


async def test_a_merged_user_has_the_interests_of_whom_they_became_and_an_erased_one_none(start):
    async with start() as client:
        await client.tell(*[bought(row, START_MS + row) for row in range(9)])
        await client.tell(*[bought(row, START_MS + row) | {"user_id": "v"} for row in range(30, 33)])
        merged = await client.post("/v1/users/v/merge", json={"from": "u"})
        assert merged.status_code == 200, merged.text
        mine, theirs = await client.profile("u"), await client.profile("v")
        assert (mine["events"], mine["interests"], mine["drift"]) == (12, theirs["interests"], theirs["drift"])
        assert (await client.delete("/v1/users/v")).status_code in (200, 204)
        assert (await client.get("/v1/users/v")).status_code == 404


async def test_a_put_that_was_done_is_answered_as_done_also_where_too_many_wait_for_a_fold(start, monkeypatch):
    async def too_many(self, tenant, user_id):
        raise OverloadedError("too many requests are waiting")

    async with start() as client:
        await client.tell(bought(1, START_MS))
        monkeypatch.setattr(Users, "current", too_many)
        answer = await client.put("/v1/users/u", json={"attributes": {"country": "France"}})
        assert answer.status_code == 200
        assert (answer.json()["attributes"], answer.json()["interests"]) == ({"country": "France"}, [])
