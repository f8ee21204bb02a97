"""What a smaller bundle costs: every way of exporting a run, measured beside the plain one, on validation questions."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from model.benchmark.heading import heading
from model.benchmark.names import find
from model.benchmark.opened import USERS, Opened, Timed
from model.benchmark.run import to_text
from model.checkpoint import Checkpoint, CheckpointError
from model.compare import load_best
from model.data.build import Dataset
from model.data.splits import select
from model.files import check_folder, write_whole
from model.intervals import UserBootstrap
from model.metrics import ndcg, recall
from model.publish import publish_task
from model.settings import DataSettings
from model.task import Task, make_task

FORMAT = 1
COMPRESSION = "compression"
"""The folder of these results, within that of all."""
WARM_UP = 5
DYNAMIC = ("step", "encode", "interest")
"""The graphs that have constant weights to quantise."""


@dataclass(frozen=True)
class Variant:
    """A way of exporting: how item vectors and weights are stored, and which graphs ONNX Runtime's dynamic quantisation replaces.

    The last is measured, and not offered: docs/adr/0016-compression.md.
    """

    item_vectors: str = "float32"
    weights: str = "float32"
    dynamic: tuple[str, ...] = ()


VARIANTS = (
    Variant(),
    Variant(item_vectors="int8"),
    Variant(weights="int8"),
    Variant("int8", "int8"),
    Variant(dynamic=("interest",)),
    Variant(dynamic=DYNAMIC),
)
"""What the first run is measured as."""
OTHERS = (Variant(), Variant("int8", "int8"))
"""What further runs are, a smaller preset's, say."""


def measure_compression(
    name: str,
    runs: Sequence[Path],
    out: Path,
    data: Path | None = None,
    queries: int = 1000,
    rounds: int = 200,
    offline: bool = False,
    say: Callable[[str], None] = lambda _: None,
) -> Path:
    """Export the first run in every way, further ones plain and rounded, and measure each on validation questions.

    Writes `out/compression/NAME-RUN.json`, RUN being the first.

    Args:
        queries: validation questions that are asked, the same of all. rounds: how often each graph is timed, by turns.

    Raises:
        TrainerError: a run is missing, damaged, or of other data or another split than the first, or a place cannot be written.
    """
    check_folder(out / COMPRESSION)
    called, dataset, _ = find(name, data, offline)
    tasks = [_task(dataset, run) for run in runs]
    split = tasks[0][1].split
    for run, (_, task) in zip(runs, tasks, strict=True):
        if not np.array_equal(task.split.valid.position, split.valid.position) or task.seq.items != tasks[0][1].seq.items:
            raise CheckpointError(f"{run}: asked in another way than {runs[0]}: their [data] settings differ")
    chosen = np.sort(np.random.default_rng(0).permutation(len(split.valid))[:queries])
    asked, k = select(split.valid, chosen), split.k
    bootstrap = UserBootstrap(asked.user)
    measured: list[dict[str, Any]] = []
    timed: list[Timed] = []
    first: npt.NDArray[np.float64] | None = None
    with tempfile.TemporaryDirectory() as place:
        for number, (run, (checkpoint, task)) in enumerate(zip(runs, tasks, strict=True)):
            for variant in VARIANTS if not measured else OTHERS:
                opened, sizes = _export(checkpoint, task, variant, Path(place) / str(number))
                lists = opened.lists(task, asked)
                values = np.asarray(ndcg(lists, asked, k), np.float64)
                first = values if first is None else first
                measured.append(
                    {
                        "run": run.name,
                        "item_vectors": variant.item_vectors,
                        "weights": variant.weights,
                        "dynamic": list(variant.dynamic),
                        "parameters": sum(parameter.numel() for parameter in checkpoint.net.parameters()),
                        "bytes": sizes,
                        f"ndcg@{k}": float(np.nanmean(values)),
                        f"recall@{k}": float(np.nanmean(recall(lists, asked, k))),
                        "against_first": _difference(bootstrap, values, first),
                    }
                )
                timed.append(Timed(opened, task, asked))
                say(f"{run.name}, {_words(variant)}: {sum(sizes.values()):,} bytes, ndcg@{k} {np.nanmean(values):.4f}")
        for _ in range(WARM_UP + rounds):
            for each in timed:
                each.once()
    for line, each in zip(measured, timed, strict=True):
        line["microseconds"] = {graph: _spread(seconds[WARM_UP:]) for graph, seconds in each.seconds.items()}
    result = {
        **heading(FORMAT, called, preset=runs[0].name),
        "fingerprint": dataset.manifest.fingerprint,
        "protocol": split.protocol,
        "part": "valid",
        "k": k,
        "queries": len(asked),
        "items": tasks[0][1].seq.items,
        "rounds": rounds,
        "users": USERS,
        "measured": measured,
    }
    path = out / COMPRESSION / f"{called}-{runs[0].name}.json"
    write_whole(path, to_text(result))
    return path


def _task(dataset: Dataset, run: Path) -> tuple[Checkpoint, Task]:
    checkpoint = load_best(run)
    if not isinstance(checkpoint, Checkpoint):
        raise CheckpointError(f"{run}: a neural baseline, which cannot be exported")
    text = None if checkpoint.item_text is None else checkpoint.item_text.numpy()
    task = make_task(dataset, DataSettings(**checkpoint.settings["data"]), text)
    if checkpoint.data["fingerprint"] != task.data["fingerprint"]:
        raise CheckpointError(f"{run}: trained on other data than {task.data['name']}")
    return checkpoint, task


def _export(checkpoint: Checkpoint, task: Task, variant: Variant, place: Path) -> tuple[Opened, dict[str, int]]:
    """The bundle as it is published, with its files' sizes; quantised graphs take the place of its own."""
    stored = variant.item_vectors, variant.weights
    place = place / "-".join(stored)
    if not place.exists():
        publish_task(checkpoint, task, task.split.train_end, place, [], None, *stored)
    folder = (place / "current").resolve()
    sizes = {str(file.relative_to(folder)): file.stat().st_size for file in sorted(folder.rglob("*")) if file.is_file()}
    replaced = {}
    if variant.dynamic:
        from onnxruntime.quantization import QuantType, quantize_dynamic  # seconds to import
    for graph in variant.dynamic:
        replaced[graph] = place / f"{graph}.onnx"
        extra = {"DefaultTensorType": onnx.TensorProto.FLOAT}
        quantize_dynamic(folder / f"{graph}.onnx", replaced[graph], weight_type=QuantType.QUInt8, extra_options=extra)
        sizes[f"{graph}.onnx"] = replaced[graph].stat().st_size
    return Opened(folder, replaced), sizes


def _words(variant: Variant) -> str:
    said = f"item vectors {variant.item_vectors}, weights {variant.weights}"
    return said + (f", dynamic {' '.join(variant.dynamic)}" if variant.dynamic else "")


def _difference(
    bootstrap: UserBootstrap, values: npt.NDArray[np.float64], first: npt.NDArray[np.float64]
) -> dict[str, float | None]:
    found = bootstrap.difference(values, first)
    return {"mean": found.mean, "low": found.low, "high": found.high, "p": found.p}


def _spread(seconds: list[float]) -> dict[str, float]:
    low, middle, high = (1e6 * each for each in statistics.quantiles(seconds, n=4))
    return {"low": low, "median": middle, "high": high}
