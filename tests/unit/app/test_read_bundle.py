"""A bundle is taken whole or refused, naming the file."""

import json
import shutil

import numpy as np
import pytest

from app.errors import BundleError
from app.runtime.bundle import read_bundle
from app.runtime.golden import replay_golden
from app.runtime.session import open_runtime


@pytest.fixture
def bundle_copy(tiny_bundle, tmp_path):
    return shutil.copytree(tiny_bundle, tmp_path / "bundle")


def edit_manifest(folder, **changes):
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | changes))


def replace_file(folder, name, content):
    """Replace a file and its checksum: what is wrong then is the content alone."""
    import hashlib

    (folder / name).write_bytes(content)
    files = json.loads((folder / "manifest.json").read_text())["files"]
    edit_manifest(folder, files=files | {name: hashlib.sha256(content).hexdigest()})


def test_a_sound_bundle_opens_and_replays_every_golden_output(tiny_bundle):
    runtime = open_runtime(read_bundle(tiny_bundle), "cpu", 1)
    outputs = sum(len(graph.outputs) for graph in runtime.bundle.manifest.graphs.values())
    assert replay_golden(runtime) == outputs


def test_vectors_are_memory_mapped_so_that_workers_share_them(tiny_bundle):
    assert isinstance(read_bundle(tiny_bundle).vectors.base, np.memmap)


def test_one_flipped_byte_in_any_file_is_refused_by_name(bundle_copy):
    for name in json.loads((bundle_copy / "manifest.json").read_text())["files"]:
        sound = (bundle_copy / name).read_bytes()
        damaged = bytearray(sound)
        damaged[len(damaged) // 2] ^= 0x01
        (bundle_copy / name).write_bytes(damaged)
        with pytest.raises(BundleError, match=f"{name}: damaged"):
            read_bundle(bundle_copy)
        (bundle_copy / name).write_bytes(sound)


def test_a_missing_file_is_named(bundle_copy):
    (bundle_copy / "items/bias.npy").unlink()
    with pytest.raises(BundleError, match=r"items/bias\.npy: No such file"):
        read_bundle(bundle_copy)


def test_a_file_without_checksum_is_refused(bundle_copy):
    files = json.loads((bundle_copy / "manifest.json").read_text())["files"]
    del files["step.onnx"]
    edit_manifest(bundle_copy, files=files)
    with pytest.raises(BundleError, match=r"no checksum for step\.onnx"):
        read_bundle(bundle_copy)


def test_a_checksum_outside_the_folder_is_not_even_read(bundle_copy):
    files = json.loads((bundle_copy / "manifest.json").read_text())["files"]
    edit_manifest(bundle_copy, files=files | {"../secret": "0" * 64})
    with pytest.raises(BundleError, match="leaves the bundle's folder"):
        read_bundle(bundle_copy)


def test_a_newer_format_says_that_longwave_is_too_old(bundle_copy):
    edit_manifest(bundle_copy, format_version=2, something_new=True)
    with pytest.raises(BundleError, match="format_version 2 is newer than this service, which reads 1"):
        read_bundle(bundle_copy)


def test_a_manifest_error_names_file_and_field(bundle_copy):
    edit_manifest(bundle_copy, width="wide")
    with pytest.raises(BundleError, match=r"manifest\.json: field width: "):
        read_bundle(bundle_copy)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b'"x"'])
def test_a_manifest_that_is_none_is_refused(bundle_copy, content):
    (bundle_copy / "manifest.json").write_bytes(content)
    with pytest.raises(BundleError, match=r"manifest\.json: "):
        read_bundle(bundle_copy)


def test_a_folder_that_is_no_bundle_says_so(tmp_path):
    with pytest.raises(BundleError, match=r"manifest\.json: missing"):
        read_bundle(tmp_path)
    with pytest.raises(BundleError, match="no such folder"):
        read_bundle(tmp_path / "nowhere")


def test_an_array_of_another_shape_says_what_was_expected(bundle_copy):
    np.save(bundle_copy / "other.npy", np.zeros((3, 3), np.float32))
    replace_file(bundle_copy, "items/vectors.npy", (bundle_copy / "other.npy").read_bytes())
    with pytest.raises(
        BundleError, match=r"items/vectors\.npy: expected float32 of shape \(60, 16\), found float32 of shape \(3, 3\)"
    ):
        read_bundle(bundle_copy)


def test_a_pickled_array_is_never_loaded(bundle_copy):
    np.save(bundle_copy / "other.npy", np.array([{"os": "system"}], object), allow_pickle=True)
    replace_file(bundle_copy, "items/bias.npy", (bundle_copy / "other.npy").read_bytes())
    with pytest.raises(BundleError, match=r"items/bias\.npy: not a \.npy array"):
        read_bundle(bundle_copy)


