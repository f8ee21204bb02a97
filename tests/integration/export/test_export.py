"""A bundle is published whole, proven and by its content, or not at all."""

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jsonschema
import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from tiny_run import TinyRun

import model.export.bundle
from app.catalogue.catalogue import Catalogue
from app.catalogue.catalogue import item_key as key_of_the_service
from app.errors import BundleError
from app.runtime.bundle import read_bundle
from app.runtime.golden import replay_golden
from app.runtime.session import open_runtime
from model.assess import load_run
from model.data.sequences import item_key as key_of_the_trainer
from model.errors import TrainerError
from model.export.bundle import SCHEMA, _publish
from model.export.graphs import ExportedGraph, TensorSpec
from model.export.verify import ExportError
from model.publish import publish

NEW = {"manifest.json": b"{}", "deep/down.bin": b"abc", "step.onnx": b"new"}


@pytest.fixture(scope="module")
def graphs(trained_bundle):
    """The graphs of the trained bundle as the exporter made them."""
    manifest = json.loads((trained_bundle / "manifest.json").read_text())
    return {
        name: ExportedGraph(
            (trained_bundle / graph["file"]).read_bytes(),
            [TensorSpec(**tensor) for tensor in graph["inputs"]],
            [TensorSpec(**tensor) for tensor in graph["outputs"]],
        )
        for name, graph in manifest["graphs"].items()
    }


def weakened(graph):
    """The graph with its largest weight two per cent smaller, as a bad exporter might have it."""
    proto = onnx.load_model_from_string(graph.proto)
    floats = [tensor for tensor in proto.graph.initializer if tensor.data_type == onnx.TensorProto.FLOAT]
    weight = max(floats, key=lambda tensor: np.prod(tensor.dims))
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * np.float32(0.98), weight.name))
    return replace(graph, proto=proto.SerializeToString())


@pytest.mark.parametrize("name", ["step", "encode", "interest", "item"])
def test_a_graph_whose_weights_are_off_is_refused_and_nothing_is_published(
    tiny_run: TinyRun, graphs, name, tmp_path, monkeypatch
):
    broken = graphs | {name: weakened(graphs[name])}
    monkeypatch.setattr(model.export.bundle, "export_graphs", lambda net: broken)
    with pytest.raises(ExportError, match=f"{name}.*differ by"):
        publish(tiny_run.run, tiny_run.data, tmp_path / "bundles")
    assert not (tmp_path / "bundles").exists()


def test_a_manifest_that_does_not_fit_its_schema_is_refused(tiny_run: TinyRun, graphs, tmp_path, monkeypatch):
    monkeypatch.setattr(model.export.bundle, "export_graphs", lambda net: graphs)
    monkeypatch.setattr(model.export.bundle, "OPSET", "eighteen")
    with pytest.raises(ExportError, match=r"manifest\.json: \$\.opset.*'eighteen'"):
        publish(tiny_run.run, tiny_run.data, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("again", [False, True])
def test_a_bundle_for_which_the_disk_is_too_small_is_refused_in_one_line(
    tiny_run: TinyRun, graphs, trained_bundle, tmp_path, monkeypatch, again
):
    out = tmp_path / "bundles"
    if again:
        shutil.copytree(trained_bundle.parent, out, symlinks=True)
    before = sorted(out.rglob("*"))
    monkeypatch.setattr(model.export.bundle, "export_graphs", lambda net: graphs)

    def fill(self, content):
        with self.open("wb") as file, open("/dev/full", "wb", buffering=0) as full:
            file.write(content[:1])
            full.write(content)

    monkeypatch.setattr(Path, "write_bytes", fill)
    with pytest.raises(TrainerError, match=rf"{trained_bundle.name}.*: cannot be written: No space left on device$"):
        publish(tiny_run.run, tiny_run.data, out)
    assert [path for path in sorted(out.rglob("*")) if path.suffix != ".pt"] == [p for p in before if p.suffix != ".pt"]
    assert (out / "current").exists() == again


def test_the_same_run_gives_the_same_model_id_and_current_points_at_it(tiny_run: TinyRun, trained_bundle, tmp_path):
    exported = publish(tiny_run.run, tiny_run.data, tmp_path)
    assert exported.model_id == trained_bundle.name == exported.folder.name
    assert (tmp_path / "current").resolve() == exported.folder
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["current", exported.model_id, f"{exported.model_id}.pt"])
    assert exported.verification.lists >= 8
    assert 0 < exported.verification.incremental <= 1e-4


def test_the_manifest_is_as_the_schema_says_and_names_every_file(trained_bundle):
    manifest = json.loads((trained_bundle / "manifest.json").read_text())
    jsonschema.validate(manifest, json.loads(SCHEMA.read_text()))
    files = {str(path.relative_to(trained_bundle)) for path in trained_bundle.rglob("*") if path.is_file()}
    assert files == {*manifest["files"], "manifest.json"}


def test_the_service_opens_the_bundle_and_its_golden_vectors_replay(trained_bundle):
    runtime = open_runtime(read_bundle(trained_bundle), "cpu", 1)
    outputs = sum(len(graph.outputs) for graph in runtime.bundle.manifest.graphs.values())
    assert replay_golden(runtime) == outputs


def test_the_service_refuses_a_published_file_that_was_changed(trained_bundle, tmp_path):
    copy = shutil.copytree(trained_bundle, tmp_path / "copy")
    vectors = copy / "items" / "vectors.npy"
    vectors.write_bytes(vectors.read_bytes()[:-4] + b"\0\0\0\0")
    with pytest.raises(BundleError, match=r"vectors\.npy"):
        read_bundle(copy)


