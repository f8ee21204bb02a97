"""The bundle's graphs as ONNX Runtime sessions, checked against the manifest when they open."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from app.errors import BundleError
from app.runtime.bundle import MANIFEST, Bundle
from app.runtime.device import CPU, Device, Placement, choose_device
from app.runtime.manifest import Graph, GraphName, Tensor

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Resident:
    """A tensor on a device that is not the CPU, and how to have it on the CPU should the device fail."""

    value: ort.OrtValue
    again: Callable[[], Array]


Feed: TypeAlias = Array | ort.OrtValue | Resident

_REQUIRED: tuple[GraphName, ...] = ("initial", "step", "encode", "interest", "score")
_OPTIONAL: tuple[GraphName, ...] = ("item", "profile", "recent", "scan")
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

    def kept(self, feeds: Mapping[str, Feed]) -> dict[str, Feed]:
        """The same, for outputs that are fed to other calls: they stay where the device has them."""
        return {name: ort.OrtValue.ortvalue_from_numpy(array) for name, array in self(feeds).items()}

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


class DeviceSession(GraphSession):
    """One graph on a device that is not the CPU, through I/O binding: what lies on the device is not copied, what comes from
    the host is copied once.

    Where a call fails, the CPU makes up for it, and if that succeeds, the device is at fault: from then on everything that
    shares its placement runs on the CPU.
    """

    def __init__(self, bundle: Bundle, name: GraphName, placement: Placement, threads: int) -> None:
        super().__init__(bundle, name, placement.device, threads)
        self._placement = placement
        self._memory = placement.device.memory
        self._on_cpu: Callable[[], GraphSession] = lambda: GraphSession(bundle, name, Device("cpu", "", (CPU,)), threads)
        self._spare: GraphSession | None = None

    def __call__(self, feeds: Mapping[str, Feed]) -> dict[str, Array]:
        if self._placement.device.name == "cpu":
            return self._without_device(feeds)
        try:
            return {name: value.numpy() for name, value in self._bound(feeds, "cpu").items()}
        except Exception as error:  # ONNX Runtime raises many kinds, none of them public
            found = self._without_device(feeds)  # raises what is the fault of the feeds
            self._placement.fail(f"{self.name}.onnx", error)
            return found

    def kept(self, feeds: Mapping[str, Feed]) -> dict[str, Feed]:
        if self._placement.device.name != "cpu":
            try:
                found = self._bound(feeds, self._memory)
            except Exception as error:
                self._without_device(feeds)
                self._placement.fail(f"{self.name}.onnx", error)
            else:
                own = {name: feeds[name] for name in self.inputs}
                return {name: Resident(value, self._again(own, name)) for name, value in found.items()}
        return {name: ort.OrtValue.ortvalue_from_numpy(array) for name, array in self._without_device(feeds).items()}

    def _again(self, feeds: Mapping[str, Feed], output: str) -> Callable[[], Array]:
        return lambda: self._without_device(feeds)[output]

    def _bound(self, feeds: Mapping[str, Feed], outputs_to: str) -> dict[str, ort.OrtValue]:
        binding = self._session.io_binding()
        for name in self.inputs:
            feed = feeds[name]
            if isinstance(feed, Resident):
                binding.bind_ortvalue_input(name, feed.value)
            elif isinstance(feed, ort.OrtValue):
                binding.bind_ortvalue_input(name, feed)
            else:
                binding.bind_cpu_input(name, np.ascontiguousarray(feed))
        for name in self.outputs:
            binding.bind_output(name, outputs_to)
        binding.synchronize_inputs()
        self._session.run_with_iobinding(binding)
        binding.synchronize_outputs()
        return dict(zip(self.outputs, binding.get_outputs(), strict=True))

    def _without_device(self, feeds: Mapping[str, Feed]) -> dict[str, Array]:
        if self._spare is None:
            self._spare = self._on_cpu()
        own = {name: feeds[name] for name in self.inputs}
        return self._spare({name: feed.again() if isinstance(feed, Resident) else feed for name, feed in own.items()})


@dataclass(frozen=True)
class Runtime:
    """A bundle with its graphs open on a device.

    `item` is None for a model that understands ids alone, `profile` for one that says nothing of its users in words, `recent` for
    one whose score.onnx takes decayed counts as they are, `scan` for one without a graph for the items of a device.
    """

    bundle: Bundle
    placement: Placement
    initial: GraphSession
    step: GraphSession
    encode: GraphSession
    interest: GraphSession
    score: GraphSession
    item: GraphSession | None
    profile: GraphSession | None
    recent: GraphSession | None
    scan: GraphSession | None

    @property
    def device(self) -> Device:
        """The one in use: the CPU once another one has failed."""
        return self.placement.device

    def graph(self, name: GraphName) -> GraphSession:
        session: GraphSession | None = getattr(self, name)
        if session is None:
            raise BundleError(f"{self.bundle.path}/manifest.json: field graphs: {name} is missing")
        return session

    def of_popularity(self, popularity: Array) -> dict[str, Array]:
        """What score.onnx takes of decayed counts (N, P): it depends on the moment alone, and many reads share one."""
        return {"popularity": popularity} if self.recent is None else self.recent({"popularity": popularity})

    def kept_popularity(self, popularity: Array) -> dict[str, Feed]:
        """The same on the device."""
        if self.recent is None:
            return {"popularity": self.resident(popularity)}
        return self.recent.kept({"popularity": popularity})

    def resident(self, array: Array) -> Feed:
        """Put an array on the device once, to be fed to many calls; on the CPU it is used where it lies, without a copy, and so
        it is from then on where a device has no room for it."""
        array, device = np.ascontiguousarray(array), self.device
        if device.name != "cpu":
            try:
                return Resident(ort.OrtValue.ortvalue_from_numpy(array, device.memory, 0), lambda: array)
            except Exception as error:  # ONNX Runtime raises many kinds, none of them public
                self.placement.fail(f"putting {array.nbytes:,} bytes there", error)
        return ort.OrtValue.ortvalue_from_numpy(array)


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
    placement = Placement(choose_device(device, bundle.file(graphs["score"].file)))

    def opened(name: GraphName) -> GraphSession:
        if placement.device.name == "cpu":
            return GraphSession(bundle, name, placement.device, threads)
        return DeviceSession(bundle, name, placement, threads)

    sessions = {name: opened(name) for name in _REQUIRED}
    _check_state(bundle)
    item, profile, recent, scan = (opened(name) if name in graphs else None for name in _OPTIONAL)
    return Runtime(bundle=bundle, placement=placement, item=item, profile=profile, recent=recent, scan=scan, **sessions)


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
