"""The bundle: all that the service needs of a model, in a folder named by the hash of its content; whole or not at all."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import torch

from model.checkpoint import Checkpoint, save_checkpoint
from model.export.golden import golden_vectors
from model.export.graphs import OPSET, ExportedGraph, export_graphs
from model.export.narrow import narrow
from model.export.text import export_text
from model.export.verify import ExportError, Verification, verify
from model.files import replacing
from model.inputs import Inputs
from model.labels import Labels
from model.nets import EventBatch
from model.rounding import as_stored, rounded
from model.text import TextEncoder

MANIFEST = "manifest.json"
VECTORS, SCALES = "items/vectors.npy", "items/scales.npy"
SCHEMA = Path(__file__).parents[2] / "schema" / "manifest.schema.json"


@dataclass(frozen=True)
class Catalogue:
    """The items of the bundle, N rows in vocabulary order.

    Attributes:
        ids, titles, categories: N each. text: (N, W) or None; features: (N, F) or None, named `feature_names`, and then
            the numbers of `vectors`, so many by name.
        popularity: (N, P) decayed counts at `as_of_ms`. labels: what the items are about, or None.
    """

    ids: Sequence[str]
    titles: Sequence[str | None]
    categories: Sequence[Sequence[str]]
    text: np.ndarray | None
    features: np.ndarray | None
    feature_names: Sequence[str]
    popularity: np.ndarray
    as_of_ms: int
    labels: Labels | None = None
    vectors: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Exported:
    folder: Path
    model_id: str
    verification: Verification
    bytes: int


@torch.no_grad()
def export_bundle(
    checkpoint: Checkpoint,
    catalogue: Catalogue,
    sequences: list[EventBatch],
    out: Path,
    encoder: TextEncoder | None = None,
    metrics: Sequence[dict[str, Any]] = (),
    seen_items: str = "recommend",
    item_vectors: str = "float32",
    weights: str = "float32",
    cold: dict[str, Any] | None = None,
) -> Exported:
    """Export, verify and publish `out/<model_id>`, and point `out/current` at it.

    The checkpoint is kept beside, for `longwave-train update` to go on from (docs/adr/0015-update.md); no service reads it.

    Args:
        checkpoint: its net is already `with_stored_weights`. sequences: with the item vectors as they are stored.
        item_vectors, weights: how those of the items and those of the graphs are stored.
        cold: what was measured for users with few events, as the manifest has it.

    Raises:
        ExportError: verification failed or the manifest does not fit its schema; `out` is as it was. Or it cannot be written;
            there is no new bundle then.
    """
    net = checkpoint.net.eval()
    text = None if catalogue.text is None else torch.as_tensor(catalogue.text)
    features = None if catalogue.features is None else torch.as_tensor(catalogue.features)
    exact, bias = net.item(text, features)
    # Everything from here on, golden vectors and verification too, has the numbers that the service will have.
    matrix = as_stored(exact, item_vectors)
    if catalogue.labels is not None:
        net.leaning.learn(matrix, torch.as_tensor(catalogue.labels.share))
    graphs = export_graphs(net)
    if weights == "int8":
        graphs = {name: replace(graph, proto=narrow(graph.proto)) for name, graph in graphs.items()}
    golden = golden_vectors(net, matrix, bias, graphs)
    proof = verify(net, graphs, golden, sequences, matrix, bias)

    files: dict[str, bytes] = {f"{name}.onnx": graph.proto for name, graph in graphs.items()}
    files["golden.npz"] = _npz(golden)
    files["items/items.jsonl"] = b"".join(
        json.dumps({"id": i, "title": t, "categories": list(c)}, ensure_ascii=False).encode() + b"\n"
        for i, t, c in zip(catalogue.ids, catalogue.titles, catalogue.categories, strict=True)
    )
    files[VECTORS] = _npy(matrix.numpy())
    if item_vectors == "int8":
        codes, scales = rounded(exact)
        files |= {VECTORS: _npy(codes.numpy()), SCALES: _npy(scales.numpy())}
    files["items/bias.npy"] = _npy(bias.numpy())
    files["items/popularity.npy"] = _npy(catalogue.popularity.astype(np.float64))
    if catalogue.labels is not None:
        files["items/labels.npy"] = _npy(catalogue.labels.share)
    if encoder is not None:
        files |= export_text(encoder)
    checksums = {name: hashlib.sha256(content).hexdigest() for name, content in sorted(files.items())}
    manifest = _manifest(checkpoint, catalogue, graphs, checksums, encoder, metrics, seen_items)
    if weights != "float32":
        manifest["weights"] = weights
    if cold is not None:
        manifest["cold"] = cold
    if catalogue.vectors:
        manifest["item_vectors"] = [{"name": name, "width": width} for name, width in catalogue.vectors.items()]
    model_id = _content_id(manifest)
    manifest = {"model_id": model_id} | manifest
    _validate(manifest)
    files[MANIFEST] = (json.dumps(manifest, indent=2) + "\n").encode()
    try:
        folder = _publish(files, out, model_id, checkpoint)
    except OSError as error:
        raise ExportError(f"{out / model_id}: cannot be written: {error.strerror or error}") from error
    return Exported(folder, model_id, proof, sum(map(len, files.values())))


def _manifest(
    checkpoint: Checkpoint,
    catalogue: Catalogue,
    graphs: dict[str, ExportedGraph],
    checksums: dict[str, str],
    encoder: TextEncoder | None,
    metrics: Sequence[dict[str, Any]],
    seen_items: str,
) -> dict[str, Any]:
    config, names = checkpoint.net.config, checkpoint.names
    polarity = {1: "positive", 0: "neutral", -1: "negative"}
    return {
        "format_version": 1,
        "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "source_commit": _commit(),
        "data_fingerprint": checkpoint.data["fingerprint"],
        "data_name": checkpoint.data["name"],
        "opset": OPSET,
        "width": config.item_width,
        "graphs": {
            name: {
                "file": f"{name}.onnx",
                "inputs": [asdict(t) for t in graph.inputs],
                "outputs": [asdict(t) for t in graph.outputs],
            }
            for name, graph in graphs.items()
        },
        "state": [
            {"name": name, "dtype": str(dtype).removeprefix("torch."), "shape": list(shape)}
            for name, (shape, dtype) in checkpoint.net.state_shapes().items()
        ],
        "event_types": [
            {"name": name, "polarity": polarity[sign], "weight": weight}
            for name, sign, weight in zip(names["event_types"], names["polarity"], names["weight"], strict=True)
        ],
        "platforms": names["platforms"],
        "numbers": ["value", "quantity", "price"],
        "user_attributes": [
            {"name": name, "values": values}
            for name, values in zip(names["attribute_names"], names["attribute_values"], strict=True)
        ],
        "item_features": list(catalogue.feature_names),
        "labels": None if catalogue.labels is None else {"names": catalogue.labels.names},
        "bucket_edges": {
            "value": list(config.number_edges[0]),
            "quantity": list(config.number_edges[1]),
            "price": list(config.number_edges[2]),
            "gap_s": list(config.gap_edges_s),
        },
        "popularity": {"half_lives_s": list(config.popularity_half_lives_s), "as_of_ms": catalogue.as_of_ms},
        "items": {"count": len(catalogue.ids)} | ({"scales": SCALES} if SCALES in checksums else {}),
        "text": None if encoder is None else {"width": encoder.width, "max_tokens": encoder.max_tokens},
        "seen_items": seen_items,
        "training_window": checkpoint.settings["train"]["chunk"],
        "metrics": list(metrics),
        "files": checksums,
    }


def _content_id(manifest: dict[str, Any]) -> str:
    """The first 16 hex digits of a hash over all that the service acts on: the files and what their rows are called.

    When and from which commit it was exported, and the figures it was measured with, do not make another model.
    """
    content = {name: value for name, value in manifest.items() if name not in ("created_at", "source_commit", "metrics")}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def _validate(manifest: dict[str, Any]) -> None:
    try:
        json.dumps(manifest, allow_nan=False)
    except ValueError as error:
        raise ExportError(f"manifest.json: {error}") from None
    try:
        jsonschema.validate(manifest, json.loads(SCHEMA.read_text(encoding="utf-8")))
    except jsonschema.ValidationError as error:
        raise ExportError(f"manifest.json: {error.json_path}: {error.message}") from None


def checkpoint_of(folder: Path, model_id: str) -> Path:
    """Where the checkpoint of the bundle in `folder` is kept: beside it, so that the service need not check its content."""
    return folder.parent / f"{model_id}.pt"


def _publish(files: dict[str, bytes], out: Path, model_id: str, checkpoint: Checkpoint | None = None) -> Path:
    out.mkdir(parents=True, exist_ok=True)
    folder = out / model_id
    if checkpoint is not None:
        # First: a bundle is never there without it. One that is there without a bundle is in nobody's way.
        save_checkpoint(checkpoint, checkpoint_of(folder, model_id))
    if _holds(folder, files):
        # The same content was published before, and may be in use: only the manifest can differ (when and from what commit).
        with replacing(folder / MANIFEST) as manifest:
            manifest.write_bytes(files[MANIFEST])
    else:
        _write(files, folder)
    link = out / f".current-{os.getpid()}"
    link.unlink(missing_ok=True)
    try:
        link.symlink_to(model_id)
        link.replace(out / "current")
    finally:
        link.unlink(missing_ok=True)
    return folder


def _holds(folder: Path, files: dict[str, bytes]) -> bool:
    """Whether a folder has these files, the manifest aside."""
    paths = {folder / name: content for name, content in files.items() if name != MANIFEST}
    return all(path.is_file() and path.read_bytes() == content for path, content in paths.items())


def _write(files: dict[str, bytes], folder: Path) -> None:
    """Write a folder whole or not at all; a damaged one of the same name gives way."""
    temporary = Path(tempfile.mkdtemp(prefix=".writing-", dir=folder.parent))
    try:
        for name, content in files.items():
            path = temporary / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        temporary.chmod(0o755)
        if folder.exists():
            shutil.rmtree(folder)
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.ascontiguousarray(array))
    return buffer.getvalue()


def _npz(arrays: dict[str, np.ndarray]) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays)
    return buffer.getvalue()


def _commit() -> str:
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def longest_sequences(inputs: Inputs, offsets: np.ndarray, item_matrix: torch.Tensor, count: int = 2) -> list[EventBatch]:
    """The longest real histories as (1, T, ...) batches, for verification."""
    length = np.diff(offsets)
    chosen = np.argsort(-length, kind="stable")[:count]
    return [inputs.events(torch.arange(int(offsets[u]), int(offsets[u + 1]))[None], item_matrix) for u in chosen]
