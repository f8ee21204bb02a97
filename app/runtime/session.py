"""The bundle's graphs as ONNX Runtime sessions, checked against the manifest when they open."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from app.errors import BundleError
from app.runtime.bundle import MANIFEST, Bundle
from app.runtime.device import Device, choose_device
from app.runtime.manifest import Graph, GraphName, Tensor

Array = npt.NDArray[Any]
Feed: TypeAlias = Array | ort.OrtValue

_REQUIRED: tuple[GraphName, ...] = ("initial", "step", "encode", "interest", "score")
_OPTIONAL: tuple[GraphName, ...] = ("item", "profile", "recent")
_DTYPES = {"tensor(float)": "float32", "tensor(int32)": "int32", "tensor(int64)": "int64", "tensor(bool)": "bool"}


class GraphSession:
    """One graph. Calling it is thread-safe and releases the GIL while the graph runs."""

    def __init__(self, bundle: Bundle, name: GraphName, device: Device, threads: int) -> None:
        self.name = name
        graph = bundle.manifest.graphs[name]
        self.file = bundle.file(graph.file)
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
        options.enable_mem_pattern = False  # patterns are kept per input shape, and ours vary with every batch
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3
        try:
            self._session = ort.InferenceSession(self.file, options, providers=list(device.providers))
        except Exception as error:  # ONNX Runtime raises many kinds, none of them public
            raise BundleError(f"{self.file}: ONNX Runtime cannot open it: {str(error).splitlines()[0]}") from None
        self._session.disable_fallback()
        self._check(graph)
        self.inputs: tuple[str, ...] = tuple(tensor.name for tensor in graph.inputs)
        self.outputs: tuple[str, ...] = tuple(tensor.name for tensor in graph.outputs)
        self._outputs = list(self.outputs)
        # What `run` of the session itself ends in, once it has looked at every name and value: half as long as a small graph.
        self._run = self._session._sess.run

    def __call__(self, feeds: Mapping[str, Feed]) -> dict[str, Array]:
        """Run the graph; of `feeds` it takes those that it declares as inputs, all of which must be there."""
        results = self._run(self._outputs, {name: feeds[name] for name in self.inputs}, None)
        return dict(zip(self.outputs, results, strict=True))

    def _check(self, graph: Graph) -> None:
        for kind, declared, found in (
            ("inputs", graph.inputs, self._session.get_inputs()),
            ("outputs", graph.outputs, self._session.get_outputs()),
        ):
            by_name = {tensor.name: tensor for tensor in found}
            if by_name.keys() != {tensor.name for tensor in declared}:
                raise BundleError(
                    f"{self.file}: its {kind} are {sorted(by_name)}, "
                    f"the manifest (graphs.{self.name}.{kind}) says {sorted(tensor.name for tensor in declared)}"
                )
            for tensor in declared:
                node = by_name[tensor.name]
                if _DTYPES.get(node.type) != tensor.dtype or not _shapes_agree(tensor, node.shape):
                    raise BundleError(
                        f"{self.file}: {tensor.name} is {node.type} {node.shape}, "
                        f"the manifest (graphs.{self.name}.{kind}) says {tensor.dtype} {tensor.shape}"
                    )


def _shapes_agree(tensor: Tensor, found: list[int | str | None]) -> bool:
    if len(tensor.shape) != len(found):
        return False
    return all(a == b for a, b in zip(tensor.shape, found, strict=True) if isinstance(a, int) and isinstance(b, int))


@dataclass(frozen=True)
class Runtime:
    """A bundle with its graphs open on a device.

    `item` is None for a model that understands ids alone, `profile` for one that says nothing of its users in words, `recent` for
    one whose score.onnx takes decayed counts as they are.
    """

    bundle: Bundle
    device: Device
    initial: GraphSession
    step: GraphSession
    encode: GraphSession
    interest: GraphSession
    score: GraphSession
    item: GraphSession | None
    profile: GraphSession | None
    recent: GraphSession | None

    def graph(self, name: GraphName) -> GraphSession:
        session: GraphSession | None = getattr(self, name)
        if session is None:
            raise BundleError(f"{self.bundle.path}/manifest.json: field graphs: {name} is missing")
        return session

    def of_popularity(self, popularity: Array) -> dict[str, Array]:
        """What score.onnx takes of decayed counts (N, P): it depends on the moment alone, and many reads share one."""
        return {"popularity": popularity} if self.recent is None else self.recent({"popularity": popularity})

    def resident(self, array: Array) -> ort.OrtValue:
        """Put an array on the device once, to be fed to many calls; on the CPU it is used where it lies, without a copy."""
        return ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array), self.device.name, 0)


def open_runtime(bundle: Bundle, device: Literal["auto", "cpu", "cuda"], threads: int) -> Runtime:
    """Open every graph of a bundle.

    Args:
        device: the setting; see `choose_device`.
        threads: threads within one call on the CPU.

    Raises:
        BundleError: a graph is missing, cannot be opened, or is not what the manifest says; or the manifest's state is not
            what step.onnx returns.
        DeviceError: CUDA was demanded and does not start.
    """
    graphs = bundle.manifest.graphs
    for name in _REQUIRED:
        if name not in graphs:
            raise BundleError(f"{bundle.path}/manifest.json: field graphs: {name} is missing")
    chosen = choose_device(device, bundle.file(graphs["score"].file))
    sessions = {name: GraphSession(bundle, name, chosen, threads) for name in _REQUIRED}
    _check_state(bundle)
    item, profile, recent = (GraphSession(bundle, name, chosen, threads) if name in graphs else None for name in _OPTIONAL)
    return Runtime(bundle=bundle, device=chosen, item=item, profile=profile, recent=recent, **sessions)


def _check_state(bundle: Bundle) -> None:
    """What is stored of a user must be what a step returns: the codec and the graphs meet nowhere else."""
    file = bundle.path / MANIFEST
    declared = {f"{tensor.name}_out": (tensor.dtype, list(tensor.shape)) for tensor in bundle.manifest.state}
    returned = {tensor.name: (tensor.dtype, tensor.shape[1:]) for tensor in bundle.manifest.graphs["step"].outputs}
    if declared.keys() != returned.keys():
        raise BundleError(f"{file}: field state: step.onnx returns {sorted(returned)}, the state needs {sorted(declared)}")
    for name, expected in declared.items():
        if returned[name] != expected:
            raise BundleError(f"{file}: field state: step.onnx returns {name} as {returned[name]}, the state says {expected}")