def test_nan_in_an_array_is_refused(bundle_copy):
    bias = np.load(bundle_copy / "items/bias.npy")
    bias[7] = np.nan
    np.save(bundle_copy / "other.npy", bias)
    replace_file(bundle_copy, "items/bias.npy", (bundle_copy / "other.npy").read_bytes())
    with pytest.raises(BundleError, match=r"items/bias\.npy: holds NaN or infinity in row 7"):
        read_bundle(bundle_copy)


def test_an_item_line_that_is_no_item_is_named_by_its_number(bundle_copy):
    lines = (bundle_copy / "items/items.jsonl").read_bytes().splitlines(keepends=True)
    lines[4] = b'{"id": 5}\n'
    replace_file(bundle_copy, "items/items.jsonl", b"".join(lines))
    with pytest.raises(BundleError, match=r"items\.jsonl: line 5: "):
        read_bundle(bundle_copy)


def test_too_few_items_are_refused(bundle_copy):
    lines = (bundle_copy / "items/items.jsonl").read_bytes().splitlines(keepends=True)
    replace_file(bundle_copy, "items/items.jsonl", b"".join(lines[:-1]))
    with pytest.raises(BundleError, match=r"items\.jsonl: 59 lines, but .* is 60"):
        read_bundle(bundle_copy)


def test_a_graph_with_other_inputs_than_the_manifest_says_is_refused(bundle_copy):
    # Two graphs change places: every file is sound, and only the comparison with the manifest can tell.
    replace_file(bundle_copy, "interest.onnx", (bundle_copy / "initial.onnx").read_bytes())
    with pytest.raises(BundleError, match=r"interest\.onnx: its inputs are \['attributes'\]"):
        open_runtime(read_bundle(bundle_copy), "cpu", 1)


def test_a_file_that_is_no_graph_is_refused(bundle_copy):
    replace_file(bundle_copy, "score.onnx", b"not a graph")
    with pytest.raises(BundleError, match=r"score\.onnx: ONNX Runtime cannot open it"):
        open_runtime(read_bundle(bundle_copy), "cpu", 1)


@pytest.mark.parametrize(
    ("name", "position", "change"),
    [
        ("step/out/h_out", (0, 0, 0), 2e-4),  # twice the tolerance: not found by a check that is merely loose
        ("encode/out/clock_out", (0, 0), 1),
        ("interest/out/interests", (1, 0, 3), 2e-4),
        ("score/out/scores", (1, 9), 2e-3),
        ("score/out/rows", (0, 0), 1),
        ("initial/out/h_out", (1, 0, 0), np.nan),
    ],
)
def test_a_golden_output_that_does_not_come_out_is_refused_by_name(bundle_copy, name, position, change):
    golden = dict(np.load(bundle_copy / "golden.npz"))
    golden[name][position] += change
    np.savez(bundle_copy / "other.npz", **golden)
    replace_file(bundle_copy, "golden.npz", (bundle_copy / "other.npz").read_bytes())
    with pytest.raises(BundleError, match=f"golden.npz: {name}: "):
        replay_golden(open_runtime(read_bundle(bundle_copy), "cpu", 1))


def test_golden_vectors_that_leave_a_graph_out_are_refused(bundle_copy):
    golden = {name: array for name, array in np.load(bundle_copy / "golden.npz").items() if not name.startswith("encode/")}
    np.savez(bundle_copy / "other.npz", **golden)
    replace_file(bundle_copy, "golden.npz", (bundle_copy / "other.npz").read_bytes())
    with pytest.raises(BundleError, match="encode/in/h is missing"):
        replay_golden(open_runtime(read_bundle(bundle_copy), "cpu", 1))


def test_golden_rows_may_change_places_where_their_scores_are_as_good_as_equal(bundle_copy):
    golden = dict(np.load(bundle_copy / "golden.npz"))
    rows, scores = golden["score/out/rows"], golden["score/out/scores"]
    rows[0, [3, 4]] = rows[0, [4, 3]]
    scores[0, 4] = scores[0, 3]
    tolerance = {"state": 1e-4, "interest": 1e-4, "score": 1e9, "top_k_gap": 2e-4}
    np.savez(bundle_copy / "other.npz", **golden)
    replace_file(bundle_copy, "golden.npz", (bundle_copy / "other.npz").read_bytes())
    edit_manifest(bundle_copy, tolerance=tolerance)
    replay_golden(open_runtime(read_bundle(bundle_copy), "cpu", 1))
