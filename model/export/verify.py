"""Proof before publication: torch, ONNX and the event-by-event fold must agree, or there is no bundle."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnxruntime as ort
import torch
from torch import Tensor

from model.errors import TrainerError
from model.export.golden import Arrays, random_events
from model.export.graphs import ExportedGraph
from model.nets import EventBatch, Longwave

STATE_TOLERANCE = 1e-4
SCORE_GAP = 2e-4


class ExportError(TrainerError):
    """The graphs do not say what the net says; nothing was published. The message names graph, tensor and difference."""


@dataclass(frozen=True)
class Verification:
    """Largest absolute differences that were seen, and over how many vectors."""

    golden: float
    incremental: float
    interests: float
    lists: int
    vectors: int


class Graphs:
    """The exported graphs on ONNX Runtime's CPU, by name, with named inputs and outputs."""

    def __init__(self, graphs: dict[str, ExportedGraph]) -> None:
        options = ort.SessionOptions()
        options.log_severity_level = 3
        self.graphs = graphs
        self.sessions = {
            name: ort.InferenceSession(graph.proto, options, providers=["CPUExecutionProvider"]) for name, graph in graphs.items()
        }

    def run(self, name: str, feeds: Arrays) -> Arrays:
        graph = self.graphs[name]
        outputs = self.sessions[name].run([t.name for t in graph.outputs], {t.name: feeds[t.name] for t in graph.inputs})
        return dict(zip((t.name for t in graph.outputs), outputs, strict=True))


def verify(
    net: Longwave,
    graphs: dict[str, ExportedGraph],
    golden: Arrays,
    sequences: list[EventBatch],
    item_matrix: Tensor,
    item_bias: Tensor,
) -> Verification:
    """Replay the golden vectors, then fold sequences in torch and in ONNX, whole and event by event, through stored bytes.

    Args:
        sequences: each (1, T, ...) of one user: real ones, the longest among them. Random ones are added here.

    Raises:
        ExportError: a difference beyond 1e-4, or a top-20 that differs by more than score gaps under 2e-4.
    """
    run = Graphs(graphs)
    worst = 0.0
    for name, graph in graphs.items():
        found = run.run(name, {t.name: golden[f"{name}/in/{t.name}"] for t in graph.inputs})
        for tensor, values in found.items():
            if name in ("score", "scan") and tensor == "rows":
                continue
            worst = max(worst, _difference(f"{name}/out/{tensor}", golden[f"{name}/out/{tensor}"], values))
    incremental = interests = 0.0
    vectors = lists = 0
    for seed in range(3):
        sequences = [*sequences, random_events(net, 1, 50 + 40 * seed, item_matrix, seed + 1)]
    for events in sequences:
        whole = fold_torch(net, events)
        stepped = fold_steps(net, run, events)
        chunked = fold_chunks(net, run, events)
        for name, values in whole.items():
            incremental = max(incremental, _difference(f"step: {name}", values, stepped[name], relative=True))
            incremental = max(incremental, _difference(f"encode: {name}", values, chunked[name], relative=True))
        moment = whole["clock"][:, 0] + 86_400_000
        asked = {"as_of": moment, "platform": np.zeros(1, np.int64)}
        wanted = run_interest(net, whole, moment)
        for state in (stepped, chunked):
            got = run.run("interest", state | asked)
            interests = max(interests, _difference("interests", wanted["interests"], got["interests"]))
            _same_list(net, run, wanted, got, item_matrix, item_bias)
            lists += 1
        vectors += events.time.shape[1]
    return Verification(worst, incremental, interests, lists, vectors)


@torch.no_grad()
def fold_torch(net: Longwave, events: EventBatch, chunk: int = 512) -> Arrays:
    """The state after all events by `encode()` in torch."""
    state = net.initial_state(torch.zeros(1, len(net.config.attribute_sizes), dtype=torch.int64))
    for start in range(0, events.time.shape[1], chunk):
        part = events.along(slice(start, start + chunk))
        state = net.encode(part, torch.ones_like(part.time, dtype=torch.bool), state)
    return {name: tensor.numpy() for name, tensor in state.items()}


def fold_steps(net: Longwave, run: Graphs, events: EventBatch) -> Arrays:
    """The state after all events by step.onnx, one by one, through bytes after each."""
    state = _initial(net, run)
    for t in range(events.time.shape[1]):
        one = {name: tensor[:, t].numpy() for name, tensor in events._asdict().items() if tensor is not None}
        state = {name: np.frombuffer(v.tobytes(), v.dtype).reshape(v.shape) for name, v in state.items()}
        state = _next(run.run("step", state | one))
    return state


