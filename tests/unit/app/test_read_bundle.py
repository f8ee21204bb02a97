"""A bundle is taken whole or refused, naming the file."""

import json
import math
import shutil
import warnings

import numpy as np
import pytest
from bundle_edit import edit_manifest, replace_file
from tiny_bundle import write_tiny_bundle

from app.errors import BundleError
from app.runtime.bundle import content_id, read_bundle, read_manifest
from app.runtime.golden import replay_golden
from app.runtime.session import open_runtime


@pytest.fixture(scope="module")
def rounded_bundle(tmp_path_factory):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch's own, of the exporter that we use on purpose
        return write_tiny_bundle(tmp_path_factory.mktemp("bundle") / "rounded", stored="int8")


@pytest.fixture
def bundle_copy(tiny_bundle, tmp_path):
    return shutil.copytree(tiny_bundle, tmp_path / "bundle")


def test_a_sound_bundle_opens_and_replays_every_golden_output(tiny_bundle):
    runtime = open_runtime(read_bundle(tiny_bundle), "cpu", 1)
    outputs = sum(len(graph.outputs) for graph in runtime.bundle.manifest.graphs.values())
    assert replay_golden(runtime) == outputs


def test_vectors_are_memory_mapped_so_that_workers_share_them(tiny_bundle):
    assert isinstance(read_bundle(tiny_bundle).vectors.base, np.memmap)


def test_vectors_of_8_bits_are_multiplied_out_and_the_graphs_were_verified_with_them(rounded_bundle, tiny_bundle):
    runtime = open_runtime(read_bundle(rounded_bundle), "cpu", 1)
    assert replay_golden(runtime)
    vectors, exact = runtime.bundle.vectors, read_bundle(tiny_bundle).vectors
    assert vectors.dtype == np.float32
    steps = np.load(rounded_bundle / "items/scales.npy")[:, None]
    assert 0 < (np.abs(vectors - exact) / steps).max() <= 0.5001
    # What golden vectors score is the beginning of the catalogue, as it is stored.
    with np.load(rounded_bundle / "golden.npz") as golden:
        assert golden["score/in/item_matrix"].tobytes() == vectors.tobytes()
    assert (rounded_bundle / "items/vectors.npy").stat().st_size < 0.4 * (tiny_bundle / "items/vectors.npy").stat().st_size


def test_scales_that_do_not_fit_are_refused_by_name(rounded_bundle, tmp_path):
    folder = shutil.copytree(rounded_bundle, tmp_path / "bundle")
    np.save(tmp_path / "scales.npy", np.ones(3, np.float32))
    replace_file(folder, "items/scales.npy", (tmp_path / "scales.npy").read_bytes())
    with pytest.raises(BundleError, match=r"items/scales\.npy: expected float32 of shape \(60,\), found float32 of shape \(3,\)"):
        read_bundle(folder)
    edit_manifest(folder, items={"count": 60})
    with pytest.raises(BundleError, match=r"items/vectors\.npy: expected float32 of shape \(60, 16\), found int8"):
        read_bundle(folder)
    edit_manifest(folder, items={"count": 60, "scales": "items/others.npy"})
    with pytest.raises(BundleError, match=r"no checksum for items/others\.npy"):
        read_bundle(folder)


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


def test_the_exporters_model_id_is_the_one_that_the_content_gives(tiny_bundle):
    assert read_manifest(tiny_bundle).model_id == content_id(json.loads((tiny_bundle / "manifest.json").read_text()))


def one_value_edits(value, path=()):
    """(path, new value) for every list turned round, every number raised, and every other leaf replaced."""
    if isinstance(value, dict):
        for name, part in value.items():
            yield from one_value_edits(part, (*path, name))
    elif isinstance(value, list):
        if value != value[::-1]:
            yield path, value[::-1]
        for index, part in enumerate(value):
            yield from one_value_edits(part, (*path, index))
    elif isinstance(value, int | float):
        yield path, value + 1
    elif isinstance(value, str):
        yield path, {"recommend": "exclude", "positive": "neutral"}.get(value, value + "x")


def test_a_manifest_with_any_one_value_changed_is_refused(bundle_copy):
    file = bundle_copy / "manifest.json"
    sound = json.loads(file.read_text())
    unhashed = {"created_at", "source_commit", "metrics"}
    edits = [(path, new) for path, new in one_value_edits(sound) if path[0] not in unhashed]
    assert {"state", "event_types", "numbers", "platforms", "seen_items", "files"} <= {path[0] for path, _ in edits}
    by_id = set()
    for path, new in edits:
        document = json.loads(json.dumps(sound))
        inner = document
        for part in path[:-1]:
            inner = inner[part]
        inner[path[-1]] = new
        file.write_text(json.dumps(document))
        with pytest.raises(BundleError, match=r"manifest\.json: ") as caught:
            read_manifest(bundle_copy)
        if "damaged or edited: its content does not match model_id" in str(caught.value):
            by_id.add(path)
    # These are as good as the originals by the format alone.
    assert {("state",), ("event_types",), ("numbers",), ("seen_items",), ("event_types", 0, "weight")} <= by_id


