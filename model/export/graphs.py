"""The net as ONNX graphs: wrappers that name inputs and outputs, and no arithmetic of their own.

The TorchScript exporter is used on purpose: it keeps LSTM as one operator and loops as loops (docs/adr/0002-exporter.md).
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import onnx
import torch
from torch import Tensor, nn

from model.nets import EventBatch, Longwave, State
from model.nets.portrait import drift, label_weights
from model.nets.readout import add_repeats, item_scores, recency, scores_of
from model.nets.topk import BLOCK, best_in_blocks

OPSET = 18

_ONNX_TYPES = {
    onnx.TensorProto.FLOAT: "float32",
    onnx.TensorProto.INT32: "int32",
    onnx.TensorProto.INT64: "int64",
    onnx.TensorProto.BOOL: "bool",
}


@dataclass(frozen=True)
class TensorSpec:
    """One input or output; a dimension is a number or the letter that the design gives it."""

    name: str
    dtype: str
    shape: list[int | str]


@dataclass(frozen=True)
class ExportedGraph:
    proto: bytes
    inputs: list[TensorSpec]
    outputs: list[TensorSpec]


class _Wrapper(nn.Module):
    def __init__(self, net: Longwave) -> None:
        super().__init__()
        self.net = net
        self.state_names = list(net.state_shapes())
        self.event_fields = [f for f in EventBatch._fields if f != "text" or net.config.text_width]

    def state(self, tensors: tuple[Tensor, ...]) -> State:
        return dict(zip(self.state_names, tensors, strict=True))

    def ordered(self, state: State) -> tuple[Tensor, ...]:
        return tuple(state[name] for name in self.state_names)


class _Initial(_Wrapper):
    def forward(self, attributes: Tensor) -> tuple[Tensor, ...]:
        return self.ordered(self.net.initial_state(attributes))


class _Step(_Wrapper):
    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        n = len(self.state_names)
        return self.ordered(self.net.step(EventBatch(*tensors[n:]), self.state(tensors[:n])))


class _Encode(_Wrapper):
    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        n = len(self.state_names)
        return self.ordered(self.net.encode(EventBatch(*tensors[n:-1]), tensors[-1], self.state(tensors[:n])))


class _Interest(_Wrapper):
    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        state = self.state(tensors[:-2])
        as_of, platform = tensors[-2:]
        out, attention = self.net.interest(state, as_of, platform)
        result = (out.interests, attention, out.popularity_weight)
        if self.net.repeats is None:
            return result
        repeats = self.net.repeat_scores(state, out.context, as_of)
        return (*result, out.repeat_interest, state["repeat_key"], repeats)


class _Profile(_Wrapper):
    def forward(
        self,
        leaning: Tensor,
        interests: Tensor,
        item_matrix: Tensor,
        item_bias: Tensor,
        popularity: Tensor,
        popularity_weight: Tensor,
        item_labels: Tensor,
        repeat_rows: Tensor | None = None,
        repeat_scores: Tensor | None = None,
        repeat_interest: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        scores = item_scores(interests, item_matrix, item_bias, popularity, popularity_weight)
        if repeat_rows is not None and repeat_scores is not None and repeat_interest is not None:
            scores = add_repeats(scores, repeat_rows, repeat_scores, repeat_interest, item_matrix)
        return drift(leaning), label_weights(scores, item_labels)


class _Item(_Wrapper):
    def forward(self, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        text = tensors[0] if self.net.config.text_width else None
        features = tensors[-1] if self.net.config.feature_width else None
        return self.net.item.unseen(text, features)


class _Recent(_Wrapper):
    def forward(self, popularity: Tensor) -> Tensor:
        return recency(popularity)


class _Score(_Wrapper):
    def forward(
        self,
        interests: Tensor,
        item_matrix: Tensor,
        item_bias: Tensor,
        recent: Tensor,
        popularity_weight: Tensor,
        bias: Tensor,
        k: Tensor,
        repeat_rows: Tensor | None = None,
        repeat_scores: Tensor | None = None,
        repeat_interest: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        # An item that must not come back has a bias of -inf, and whatever else its score is made of, that remains.
        scores = scores_of(interests, item_matrix, item_bias + bias, recent, popularity_weight)
        if repeat_rows is not None and repeat_scores is not None and repeat_interest is not None:
            scores = add_repeats(scores, repeat_rows, repeat_scores, repeat_interest, item_matrix)
        return self.best(scores, k)

    def best(self, scores: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        # A tensor still when traced: so k stays an input of the graph.
        top = torch.topk(scores, cast(int, k[0]), dim=1)
        return top.values, top.indices


class _Scan(_Score):
    def best(self, scores: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        return best_in_blocks(scores, k)


def example_state(net: Longwave, users: int) -> State:
    return net.initial_state(torch.zeros(users, len(net.config.attribute_sizes), dtype=torch.int64))


def example_events(net: Longwave, *shape: int) -> EventBatch:
    config = net.config
    return EventBatch(
        torch.zeros(*shape, config.item_width),
        torch.ones(*shape, dtype=torch.bool),
        torch.arange(1, 1 + torch.Size(shape).numel(), dtype=torch.int64).view(shape),
        torch.zeros(shape, dtype=torch.int64),
        torch.zeros(shape, dtype=torch.int64),
        torch.full((*shape, 3), torch.nan),
        torch.full(shape, 1_300_000_000_000, dtype=torch.int64),
        torch.zeros(*shape, config.text_width) if config.text_width else None,
    )


def export_graphs(net: Longwave) -> dict[str, ExportedGraph]:
    """Every graph of the bundle by name (`item` only where the model understands content)."""
    net = net.eval()
    config = net.config
    state = example_state(net, 2)
    state_in = {name: (tensor, ["B", *tensor.shape[1:]]) for name, tensor in state.items()}
    # Readers may leave out slots at the end that are empty for all users of a batch.
    read_in = {
        name: (tensor, ["B", "R", *tensor.shape[2:]] if name.startswith("repeat_") else shape)
        for name, (tensor, shape) in state_in.items()
    }
    state_out = {f"{name}_out": ["B", *tensor.shape[1:]] for name, tensor in state.items()}

    def events(*shape: int, dims: list[int | str]) -> dict[str, tuple[Tensor, list[int | str]]]:
        batch = example_events(net, *shape)
        return {
            name: (tensor, [*dims, *tensor.shape[len(shape) :]]) for name, tensor in batch._asdict().items() if tensor is not None
        }

    attributes = torch.zeros(2, len(config.attribute_sizes), dtype=torch.int64)
    moment = torch.full((2,), 1_300_000_000_000, dtype=torch.int64)
    asked = {"as_of": (moment, ["B"]), "platform": (torch.zeros_like(moment), ["B"])}
    interest_out: dict[str, list[int | str]] = {
        "interests": ["B", config.interests, config.item_width],
        "attention": ["B", config.ring],
        "popularity_weight": ["B", len(config.popularity_half_lives_s)],
    }
    if net.repeats is not None:
        interest_out |= {"repeat_interest": ["B", config.item_width]}
        interest_out |= {"repeat_keys": ["B", "R"], "repeat_scores": ["B", "R"]}
    halves = len(config.popularity_half_lives_s)
    popular_in: dict[str, tuple[Tensor, list[int | str]]] = {"popularity": (torch.ones(9, halves), ["N", halves])}
    score_in: dict[str, tuple[Tensor, list[int | str]]] = {
        "interests": (torch.randn(2, config.interests, config.item_width), ["B", config.interests, config.item_width]),
        "item_matrix": (torch.randn(9, config.item_width), ["N", config.item_width]),
        "item_bias": (torch.zeros(9), ["N"]),
        "recent": (torch.zeros(9, halves), ["N", halves]),
        "popularity_weight": (torch.ones(2, halves), ["B", halves]),
        "bias": (torch.zeros(1, 9), ["B or 1", "N"]),
        "k": (torch.tensor([3]), [1]),
    }
    if net.repeats is not None:
        score_in |= {
            "repeat_rows": (torch.full((2, config.repeats), -1), ["B", "R"]),
            "repeat_scores": (torch.zeros(2, config.repeats), ["B", "R"]),
            "repeat_interest": (torch.zeros(2, config.item_width), ["B", config.item_width]),
        }
    graphs = {
        "initial": _export(_Initial(net), {"attributes": (attributes, ["B", attributes.shape[1]])}, state_out),
        "step": _export(_Step(net), state_in | events(2, dims=["B"]), state_out),
        "encode": _export(
            _Encode(net),
            state_in | events(2, 5, dims=["B", "T"]) | {"valid": (torch.ones(2, 5, dtype=torch.bool), ["B", "T"])},
            state_out,
        ),
        "interest": _export(_Interest(net), read_in | asked, interest_out),
        "recent": _export(_Recent(net), popular_in, {"recent": ["N", halves]}),
        "score": _export(_Score(net), score_in, {"scores": ["B", "k"], "rows": ["B", "k"]}),
        "scan": _export(_Scan(net), _in_blocks(score_in), {"scores": ["B", "k"], "rows": ["B", "k"]}),
    }
    profile_in = {"leaning": state_in["leaning"]}
    profile_in |= popular_in | {name: given for name, given in score_in.items() if name not in ("bias", "k", "recent")}
    profile_in["item_labels"] = (torch.ones(9, 2), ["N", "C"])
    # In the order of the arguments.
    order = ("leaning", "interests", "item_matrix", "item_bias", "popularity", "popularity_weight", "item_labels")
    profile_in = {name: profile_in[name] for name in (*order, *(name for name in profile_in if name not in order))}
    graphs["profile"] = _export(_Profile(net), profile_in, {"drift": ["B", 1], "labels": ["B", "C"]})
    content: dict[str, tuple[Tensor, list[int | str]]] = {}
    if config.text_width:
        content["text"] = (torch.zeros(2, config.text_width), ["B", config.text_width])
    if config.feature_width:
        content["features"] = (torch.zeros(2, config.feature_width), ["B", config.feature_width])
    if content:
        graphs["item"] = _export(_Item(net), content, {"vector": ["B", config.item_width], "bias": ["B"]})
    return graphs


def _in_blocks(score_in: dict[str, tuple[Tensor, list[int | str]]]) -> dict[str, tuple[Tensor, list[int | str]]]:
    """The same examples with as many items as scan.onnx takes: two blocks."""
    items, out = 2 * BLOCK, {}
    for name, (tensor, shape) in score_in.items():
        if "N" in shape:
            size = [items if of == "N" else tensor.shape[axis] for axis, of in enumerate(shape)]
            tensor = torch.randn(size)
        out[name] = (tensor, shape)
    return out


def to_onnx(
    module: nn.Module, inputs: Mapping[str, Tensor], outputs: Sequence[str], axes: Mapping[str, Mapping[int, str]]
) -> bytes:
    """A module as ONNX; `axes` names the free dimensions of its inputs and outputs."""
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        file = Path(folder) / "graph.onnx"
        torch.onnx.export(
            module,
            tuple(inputs.values()),
            file,
            dynamo=False,
            opset_version=OPSET,
            input_names=list(inputs),
            output_names=list(outputs),
            dynamic_axes={name: dict(free) for name, free in axes.items() if free},
        )
        return file.read_bytes()


def _export(
    module: nn.Module, inputs: dict[str, tuple[Tensor, list[int | str]]], outputs: dict[str, list[int | str]]
) -> ExportedGraph:
    axes = {name: _free(shape) for name, (_, shape) in inputs.items()} | {name: _free(s) for name, s in outputs.items()}
    proto = to_onnx(module.eval(), {name: tensor for name, (tensor, _) in inputs.items()}, list(outputs), axes)
    graph = onnx.load_model_from_string(proto).graph
    present = {value.name for value in graph.input}
    unused = [name for name in inputs if name not in present]
    if unused:
        proto = _keep_inputs(proto, inputs, unused)
        graph = onnx.load_model_from_string(proto).graph
    types = {value.name: _ONNX_TYPES[value.type.tensor_type.elem_type] for value in [*graph.input, *graph.output]}
    return ExportedGraph(
        proto,
        [TensorSpec(name, types[name], shape) for name, (_, shape) in inputs.items()],
        [TensorSpec(name, types[name], shape) for name, shape in outputs.items()],
    )


def _free(shape: list[int | str]) -> dict[int, str]:
    return {axis: dim.replace(" ", "_") for axis, dim in enumerate(shape) if isinstance(dim, str)}


def _keep_inputs(proto: bytes, inputs: dict[str, tuple[Tensor, list[int | str]]], unused: list[str]) -> bytes:
    """Declare inputs that the graph happens not to use: the contract is the same for every model."""
    kinds = {torch.float32: onnx.TensorProto.FLOAT, torch.int32: onnx.TensorProto.INT32}
    kinds |= {torch.int64: onnx.TensorProto.INT64, torch.bool: onnx.TensorProto.BOOL}
    model = onnx.load_model_from_string(proto)
    for name in unused:
        tensor, shape = inputs[name]
        model.graph.input.append(onnx.helper.make_tensor_value_info(name, kinds[tensor.dtype], shape))
    proto_with_all: bytes = model.SerializeToString()
    return proto_with_all
