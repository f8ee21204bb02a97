"""The bundle that an update starts from, with the checkpoint that its graphs were made of."""

from __future__ import annotations

import io
import json
import zipfile
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from model.checkpoint import Checkpoint, CheckpointError, load_checkpoint
from model.errors import TrainerError
from model.export.bundle import MANIFEST, checkpoint_of
from model.loop import CHECKPOINT
from model.nets import EventBatch, Longwave
from model.rounding import with_stored_weights

SAME = 1e-3
"""How far what the checkpoint computes may be from the bundle's golden vectors: another machine rounds otherwise."""


class OriginError(TrainerError, ValueError):
    """The bundle cannot be updated: it is none, is damaged, or its checkpoint is not there or of another model."""


@dataclass(frozen=True)
class Origin:
    """A bundle of N items and what it was exported from.

    Attributes:
        folder: of the bundle, links followed. model_id: its name.
        titles, categories: N each. repeats: whether seen items are recommended again.
        item_vectors, weights: how the bundle stores them, "float32" or "int8"; the checkpoint's net has the weights as they are
            stored. features: names of the dense item features, in the order in which the net reads them; vectors: how long those
            are that it reads after these, by name.
        cold: what was measured for users with few events, if anything was.
    """

    folder: Path
    model_id: str
    checkpoint: Checkpoint
    titles: list[str | None]
    categories: list[list[str]]
    repeats: bool
    item_vectors: str = "float32"
    weights: str = "float32"
    features: tuple[str, ...] = ()
    cold: dict[str, Any] | None = None
    vectors: dict[str, int] = field(default_factory=dict)


def read_origin(bundle: Path, run: Path | None = None) -> Origin:
    """Read a bundle and its checkpoint, and prove that they belong together.

    Args:
        run: a folder that `train` wrote; None takes the checkpoint that `export` has left beside the bundle.

    Raises:
        OriginError: no bundle, a damaged one, or one that was not exported from this checkpoint.
        CheckpointError: the checkpoint is missing, damaged or unfinished.
    """
    folder = bundle.resolve()
    manifest = _manifest(bundle, folder)
    path = checkpoint_of(folder, manifest["model_id"]) if run is None else run / CHECKPOINT
    if run is None and not path.exists():
        raise OriginError(
            f"{bundle}: the checkpoint that it was exported from is not beside it ({path.name}); name its run with --run"
        )
    checkpoint = load_checkpoint(path)
    if checkpoint.training:
        raise CheckpointError(f"{path}: training has not finished; go on with `longwave-train train --resume`, then export")
    stored = "int8" if manifest["items"].get("scales") else "float32", manifest.get("weights", "float32")
    # A run keeps what was learned, and a bundle may be of what that was rounded to.
    checkpoint = replace(checkpoint, net=with_stored_weights(checkpoint.net, stored[1]))
    try:
        # Bytes: a text would be split at more than the ends of lines, and a title can have U+2028 or U+0085.
        lines = (folder / "items" / "items.jsonl").read_bytes().splitlines()
        records = [json.loads(line) for line in lines]
        ids = [record["id"] for record in records]
        titles = [record.get("title") for record in records]
        categories = [list(record.get("categories", [])) for record in records]
        features = tuple(str(name) for name in manifest["item_features"])
        vectors = {str(one["name"]): int(one["width"]) for one in manifest.get("item_vectors", [])}
        bias = np.load(folder / "items" / "bias.npy", allow_pickle=False)
        golden = _arrays(folder / "golden.npz")
        same = ids == checkpoint.item_ids and _close(bias, checkpoint.net.item.bias) and _computes(checkpoint.net, golden)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, EOFError, zipfile.BadZipFile) as error:
        raise OriginError(f"{folder}: damaged, or of another version: {error}") from None
    if not same:
        raise OriginError(f"{bundle}: was not exported from {path}: a bundle of another run, or a run that was trained anew")
    repeats = manifest["seen_items"] == "recommend"
    cold = manifest.get("cold")
    return Origin(folder, manifest["model_id"], checkpoint, titles, categories, repeats, *stored, features, cold, vectors)


def _manifest(bundle: Path, folder: Path) -> dict[str, Any]:
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        if (
            isinstance(manifest["model_id"], str)
            and isinstance(manifest["seen_items"], str)
            and isinstance(manifest["items"], dict)
        ):
            return dict(manifest)
    except (OSError, ValueError, KeyError, TypeError):
        pass
    raise OriginError(f"{bundle}: not a bundle (no readable {MANIFEST}); expected a folder that `longwave-train export` wrote")


def _arrays(path: Path) -> dict[str, np.ndarray]:
    with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as arrays:
        return dict(arrays)


@torch.no_grad()
def _computes(net: Longwave, golden: dict[str, np.ndarray]) -> bool:
    """Whether the net makes of the golden inputs what the bundle says: one step of the fold, and one readout."""

    def given(graph: str) -> dict[str, Tensor]:
        start = f"{graph}/in/"
        found = {name.removeprefix(start): torch.as_tensor(values) for name, values in golden.items() if name.startswith(start)}
        # No score sees it, and in bundles of before it has another shape.
        return found | {"leaning": torch.zeros(len(found["h"]), *net.state_shapes()["leaning"][0])}

    inputs = given("step")
    shapes = {name: tensor.shape[1:] for name, tensor in inputs.items()}
    if any(shapes.get(name) != shape for name, (shape, _) in net.state_shapes().items()):
        return False
    event = EventBatch(*(inputs.get(name) for name in EventBatch._fields))  # type: ignore[arg-type]
    after = net.step(event, {name: inputs[name] for name in net.state_shapes()})
    inputs = given("interest")
    readout, _ = net.interest({name: inputs[name] for name in net.state_shapes()}, inputs["as_of"], inputs["platform"])
    return (
        _close(golden["step/out/h_out"], after["h"])
        and _close(golden["interest/out/interests"], readout.interests)
        and _close(golden["interest/out/popularity_weight"], readout.popularity_weight)
    )


def _close(stored: np.ndarray, computed: Tensor) -> bool:
    values = computed.detach().numpy()
    return stored.shape == values.shape and bool(np.allclose(stored, values, rtol=0, atol=SAME))
