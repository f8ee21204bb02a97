"""A bundle of a small untrained net, written in seconds: for tests of the service that need a real fold but no learning."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import onnxruntime as ort
import torch

from model.export.graphs import ExportedGraph, example_events, example_state, export_graphs
from model.nets import Longwave, ModelConfig

ITEMS = 60
DAY_S = 86_400.0
EVENT_TYPES = [("purchase", "positive", 1.0), ("view", "neutral", 0.2), ("cancellation", "negative", 1.0)]
COUNTRIES = ["United Kingdom", "France", "Norway"]
TRAINED_UNTIL_MS = 1_300_000_000_000


def item_id(row: int) -> str:
    return f"item-{row:03d}"


def write_tiny_bundle(folder: Path, seed: int = 0, seen_items: str = "recommend") -> Path:
    """Write a bundle of ITEMS items (`item_id(row)`, titled "Thing <row>") into `folder` and return it."""
    torch.manual_seed(seed)
    config = ModelConfig(
        items=ITEMS,
        event_types=len(EVENT_TYPES),
        platforms=2,
        attribute_sizes=(len(COUNTRIES),),
        type_weights=(1.0, 0.2, -1.0),
        number_edges=((1.0, 3.0), (1.0, 10.0), (1.0, 5.0, 20.0)),
        width=16,
        layers=2,
        heads=2,
        ring=8,
        ring_width=8,
        accumulator_width=8,
        repeats=16,
        repeat_hidden=8,
    )
    net = Longwave(config).eval()
    graphs = export_graphs(net)
    rng = np.random.default_rng(seed)
    files = {f"{name}.onnx": graph.proto for name, graph in graphs.items()}
    lines = [json.dumps({"id": item_id(row), "title": f"Thing {row}", "categories": ["things"]}) for row in range(ITEMS)]
    files["items/items.jsonl"] = ("\n".join(lines) + "\n").encode()
    arrays = {
        "vectors": rng.normal(size=(ITEMS, config.width)).astype(np.float32),
        "bias": rng.normal(scale=0.1, size=ITEMS).astype(np.float32),
        "popularity": rng.uniform(0, 20, size=(ITEMS, len(config.popularity_half_lives_s))),
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "items").mkdir(exist_ok=True)
    for name, array in arrays.items():
        np.save(folder / f"items/{name}.npy", array)
        files[f"items/{name}.npy"] = (folder / f"items/{name}.npy").read_bytes()
    np.savez(folder / "golden.npz", **_golden(net, graphs, arrays))
    files["golden.npz"] = (folder / "golden.npz").read_bytes()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    checksums = {name: hashlib.sha256(content).hexdigest() for name, content in sorted(files.items())}
    manifest = {
        "format_version": 1,
        "model_id": hashlib.sha256("".join(checksums.values()).encode()).hexdigest()[:16],
        "created_at": "2011-03-13T07:06:40Z",
        "source_commit": "test",
        "data_fingerprint": "test",
        "data_name": "tiny",
        "opset": 18,
        "width": config.width,
        "graphs": {
            name: {
                "file": f"{name}.onnx",
                "inputs": [vars(tensor) for tensor in graph.inputs],
                "outputs": [vars(tensor) for tensor in graph.outputs],
            }
            for name, graph in graphs.items()
        },
        "state": [
            {"name": name, "dtype": str(dtype).removeprefix("torch."), "shape": list(shape)}
            for name, (shape, dtype) in net.state_shapes().items()
        ],
        "event_types": [{"name": name, "polarity": polarity, "weight": weight} for name, polarity, weight in EVENT_TYPES],
        "platforms": ["web", "app"],
        "numbers": ["value", "quantity", "price"],
        "user_attributes": [{"name": "country", "values": COUNTRIES}],
        "bucket_edges": {"quantity": [1.0, 10.0]},
        "popularity": {"half_lives_s": list(config.popularity_half_lives_s), "as_of_ms": TRAINED_UNTIL_MS},
        "items": {"count": ITEMS},
        "seen_items": seen_items,
        "training_window": 64,
        "files": checksums,
    }
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=2))
    return folder


def _golden(net: Longwave, graphs: dict[str, ExportedGraph], arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    config, rng = net.config, np.random.default_rng(7)
    state = {name: tensor.detach().numpy() for name, tensor in example_state(net, 2).items()}
    events = {name: value.numpy() for name, value in example_events(net, 2, 5)._asdict().items() if value is not None}
    repeat = {"repeat_rows": np.full((2, config.repeats), -1), "repeat_scores": np.zeros((2, config.repeats), np.float32)}
    feeds = {
        "initial": {"attributes": np.asarray([[0], [2]])},
        "step": state | {name: value[:, 0] for name, value in events.items()},
        "encode": state | events | {"valid": np.ones((2, 5), bool)},
        "interest": state | {"as_of": np.full(2, TRAINED_UNTIL_MS), "platform": np.asarray([0, 1])},
        "score": repeat
        | {
            "interests": rng.normal(size=(2, config.interests, config.width)).astype(np.float32),
            "item_matrix": arrays["vectors"],
            "item_bias": arrays["bias"],
            "popularity": arrays["popularity"].astype(np.float32),
            "popularity_weight": np.ones((2, arrays["popularity"].shape[1]), np.float32),
            "bias": np.zeros((1, ITEMS), np.float32),
            "k": np.asarray([10]),
        },
    }
    golden: dict[str, np.ndarray] = {}
    for name, graph in graphs.items():
        session = ort.InferenceSession(graph.proto, providers=["CPUExecutionProvider"])
        inputs = {tensor.name: feeds[name][tensor.name] for tensor in graph.inputs}
        outputs = session.run([tensor.name for tensor in graph.outputs], inputs)
        golden |= {f"{name}/in/{key}": value for key, value in inputs.items()}
        golden |= {f"{name}/out/{tensor.name}": value for tensor, value in zip(graph.outputs, outputs, strict=True)}
    return golden