def fold_chunks(net: Longwave, run: Graphs, events: EventBatch, chunk: int = 300, padding: int = 7) -> Arrays:
    """The state after all events by encode.onnx, in padded chunks."""
    state = _initial(net, run)
    for start in range(0, events.time.shape[1], chunk):
        feeds = {
            name: np.pad(tensor[:, start : start + chunk].numpy(), [(0, 0), (0, padding)] + [(0, 0)] * (tensor.dim() - 2))
            for name, tensor in events._asdict().items()
            if tensor is not None
        }
        width = feeds["time"].shape[1]
        state = _next(run.run("encode", state | feeds | {"valid": np.arange(width)[None] < width - padding}))
    return state


@torch.no_grad()
def run_interest(net: Longwave, state: Arrays, as_of: np.ndarray) -> Arrays:
    """interest.onnx's outputs as torch gives them."""
    tensors = {name: torch.as_tensor(values) for name, values in state.items()}
    moment = torch.as_tensor(as_of)
    readout, _ = net.interest(tensors, moment, torch.zeros_like(moment))
    out = {"interests": readout.interests, "popularity_weight": readout.popularity_weight}
    if net.repeats is not None:
        out |= {
            "repeat_interest": readout.repeat_interest,
            "repeat_keys": tensors["repeat_key"],
            "repeat_scores": net.repeat_scores(tensors, readout.context, moment),
        }
    return {name: tensor.numpy() for name, tensor in out.items()}


def _initial(net: Longwave, run: Graphs) -> Arrays:
    return _next(run.run("initial", {"attributes": np.zeros((1, len(net.config.attribute_sizes)), np.int64)}))


def _next(outputs: Arrays) -> Arrays:
    return {name.removesuffix("_out"): values for name, values in outputs.items()}


def _same_list(net: Longwave, run: Graphs, wanted: Arrays, got: Arrays, item_matrix: Tensor, item_bias: Tensor) -> None:
    items = len(item_matrix)
    k = min(20, items)
    common: Arrays = {
        "item_matrix": item_matrix.numpy(),
        "item_bias": item_bias.numpy(),
        "recent": np.zeros((items, len(net.config.popularity_half_lives_s)), np.float32),
        "bias": np.zeros((1, items), np.float32),
        "k": np.array([items]),
    }
    lists = []
    for side in (wanted, got):
        feeds = common | {name: side[name] for name in ("interests", "popularity_weight")}
        if net.repeats is not None:
            keys = side["repeat_keys"]
            # Any fixed assignment of keys to rows will do here: what is compared is the arithmetic.
            feeds |= {"repeat_rows": np.where(keys != 0, np.abs(keys) % items, -1), "repeat_scores": side["repeat_scores"]}
            feeds |= {"repeat_interest": side["repeat_interest"]}
        lists.append(run.run("score", feeds))
    first, second = lists
    scores = np.empty(items, np.float32)
    scores[first["rows"][0]] = first["scores"][0]
    gaps = np.abs(scores[first["rows"][0, :k]] - scores[second["rows"][0, :k]])
    if gaps.max() >= SCORE_GAP:
        raise ExportError(f"top-{k}: torch and ONNX rank items differently whose scores are {gaps.max():.2e} apart")


def _difference(what: str, want: np.ndarray, have: np.ndarray, relative: bool = False) -> float:
    """Largest difference; `relative` measures it against the tensor's size where that is over 1 (sums grow without bound)."""
    if want.shape != have.shape:
        raise ExportError(f"{what}: shape {have.shape}, expected {want.shape}")
    if want.dtype.kind != "f":
        if not np.array_equal(want, have):
            raise ExportError(f"{what}: {int((want != have).sum())} of {want.size} whole numbers differ")
        return 0.0
    finite = np.isfinite(want)
    if not np.array_equal(finite, np.isfinite(have)):
        raise ExportError(f"{what}: not finite where the net is")
    scale = np.maximum(1.0, np.abs(want[finite])) if relative else 1.0
    worst = float(np.max(np.abs(want[finite] - have[finite]) / scale, initial=0.0))
    if worst > STATE_TOLERANCE:
        raise ExportError(f"{what}: torch and ONNX differ by {worst:.2e}, allowed are {STATE_TOLERANCE:.0e}")
    return worst
