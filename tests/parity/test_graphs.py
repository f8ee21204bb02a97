"""What the exported graphs are made of, for models of every kind; and how many bytes a state takes."""

import numpy as np
import onnx
import pytest
import torch
from folds import initial, some_events
from hypothesis import given, settings
from hypothesis import strategies as st

from app.state.codec import HEADER_BYTES
from model.export.golden import golden_vectors
from model.export.graphs import export_graphs, to_onnx
from model.export.verify import Graphs, verify
from model.nets import Longwave, ModelConfig
from model.nets.integers import at_least, at_most, maximum
from model.settings import load_settings

WRONG_ON_INT64 = {"Max", "Min", "Clip", "Sign"}
SMALL = {"width": 8, "heads": 2, "ring": 4, "ring_width": 4, "accumulator_width": 4, "repeat_hidden": 4}
KINDS = {
    "everything": {
        "text_width": 5,
        "feature_width": 3,
        "attribute_sizes": (3, 1),
        "platforms": 2,
        "repeats": 6,
        "interests": 3,
        "number_edges": ((1.0, 3.0), (2.0,), ()),
    },
    "nothing": {"repeats": 0, "query_time": False},
}


@pytest.fixture(scope="module", params=KINDS)
def made(request):
    """An untrained net of each kind, its items, and its graphs. Weights that begin at zero are moved off it."""
    torch.manual_seed(1)
    net = Longwave(ModelConfig(items=30, event_types=3, type_weights=(1.0, 0.2, -1.0), **SMALL, **KINDS[request.param])).eval()
    for parameter in net.requires_grad_(False).parameters():
        parameter += 0.05 * torch.randn_like(parameter)
    config = net.config
    text = torch.randn(30, config.text_width) if config.text_width else None
    features = torch.randn(30, config.feature_width) if config.feature_width else None
    return net, *net.item(text, features), export_graphs(net)


def test_graphs_of_every_kind_of_model_agree_with_the_net(made):
    net, matrix, bias, graphs = made
    proof = verify(net, graphs, golden_vectors(net, matrix, bias, graphs), [some_events(net, 1, 700, matrix)], matrix, bias)
    assert proof.vectors >= 700


def test_attributes_set_the_initial_state_and_content_gives_an_unseen_item_its_vector(made):
    net, _, _, graphs = made
    run = Graphs(graphs)
    if not net.config.attribute_sizes:
        assert "item" not in graphs
        assert (initial(net, 2)["h"] == 0).all()
        return
    found = run.run("initial", {"attributes": np.array([[0, 0], [1, 1], [2, 0], [3, 1]])})
    assert np.abs(found["h_out"] - initial(net, 4)["h"].numpy()).max() <= 1e-6
    assert len({row.tobytes() for row in found["h_out"]}) == 4
    text, features = torch.randn(3, 5), torch.randn(3, 3)
    vector, bias = net.item.unseen(text, features)
    item = run.run("item", {"text": text.numpy(), "features": features.numpy()})
    assert np.abs(item["vector"] - vector.numpy()).max() <= 1e-5
    assert np.abs(item["bias"] - bias.numpy()).max() <= 1e-6


def test_no_graph_has_an_operator_that_is_wrong_on_int64(made):
    *_, graphs = made
    assert {name: wrong_operators(graph.proto) for name, graph in graphs.items()} == {name: [] for name in graphs}


def test_the_check_for_wrong_operators_finds_them_in_loops_too():
    class Naive(torch.nn.Module):
        def forward(self, x):
            return loop(x) + x.clamp(min=0) + torch.sign(x)

    proto = to_onnx(Naive(), {"x": torch.tensor([3, 4])}, ["y"], {"x": {0: "N"}})
    assert {node.split()[0] for node in wrong_operators(proto)} >= {"Max", "Sign"}
    assert any("loop" in node for node in wrong_operators(proto))


@torch.jit.script
def loop(x: torch.Tensor) -> torch.Tensor:
    y = x
    for _ in range(x.shape[0]):
        y = torch.maximum(y, x * 2)
    return y


def wrong_operators(proto: bytes) -> list[str]:
    """The nodes of a model that take int64 (or a type that cannot be told) where ONNX Runtime is not to be trusted with it."""
    model = onnx.shape_inference.infer_shapes(onnx.load_model_from_string(proto))
    return _wrong(model.graph, {}, "")


def _wrong(graph, outer, where):
    values = [*graph.input, *graph.output, *graph.value_info]
    types = outer | {value.name: value.type.tensor_type.elem_type for value in values}
    types |= {tensor.name: tensor.data_type for tensor in graph.initializer}
    found = []
    for node in graph.node:
        if node.op_type == "Constant":
            types[node.output[0]] = next((a.t.data_type for a in node.attribute if a.name == "value"), 0)
        if node.op_type in WRONG_ON_INT64:
            kinds = [types.get(name, 0) for name in node.input if name]
            if not set(kinds) & {onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE, onnx.TensorProto.INT32}:
                found.append(f"{node.op_type} {node.name}{where}")
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                found += _wrong(attribute.g, types, f"{where} in a loop or branch")
    return found


@given(st.integers(1, 300), st.integers(0, 2**32))
@settings(max_examples=20, deadline=None)
def test_maximum_and_clipping_of_times_are_exact_in_onnx(integer_graph, size, seed):
    rng = np.random.default_rng(seed)
    a, b = 1_300_000_000_000 + rng.integers(0, 10**11, (2, size))
    low, high = integer_graph.run(None, {"a": a, "b": b})[1:]
    assert np.array_equal(integer_graph.run(None, {"a": a, "b": b})[0], np.maximum(a, b))
    assert np.array_equal(low, np.maximum(a - b, 0))
    assert np.array_equal(high, np.minimum(a - b, 2**31 - 1))


@pytest.fixture(scope="module")
def integer_graph():
    import onnxruntime as ort

    class Integers(torch.nn.Module):
        def forward(self, a, b):
            return maximum(a, b), at_least(a - b, 0), at_most(a - b, 2**31 - 1)

    inputs = {"a": torch.tensor([1, 2]), "b": torch.tensor([2, 1])}
    axes = {name: {0: "N"} for name in ("a", "b", "maximum", "low", "high")}
    proto = to_onnx(Integers(), inputs, ["maximum", "low", "high"], axes)
    return ort.InferenceSession(proto, providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("preset", ["cold", "demo", "planted", "small", "sparse"])
def test_a_stored_state_of_a_preset_takes_at_most_16_kib(preset):
    net = Longwave(
        ModelConfig(items=10, event_types=3, platforms=2, type_weights=(1.0, 1.0, -1.0), **load_settings(preset).model)
    )
    size = sum(int(np.prod(shape)) * dtype.itemsize for shape, dtype in net.state_shapes().values())
    assert 1024 < size + HEADER_BYTES <= 16 * 1024


def test_a_stored_state_takes_as_many_bytes_as_its_tensors_say(trained, codec):
    shapes = trained.net.state_shapes().values()
    assert codec.size == HEADER_BYTES + sum(int(np.prod(shape)) * dtype.itemsize for shape, dtype in shapes)
