"""The exact scan on a CUDA device against its copy bandwidth: `python -m loadtests.catalogue --part device --items 1000000,...`

Where there is no such device, nothing is measured and nothing is written.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from time import perf_counter
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from app.recommend.segments import SEGMENT_ROWS, Segments, Shown
from app.runtime.bundle import Bundle
from app.runtime.session import Runtime, open_runtime
from loadtests.errors import BenchError
from loadtests.shaped_queries import interests

NOT_MEASURED: Final = "not measured: no CUDA device"

_BATCHES: Final = (1, 8, 32)
_K: Final = 100
_COPIED: Final = 1 << 28  # floats: 1 GB read, 1 GB written
_ROUNDS: Final = 30
_CHANGED: Final = 1_000
_CHUNK: Final = 1 << 20

Array = npt.NDArray[Any]


@dataclass
class Changing:
    """A catalogue of which some rows were renewed after the first change."""

    renewed: Array

    def renewed_since(self, changes: int) -> Array:
        return self.renewed if changes == 0 else np.empty(0, np.int64)


def open_on_device(bundle: Bundle) -> Runtime | None:
    """A bundle's graphs on the CUDA device; None where there is none.

    Raises BenchError if the bundle is of before scan.onnx.
    """
    runtime = open_runtime(bundle, "auto", 1)
    if runtime.device.name == "cpu":
        return None
    if runtime.scan is None:
        raise BenchError("this bundle has no scan.onnx: export it anew")
    return runtime


def measure_device(
    runtime: Runtime, bundle: Bundle, count: int, say: Callable[[str], None], copied: int = _COPIED, rows: int = SEGMENT_ROWS
) -> dict[str, Any]:
    """The scan of so many drawn rows, top-k and the merging of segments included.

    Shares are of the copy bandwidth (bytes read and bytes written), counting the item matrix's bytes alone, once for a call.
    """
    rng = np.random.default_rng(0)
    width, halves = bundle.vectors.shape[1], bundle.popularity.shape[1]
    vectors = np.empty((count, width), np.float32)
    for first in range(0, count, _CHUNK):
        part = vectors[first : first + _CHUNK]
        part[:] = rng.standard_normal(part.shape, np.float32)
    bias = rng.standard_normal(count, np.float32)
    popularity = rng.exponential(1.0, (count, halves)).astype(np.float32)
    users = interests(runtime, bundle, max(_BATCHES))
    copy = copy_bandwidth(runtime, copied)
    say(f"copies {copy / 1e9:.0f} GB/s (read and written)")
    catalogue = Changing(np.empty(0, np.int64))
    shown = Shown(0, vectors, bias)
    began = perf_counter()
    scan = Segments(runtime, catalogue, shown, rows=rows)
    found: dict[str, Any] = {
        "items": count,
        "width": width,
        "segments": scan.layout.segments,
        "laid_out_s": perf_counter() - began,
        "copy_bytes_per_s": copy,
        "batches": {},
    }
    mask = rng.random(count) < 0.5
    for batch in _BATCHES:
        some = {name: array[:batch] for name, array in users.items()}
        free_s = _seconds(lambda some=some: scan.best(some, _K, shown, popularity))  # type: ignore[misc]
        masked_s = _seconds(lambda some=some: scan.best(some, _K, shown, popularity, mask))  # type: ignore[misc]
        of_batch = {
            "ms": free_s * 1e3,
            "share_of_copy": vectors.nbytes / free_s / copy,
            "users_per_s": batch / free_s,
            "ms_masked": masked_s * 1e3,
        }
        found["batches"][str(batch)] = of_batch
        say(f"{batch} users: {of_batch['ms']:.1f} ms, {of_batch['share_of_copy']:.0%} of the copy bandwidth")
    one = {name: array[:1] for name, array in users.items()}
    began = perf_counter()
    scan.best(one, _K, shown, popularity.copy())
    found["next_popularity_ms"] = (perf_counter() - began) * 1e3
    catalogue.renewed = np.sort(rng.choice(count, min(count, _CHANGED), replace=False))
    began = perf_counter()
    scan.best(one, _K, Shown(1, vectors, bias), popularity)
    found["change_ms"] = (perf_counter() - began) * 1e3
    if runtime.placement.failures:
        raise BenchError(f"the device did not hold out: {runtime.device.why}")
    return found


def copy_bandwidth(runtime: Runtime, floats: int) -> float:
    """Bytes a second that the device reads and writes while it copies so many numbers."""
    from onnx import TensorProto, helper  # the trainer's

    tensors = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N"]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Neg", ["x"], ["y"])], "copy", tensors[:1], tensors[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    session = ort.InferenceSession(model.SerializeToString(), providers=list(runtime.device.providers))
    memory = runtime.device.memory
    binding = session.io_binding()
    binding.bind_ortvalue_input("x", ort.OrtValue.ortvalue_from_numpy(np.ones(floats, np.float32), memory, 0))
    binding.bind_ortvalue_output("y", ort.OrtValue.ortvalue_from_shape_and_type([floats], np.float32, memory, 0))

    def run() -> None:
        session.run_with_iobinding(binding)
        binding.synchronize_outputs()

    return 2 * 4 * floats / _seconds(run)


def _seconds(call: Callable[[], Any]) -> float:
    """What a call takes, warm."""
    for _ in range(3):
        call()
    taken = []
    for _ in range(_ROUNDS):
        began = perf_counter()
        call()
        taken.append(perf_counter() - began)
    return median(taken)
