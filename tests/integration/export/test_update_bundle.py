"""What an update publishes is a bundle like any other: proven, opened by the service, and the next update's beginning."""

import json
import os
import shutil
from pathlib import Path

import pytest
from changed_world import EDITION, change
from tiny_run import TinyRun
from typer.testing import CliRunner

from app.models.shelf import Shelf, load_model
from app.runtime.bundle import read_bundle
from model.cli import app
from model.data.dataset import write_dataset
from model.export.verify import ExportError
from model.loop import COLD
from model.publish import publish
from model.settings import UpdateSettings
from model.update.newer import NothingNewError
from model.update.origin import read_origin
from model.update.run import update


@pytest.fixture(scope="module")
def updated(tmp_path_factory, trained_bundle, tiny_run: TinyRun):
    """A folder of bundles after an update by the command, and what the command said."""
    folder = tmp_path_factory.mktemp("updated")
    origin = read_origin(trained_bundle)
    write_dataset(change(tiny_run.data, origin.checkpoint.known_until_ms), folder / "data")
    shutil.copytree(trained_bundle.parent, folder / "bundles", symlinks=True)
    (folder / "fast.toml").write_text("[update]\nlearning_rate = 0.003\ndirect_learning_rate = 0.003\n")
    words = ["update", "--from", folder / "bundles" / "current", "--events", folder / "data", "--config", folder / "fast.toml"]
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exit_code == 0, result.output
    return folder, result.stdout


def test_the_service_opens_it_and_its_golden_vectors_replay(updated, trained_bundle):
    folder, said = updated
    bundle = load_model((folder / "bundles" / "current").resolve(), "cpu", 1).bundle
    assert bundle.manifest.model_id != trained_bundle.name
    assert f"bundle {bundle.manifest.model_id}" in said
    old = read_bundle(trained_bundle)
    ids = [item.id for item in bundle.items]
    assert ids[: len(old.items)] == [item.id for item in old.items]
    assert all(item.startswith(EDITION) for item in ids[len(old.items) :])
    titles = {item.id: item.title for item in bundle.items}
    assert all(titles[item] == titles[item.removeprefix(EDITION)] for item in ids[len(old.items) :])


def test_its_manifest_has_the_figures_of_both_models(updated, trained_bundle):
    folder, _ = updated
    metrics = json.loads((folder / "bundles" / "current" / "manifest.json").read_text())["metrics"]
    assert [metric.get("model", "longwave") for metric in metrics] == ["longwave", trained_bundle.name]
    assert metrics[0]["value"] >= metrics[1]["value"]


def test_both_bundles_are_on_the_services_shelf_and_nothing_else(updated, trained_bundle):
    folder, _ = updated
    current = folder / "bundles" / "current"
    found = Shelf(current, None).look()
    assert set(found) == {trained_bundle.name, os.readlink(current)}
    assert all(one.problem is None for one in found.values())


def test_the_next_update_goes_on_from_it(updated, tmp_path: Path):
    folder, _ = updated
    origin = read_origin(folder / "bundles" / "current")
    assert origin.checkpoint.known_until_ms > 0
    with pytest.raises(NothingNewError, match="too little is new"):
        update(folder / "bundles" / "current", folder / "data", tmp_path, UpdateSettings(holdout=0.01))
    assert list(tmp_path.iterdir()) == []


def test_what_was_measured_for_users_with_few_events_goes_with_the_run_and_its_updates(
    updated, tiny_run, trained_bundle, tmp_path
):
    folder, _ = updated
    run = shutil.copytree(tiny_run.run, tmp_path / "run")
    cold = {"facets": ["country"], "events": [1, 3], "weights": [1.0, 0.0]}
    (run / COLD).write_text(json.dumps(cold))
    before = publish(run, tiny_run.data, tmp_path / "bundles").folder
    assert before.name != trained_bundle.name  # it answers in another way
    assert read_bundle(before).manifest.cold.model_dump() == cold
    settings = UpdateSettings(learning_rate=0.003, direct_learning_rate=0.003)
    after = update(before, folder / "data", None, settings).exported.folder
    assert read_bundle(after).manifest.cold.model_dump() == cold
    (run / COLD).write_text("[1]")
    with pytest.raises(ExportError, match="not an object"):
        publish(run, tiny_run.data, tmp_path / "others")


def test_an_update_stores_numbers_as_the_bundle_before_did(updated, tiny_run: TinyRun, tmp_path: Path):
    folder, _ = updated
    before = publish(tiny_run.run, tiny_run.data, tmp_path, item_vectors="int8", weights="int8").folder
    assert (read_origin(before).item_vectors, read_origin(before).weights) == ("int8", "int8")
    settings = UpdateSettings(learning_rate=0.003, direct_learning_rate=0.003)
    after = update(before, folder / "data", None, settings).exported.folder
    manifest = read_bundle(after).manifest
    assert (manifest.items.scales, manifest.weights) == ("items/scales.npy", "int8")
    assert (after / "encode.onnx").stat().st_size == (before / "encode.onnx").stat().st_size
    assert read_origin(folder / "bundles" / "current").item_vectors == "float32"