def test_when_and_from_what_a_model_was_exported_is_not_part_of_its_id(bundle_copy):
    file = bundle_copy / "manifest.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"created_at": "later", "source_commit": "other"}))
    assert read_manifest(bundle_copy).created_at == "later"


PURCHASE = {"name": "purchase", "polarity": "positive", "weight": 1.0}


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"event_types": [PURCHASE | {"weight": math.nan}]}, "event_types.0.weight"),
        ({"event_types": [PURCHASE | {"weight": -0.5}]}, "event_types.0.weight"),
        ({"event_types": [PURCHASE, PURCHASE]}, "event_types: .*'purchase' appears twice"),
        ({"user_attributes": [{"name": "a", "values": []}] * 2}, "user_attributes: .*'a' appears twice"),
        ({"state": [{"name": "h", "dtype": "float32", "shape": [1]}] * 2}, "state: .*'h' appears twice"),
        ({"popularity": {"half_lives_s": [math.inf, 1.0], "as_of_ms": 0}}, "popularity.half_lives_s.0"),
        ({"popularity": {"half_lives_s": [1.0], "as_of_ms": -1}}, "popularity.as_of_ms"),
        ({"popularity": {"half_lives_s": [1.0], "as_of_ms": 4102444800001}}, "popularity.as_of_ms"),
        ({"tolerance": {"state": math.inf}}, "tolerance.state"),
        ({"bucket_edges": {"price": [math.nan]}}, "bucket_edges.price.0"),
    ],
)
def test_a_value_that_the_service_could_not_work_with_is_refused_by_field(bundle_copy, changes, field):
    edit_manifest(bundle_copy, **changes)
    with pytest.raises(BundleError, match=f"field {field}"):
        read_manifest(bundle_copy)


def test_item_features_without_a_dimension_are_refused(bundle_copy):
    graphs = json.loads((bundle_copy / "manifest.json").read_text())["graphs"]
    features = {"name": "features", "dtype": "float32", "shape": []}
    item = graphs["score"] | {"inputs": [features]}
    edit_manifest(bundle_copy, graphs=graphs | {"item": item}, item_vectors=[{"name": "image", "width": 3}])
    with pytest.raises(BundleError, match=r"item\.onnx takes 0 features; item_features and item_vectors are 3"):
        read_manifest(bundle_copy)
    edit_manifest(bundle_copy, item_vectors=[])
    with pytest.raises(BundleError, match=r"score\.onnx: its inputs are"):
        open_runtime(read_bundle(bundle_copy), "cpu", 1)


def test_a_state_that_is_not_what_a_step_returns_is_refused(bundle_copy):
    state = json.loads((bundle_copy / "manifest.json").read_text())["state"]
    for wrong, message in (
        (state[1:], "field state: step.onnx returns"),
        ([state[0] | {"shape": [1, *state[0]["shape"]]}, *state[1:]], f"returns {state[0]['name']}_out as"),
        ([state[0] | {"dtype": "int32"}, *state[1:]], f"returns {state[0]['name']}_out as"),
    ):
        edit_manifest(bundle_copy, state=wrong)
        with pytest.raises(BundleError, match=message):
            open_runtime(read_bundle(bundle_copy), "cpu", 1)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b'"x"', b"[" * 100_000, b"1" * 5_000])
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


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 no archive", b"text"])
def test_golden_vectors_that_are_no_archive_are_refused(bundle_copy, content):
    replace_file(bundle_copy, "golden.npz", content)
    with pytest.raises(BundleError, match=r"golden\.npz: not a \.npz archive"):
        replay_golden(open_runtime(read_bundle(bundle_copy), "cpu", 1))


def test_golden_inputs_that_a_graph_cannot_take_are_refused(bundle_copy):
    golden = dict(np.load(bundle_copy / "golden.npz"))
    golden["step/in/h"] = golden["step/in/h"].astype(np.float64)
    np.savez(bundle_copy / "other.npz", **golden)
    replace_file(bundle_copy, "golden.npz", (bundle_copy / "other.npz").read_bytes())
    with pytest.raises(BundleError, match=r"golden\.npz: step cannot be run"):
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
