"""Bundles from before score.onnx took the logarithms: they are served as they were."""

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from bundle_edit import edit_manifest, replace_file
from onnx import compose

from app.runtime.bundle import read_bundle
from app.runtime.golden import replay_golden
from app.runtime.session import Runtime, open_runtime


@pytest.fixture
def runtimes(tiny_bundle: Path, tmp_path: Path) -> tuple[Runtime, Runtime]:
    """The bundle as it is, and with the logarithm inside of score.onnx."""
    folder = tmp_path / "before"
    shutil.copytree(tiny_bundle, folder)
    recent, score = (compose.add_prefix(onnx.load(folder / f"{name}.onnx"), f"{name}/", rename_inputs=False, rename_outputs=False)
                     for name in ("recent", "score"))  # fmt: skip
    whole = compose.merge_models(recent, score, io_map=[("recent", "recent")])
    replace_file(folder, "score.onnx", whole.SerializeToString())
    with np.load(folder / "golden.npz") as golden:
        arrays = {name: golden[name] for name in golden.files if not name.startswith("recent/")}
    logs = arrays.pop("score/in/recent")
    np.savez(folder / "golden.npz", **arrays, **{"score/in/popularity": (np.exp(logs) - 0.05).astype(np.float32)})
    replace_file(folder, "golden.npz", (folder / "golden.npz").read_bytes())
    (folder / "recent.onnx").unlink()
    manifest = json.loads((folder / "manifest.json").read_text())
    counts = manifest["graphs"].pop("recent")["inputs"]
    inputs = manifest["graphs"]["score"]["inputs"]
    manifest["graphs"]["score"]["inputs"] = [each for each in inputs if each["name"] != "recent"] + counts
    manifest["files"].pop("recent.onnx")
    edit_manifest(folder, graphs=manifest["graphs"], files=manifest["files"])
    now, before = (open_runtime(read_bundle(path), "cpu", 1) for path in (tiny_bundle, folder))
    return now, before


def test_a_bundle_whose_score_takes_counts_gives_the_same_list(runtimes: tuple[Runtime, Runtime]):
    now, before = runtimes
    assert before.recent is None
    assert replay_golden(before) > 0
    assert replay_golden(now) > replay_golden(before)
    items, (half_lives,) = len(now.bundle.bias), now.bundle.popularity.shape[1:]
    random = np.random.default_rng(0)
    inputs = {tensor.name: tensor.shape for tensor in now.bundle.manifest.graphs["score"].inputs}
    width, slots = now.bundle.vectors.shape[1], 4
    feeds = {
        "interests": random.normal(size=(2, inputs["interests"][1], width)).astype(np.float32),
        "item_matrix": now.bundle.vectors,
        "item_bias": now.bundle.bias,
        "popularity_weight": random.uniform(size=(2, half_lives)).astype(np.float32),
        "bias": np.zeros((1, items), np.float32),
        "k": np.asarray([7]),
        "repeat_rows": random.integers(-1, items, (2, slots)),
        "repeat_scores": random.normal(size=(2, slots)).astype(np.float32),
        "repeat_interest": random.normal(size=(2, width)).astype(np.float32),
    }
    counts = now.bundle.popularity.astype(np.float32)
    of_now, of_before = (runtime.score(feeds | runtime.of_popularity(counts)) for runtime in runtimes)
    assert of_now["rows"].tolist() == of_before["rows"].tolist()
    np.testing.assert_allclose(of_now["scores"], of_before["scores"], atol=1e-6)