def test_the_items_of_the_bundle_are_the_vocabulary_in_its_order(tiny_run: TinyRun, trained_bundle):
    checkpoint, task = load_run(tiny_run.run, tiny_run.data)
    bundle = read_bundle(trained_bundle)
    assert [item.id for item in bundle.items] == checkpoint.item_ids == task.seq.item_ids
    assert [item.title for item in bundle.items] == task.items.get_column("title").to_list()
    catalogue = Catalogue(checkpoint.item_ids, [None] * 80, [()] * 80, bundle.vectors, bundle.bias)
    known = task.seq.item >= 0
    assert np.array_equal(catalogue.keys[task.seq.item[known]], task.seq.item_key[known])


@pytest.mark.parametrize(
    "item_id", ["", "85123A", "a b", "ä", "a\u0308", "日本語", "🕯️", "\u202eright to left", "x" * 256, "\x00"]
)
def test_both_halves_know_an_item_by_the_same_key(item_id):
    assert key_of_the_service(item_id) == key_of_the_trainer(item_id) != 0


def test_ids_that_only_look_alike_have_keys_of_their_own():
    assert len({key_of_the_service(item_id) for item_id in ("ä", "a\u0308", "A", "a", "а")}) == 5


# Publication itself, on a few bytes.


@pytest.fixture
def out(tmp_path):
    """A folder of bundles in which `current` is the bundle `old`."""
    _publish({"manifest.json": b"old", "step.onnx": b"old"}, tmp_path, "old")
    return tmp_path


def content(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_new_bundle_stands_beside_the_old_one_and_is_current(out):
    folder = _publish(NEW, out, "new")
    assert content(folder) == NEW
    assert (out / "current").resolve() == folder
    assert os.readlink(out / "current") == "new"  # relative: the folder can be moved or mounted elsewhere
    assert sorted(path.name for path in out.iterdir()) == ["current", "new", "old"]


@pytest.mark.parametrize("call", ["write_bytes", "chmod", "rename"])
def test_a_failure_while_publishing_leaves_everything_as_it_was(out, monkeypatch, call):
    original, calls = getattr(Path, call), []

    def failing(self, *arguments):
        calls.append(self)
        if len(calls) == (2 if call == "write_bytes" else 1):
            raise OSError("no space left on device")
        return original(self, *arguments)

    monkeypatch.setattr(Path, call, failing)
    with pytest.raises(OSError, match="no space left"):
        _publish(NEW, out, "new")
    assert sorted(path.name for path in out.iterdir()) == ["current", "old"]
    assert content(out / "current") == {"manifest.json": b"old", "step.onnx": b"old"}


KILLED = """
import os, signal, sys
from pathlib import Path
from model.export.bundle import _publish

def kill(self, *arguments):
    os.kill(os.getpid(), signal.SIGKILL)

setattr(Path, sys.argv[2], kill)
_publish({"manifest.json": b"{}", "step.onnx": b"new"}, Path(sys.argv[1]), "new")
"""


@pytest.mark.parametrize("call", ["rename", "symlink_to"])
def test_a_publisher_killed_in_the_middle_leaves_current_as_it_was_and_the_next_one_succeeds(out, call):
    command = [sys.executable, "-W", "ignore", "-c", KILLED, str(out), call]
    process = subprocess.run(command, cwd=Path(__file__).parents[3], timeout=60)
    assert process.returncode == -signal.SIGKILL
    assert content(out / "current") == {"manifest.json": b"old", "step.onnx": b"old"}
    # Before the rename there is no bundle of that name; after it the whole of it.
    assert (out / "new").exists() == (call == "symlink_to")
    if (out / "new").exists():
        assert content(out / "new") == {"manifest.json": b"{}", "step.onnx": b"new"}
    assert content(_publish(NEW, out, "new")) == NEW


def test_publishing_the_same_content_again_never_takes_away_what_is_in_use(out, monkeypatch):
    def refuse(path, **options):
        assert Path(path).name != "old", "a bundle in use was removed"

    monkeypatch.setattr(model.export.bundle.shutil, "rmtree", refuse)
    _publish({"manifest.json": b"later", "step.onnx": b"old"}, out, "old")
    assert content(out / "current") == {"manifest.json": b"later", "step.onnx": b"old"}


def test_a_destination_that_cannot_be_is_refused_before_any_work(tmp_path):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "out" / "current").mkdir(parents=True)
    before = sorted(tmp_path.rglob("*"))
    for out, said in (("file", "file: a file"), ("file/below", "file: a file"), ("out", "current: not a link")):
        with pytest.raises(ExportError, match=said):
            publish(tmp_path / "no run", tmp_path / "no data", tmp_path / out)  # neither is looked for
    assert sorted(tmp_path.rglob("*")) == before


def test_a_link_that_cannot_be_put_in_place_is_not_left_behind(out):
    (out / "current").unlink()
    (out / "current").mkdir()
    with pytest.raises(IsADirectoryError):
        _publish(NEW, out, "new")
    assert sorted(path.name for path in out.iterdir()) == ["current", "new", "old"]


def test_a_damaged_bundle_of_the_same_name_gives_way(out):
    (out / "old" / "step.onnx").write_bytes(b"ol")
    _publish({"manifest.json": b"old", "step.onnx": b"old"}, out, "old")
    assert content(out / "current") == {"manifest.json": b"old", "step.onnx": b"old"}
