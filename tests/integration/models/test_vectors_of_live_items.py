"""Vectors of items (of an image, a sound) that are given while the service runs."""

from __future__ import annotations

import json
import shutil
import warnings

import numpy as np
import pytest
import torch
from pictured_shop import START_MS, STYLES, pictures
from test_live_items import is_known, item, put, until

from app.state import keys

IMAGE, OTHER = [0.1, -0.2, 0.3], [0.5, 0.5, -1.5]


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    """Bundles that read no vectors, images of three numbers with features and sounds, and images of five; by name, their ids."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        from tiny_bundle import write_tiny_bundle

        folder, ids = tmp_path_factory.mktemp("vectors"), {}
        for name, content, vectors in (
            ("none", False, {}),
            ("three", True, {"image": 3, "sound": 2}),
            ("five", False, {"image": 5}),
        ):
            bundle = write_tiny_bundle(folder / "new", content=content, vectors=vectors)
            ids[name] = json.loads((bundle / "manifest.json").read_bytes())["model_id"]
            bundle.rename(folder / ids[name])
    return folder, ids


@pytest.fixture
async def one(start, models):
    folder, ids = models
    async with start(folder, ids["three"], catalogue_poll_ms=20) as worker:
        yield worker


async def vector_of(worker, item_id):
    await until(is_known(worker, item_id))
    catalogue = (await worker.hall.current()).catalogue
    return catalogue.vectors[catalogue.row(item_id)].copy()


async def test_a_vector_is_kept_as_float32_and_given_back_as_it_was_said(one, raw):
    await put(one, "new", title="New", vectors={"image": IMAGE, "mine": [1, 2.5]})
    assert (await item(one, "new"))["vectors"] == {"image": IMAGE, "mine": [1.0, 2.5]}
    await put(one, "wide", vectors={"mine": np.random.default_rng(0).normal(size=512).tolist()})
    assert raw.hstrlen(keys.items_key("default"), "wide") < 2_048 * 4 / 3 + 100


async def test_the_item_graph_reads_features_then_vectors_in_the_order_of_the_manifest(one):
    await put(one, "new", vectors={"sound": [4.0, 5.0], "image": IMAGE}, features={"feature_warm": 7.0})
    made = await vector_of(one, "new")
    runtime = (await one.hall.current()).runtime
    assert [vector.name for vector in runtime.bundle.manifest.item_vectors] == ["image", "sound"]
    row = np.asarray([[0.0, 7.0, *IMAGE, 4.0, 5.0]], np.float32)
    assert np.allclose(runtime.item({"features": row})["vector"][0], made, atol=1e-6)


async def test_a_changed_vector_makes_another_item_vector_and_one_that_is_taken_back_none(one):
    await put(one, "new", vectors={"image": IMAGE})
    before = await vector_of(one, "new")
    assert (await one.patch("/v1/items/new", json={"title": "Named", "vectors": {"sound": [1, 1]}})).status_code == 200
    assert (await item(one, "new"))["vectors"] == {"image": IMAGE, "sound": [1.0, 1.0]}
    await until(lambda: differs(one, "new", before))
    assert (await one.patch("/v1/items/new", json={"vectors": {"sound": None}})).status_code == 200
    await until(lambda: differs(one, "new", before, same=True))
    assert (await one.patch("/v1/items/new", json={"vectors": None})).status_code == 200
    assert ((await item(one, "new"))["vectors"], (await item(one, "new"))["known"]) == ({}, False)


async def differs(worker, item_id, before, same=False):
    return np.allclose(await vector_of(worker, item_id), before, atol=1e-6) == same


@pytest.mark.parametrize(
    ("vectors", "field", "message"),
    [
        ({"image": [1, 2]}, "vectors.image", "has 2 numbers; the model takes 3"),
        ({"mine": [1, "x"]}, "vectors.mine.1", "number"),
        ({"mine": [1, None]}, "vectors.mine.1", "number"),
        ({"mine": [1, True]}, "vectors.mine.1", "number"),
        ({"mine": [1e39]}, "vectors.mine.0", "less than"),
        ({"mine": []}, "vectors.mine", "at least 1"),
        ({"mine": [0.5] * 4_097}, "vectors.mine", "at most 4096"),
        ({"mine": 1}, "vectors.mine", "list"),
        ({f"v{n}": [1] for n in range(9)}, "vectors", "at most 8"),
        ([[1, 2]], "vectors", "dictionary"),
    ],
)
async def test_a_vector_that_cannot_be_taken_is_refused_by_its_field_and_nothing_is_stored(one, vectors, field, message):
    answer = await one.put("/v1/items/new", json={"vectors": vectors})
    assert answer.status_code == 422
    error = answer.json()["errors"][0]
    assert error["field"] == field
    assert message in error["message"]
    many = await one.post("/v1/items", json=[{"item_id": "a"}, {"item_id": "new", "vectors": vectors}])
    assert many.status_code == 422
    assert many.json()["errors"][0]["field"] == f"items.1.{field}"
    patched = await one.patch("/v1/items/item-003", json={"vectors": vectors})
    assert (patched.status_code, patched.json()["errors"][0]["field"]) == (422, field)
    assert (await one.get("/v1/items/new")).status_code == 404
    assert (await one.get("/v1/items/a")).status_code == 404


async def test_vectors_wait_for_a_model_that_reads_them_and_one_of_another_length_changes_nothing(start, models):
    folder, ids = models
    async with start(folder, ids["none"], catalogue_poll_ms=20) as worker:
        await put(worker, "new", title="New", vectors={"image": IMAGE})
        assert not (await item(worker, "new"))["known"]
        assert (await worker.activate(ids["three"])).status_code == 200
        before = await vector_of(worker, "new")
        assert (await worker.activate(ids["five"])).status_code == 200
        shown = await item(worker, "new")
        assert (shown["known"], shown["vectors"]) == (False, {"image": IMAGE})
        # What is not about it may be changed all the same; it itself only to what is taken now.
        assert (await worker.patch("/v1/items/new", json={"title": "Named"})).status_code == 200
        refused = await worker.patch("/v1/items/new", json={"vectors": {"image": OTHER}})
        assert refused.json()["errors"][0]["message"] == "has 3 numbers; the model takes 5"
        assert (await item(worker, "new"))["vectors"] == {"image": IMAGE}
        assert (await worker.activate(ids["three"])).status_code == 200
        assert np.allclose(await vector_of(worker, "new"), before, atol=1e-6)


async def test_items_with_vectors_outlive_a_restart(start, models):
    folder, ids = models
    async with start(folder, ids["three"]) as worker:
        await put(worker, "new", vectors={"image": IMAGE})
        await put(worker, "item-003", vectors={"image": IMAGE, "mine": [1.0]})
        await put(worker, "gone", vectors={"image": OTHER})
        await worker.delete("/v1/items/gone")
        before = await vector_of(worker, "new")
    async with start(folder, ids["three"]) as worker:
        assert np.array_equal(await vector_of(worker, "new"), before)
        assert (await item(worker, "item-003"))["vectors"] == {"image": IMAGE, "mine": [1.0]}
        catalogue = (await worker.hall.current()).catalogue
        assert catalogue.knows("gone")  # what users did with it stays understood


@pytest.mark.parametrize("damage", [b'{"x":' + b"[" * 20_000, b'{"title":"\xff"}', b'{"vectors":{"image":"AAA="}}', b"{"])
async def test_an_item_that_is_damaged_in_the_store_holds_up_no_other(start, models, raw, damage):
    folder, ids = models
    async with start(folder, ids["three"]) as worker:
        for item_id in ("bad", "good"):
            await put(worker, item_id, vectors={"image": IMAGE})
    raw.hset(keys.items_key("default"), "bad", b"1 1 " + damage)
    async with start(folder, ids["three"], catalogue_poll_ms=20) as worker:
        assert (await worker.get("/v1/items/bad")).status_code == 503
        await until(is_known(worker, "good"))
        await put(worker, "bad", vectors={"image": IMAGE})
        await until(is_known(worker, "bad"))


async def test_the_models_say_which_vectors_they_read(one, models):
    _, ids = models
    found = {model["model_id"]: model["vectors"] for model in (await one.models())["models"]}
    assert found == {ids["none"]: {}, ids["three"]: {"image": 3, "sound": 2}, ids["five"]: {"image": 5}}


async def test_new_items_of_one_title_are_told_apart_by_their_pictures(start, pictured_shop, tmp_path):
    bundle = (pictured_shop / "bundles" / "current").resolve()
    shutil.copytree(bundle, tmp_path / bundle.name)
    new = pictures(STYLES, seed=5)
    async with start(tmp_path, bundle.name, catalogue_poll_ms=20) as worker:
        for style in range(STYLES):
            await put(worker, f"new-{style}", title="Thing", vectors={"image": new[style].tolist()})
        made = np.stack([await vector_of(worker, f"new-{style}") for style in range(STYLES)])
        catalogue = (await worker.hall.current()).catalogue
        trained = np.asarray(catalogue.vectors[: catalogue.bundle_rows])
        cosine = unit(made) @ unit(trained).T
        ids = catalogue.ids.of(range(len(trained)))
        like = np.array([[int(name[1:]) % STYLES == style for name in ids] for style in range(STYLES)])
        for style in range(STYLES):  # nearer to every trained item of its style than to any other on average, by far
            assert cosine[style][like[style]].mean() > cosine[style][~like[style]].mean() + 0.5
        events = [
            {"user_id": f"u{style}", "item_id": f"i{row * STYLES + style:02d}", "type": "purchase", "timestamp": START_MS + row}
            for style in range(STYLES)
            for row in range(10)
        ]
        await worker.tell(*events)
        for style in range(STYLES):
            asked = {"user_id": f"u{style}", "items": [f"new-{n}" for n in range(STYLES)]}
            ranked = json.loads((await worker.post("/v1/rankings", json=asked)).content)["items"]
            assert ranked[0]["item_id"] == f"new-{style}"
    # And they are what the trainer makes of the same pictures.
    from model.checkpoint import load_checkpoint

    with torch.no_grad():
        vectors, _ = load_checkpoint(pictured_shop / "run" / "checkpoint.pt").net.item.unseen(None, torch.as_tensor(new))
    np.testing.assert_allclose(made, vectors.numpy(), atol=1e-5)


def unit(vectors):
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
