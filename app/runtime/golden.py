"""Replays the bundle's golden vectors: what the trainer's graphs gave must come out here too, or nothing is served."""

from __future__ import annotations

from zipfile import BadZipFile

import numpy as np

from app.arrays import unpacked
from app.errors import BundleError
from app.runtime.bundle import GOLDEN, Bundle
from app.runtime.manifest import GraphName, Tolerance
from app.runtime.session import Array, Runtime


def replay_golden(runtime: Runtime) -> int:
    """Run every graph on its golden inputs and compare; returns how many outputs were compared.

    Raises:
        BundleError: a graph has no golden vectors, or an output differs by more than the manifest's tolerance.
    """
    file = runtime.bundle.file(GOLDEN)
    golden = _read(runtime.bundle)
    compared = 0
    for name, graph in runtime.bundle.manifest.graphs.items():
        if not graph.inputs:  # an item graph without text and features has nothing to replay
            continue
        feeds = {tensor.name: _take(golden, f"{name}/in/{tensor.name}", str(file)) for tensor in graph.inputs}
        expected = {tensor.name: _take(golden, f"{name}/out/{tensor.name}", str(file)) for tensor in graph.outputs}
        try:
            found = runtime.graph(name)(feeds)
        except Exception as error:  # ONNX Runtime raises many kinds, none of them public
            raise BundleError(f"{file}: {name} cannot be run: {str(error).splitlines()[0]}") from None
        for output, values in expected.items():
            problem = _difference(name, output, expected, found, runtime.bundle.manifest.tolerance)
            if problem:
                raise BundleError(f"{file}: {name}/out/{output}: {problem} on {runtime.device.name}")
            compared += values.size > 0
    return compared


def golden_output(bundle: Bundle, graph: GraphName, output: str) -> Array:
    """What a graph gave on its golden inputs. Raises BundleError if the bundle does not say."""
    return _take(_read(bundle), f"{graph}/out/{output}", str(bundle.file(GOLDEN)))


def _read(bundle: Bundle) -> dict[str, Array]:
    file = bundle.file(GOLDEN)
    try:
        return unpacked(file.read_bytes())
    except (OSError, ValueError, EOFError, BadZipFile) as error:
        raise BundleError(f"{file}: not a .npz archive: {error}") from None


def _take(golden: dict[str, Array], name: str, file: str) -> Array:
    if name not in golden:
        raise BundleError(f"{file}: {name} is missing")
    return golden[name]


def _difference(
    graph: GraphName, output: str, expected: dict[str, Array], found: dict[str, Array], tolerance: Tolerance
) -> str | None:
    want, have = expected[output], found[output]
    if want.shape != have.shape:
        return f"shape {have.shape}, expected {want.shape}"
    if graph in ("score", "scan") and output == "rows":
        return _rows_difference(expected, found, tolerance.top_k_gap)
    if want.dtype.kind != "f":
        wrong = int((want != have).sum())
        return f"{wrong} of {want.size} whole numbers differ" if wrong else None
    near = dict.fromkeys(("interest", "item", "profile", "recent"), tolerance.interest)
    allowed = (near | dict.fromkeys(("score", "scan"), tolerance.score)).get(graph, tolerance.state)
    if not np.array_equal(np.isfinite(want), np.isfinite(have)):
        return "infinite or missing in other places than expected"
    finite = np.isfinite(want)
    worst = float(np.abs(want[finite].astype(np.float64) - have[finite]).max(initial=0.0))
    return f"off by {worst:.3g}, allowed is {allowed:.3g}" if worst > allowed else None


def _rows_difference(expected: dict[str, Array], found: dict[str, Array], gap: float) -> str | None:
    """Rows may change places only where their golden scores are closer than `gap`, with each other or with the list's end."""
    for b in range(len(expected["rows"])):
        want, have = expected["rows"][b].tolist(), found["rows"][b].tolist()
        want_scores, have_scores = expected["scores"][b].tolist(), found["scores"][b].tolist()
        eligible = int(np.isfinite(want_scores).sum())  # past the eligible items rows mean nothing
        golden = dict(zip(want[:eligible], want_scores, strict=False))
        for k in range(eligible):
            if want[k] == have[k]:
                continue
            # A row that the golden list does not have can only be one that nearly made it.
            apart = golden[have[k]] - want_scores[k] if have[k] in golden else have_scores[k] - want_scores[eligible - 1]
            if abs(apart) > gap:
                return f"place {k} of query {b} holds row {have[k]}, expected {want[k]}"
    return None
