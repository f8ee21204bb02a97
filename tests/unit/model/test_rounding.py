"""Numbers of 8 bits: how far they are from what was learned, and that everyone multiplies them out alike."""

from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch

from model.checkpoint import load_checkpoint
from model.export.golden import golden_vectors
from model.export.graphs import export_graphs
from model.export.narrow import narrow
from model.export.verify import Graphs
from model.loop import CHECKPOINT
from model.rounding import RoundingError, as_stored, rounded, with_stored_weights


@pytest.fixture
def vectors():
    spread = torch.logspace(-6, 6, 200)[:, None]
    return torch.randn(200, 24, generator=torch.Generator().manual_seed(0)) * spread


def test_every_number_is_within_half_a_step_of_its_own_row(vectors):
    codes, scales = rounded(vectors)
    assert codes.dtype == torch.int8
    assert (codes.abs().amax(1) == 127).all()  # the whole range is used, in small rows as in large ones
    assert ((as_stored(vectors, "int8") - vectors).abs() <= 0.5001 * scales[:, None]).all()


def test_numpy_multiplies_them_out_to_the_same_bits(vectors):
    codes, scales = (tensor.numpy() for tensor in rounded(vectors))
    numpy = np.multiply(codes, scales[:, None], dtype=np.float32)
    assert numpy.tobytes() == as_stored(vectors, "int8").numpy().tobytes()


def test_rounding_what_is_rounded_changes_nothing(vectors):
    once = rounded(vectors)
    again = rounded(once.rows())
    assert torch.equal(once.codes, again.codes)
    assert torch.equal(once.scales, again.scales)
    # Because a code times its scale is exact.
    assert torch.equal(once.rows().double(), once.codes.double() * once.scales.double()[:, None])


@pytest.mark.parametrize("number", [0.0, 1e-45])
def test_a_row_of_next_to_nothing_is_zeros(number):
    stored = as_stored(torch.tensor([[number, -number], [1.0, 2.0]]), "int8")
    assert stored[0].tolist() == [0.0, 0.0]
    assert stored[1].tolist() == pytest.approx([1.0, 2.0], rel=0.01)


def test_float_vectors_stay_as_they_are_and_other_ways_are_refused(vectors):
    assert as_stored(vectors, "float32") is vectors
    with pytest.raises(RoundingError, match="float32 or int8, not as 'int4'"):
        as_stored(vectors, "int4")


def test_a_graph_that_stores_codes_gives_the_same_bits_in_half_of_the_size(tiny_run):
    net = with_stored_weights(load_checkpoint(tiny_run.run / CHECKPOINT).net, "int8")
    with torch.no_grad():
        matrix, bias = torch.randn(30, net.config.item_width), torch.zeros(30)
        graphs = export_graphs(net)
        golden = golden_vectors(net, matrix, bias, graphs)
    narrowed = {name: replace(graph, proto=narrow(graph.proto)) for name, graph in graphs.items()}
    wide, slim = Graphs(graphs), Graphs(narrowed)
    for name in graphs:
        feeds = {tensor.name: golden[f"{name}/in/{tensor.name}"] for tensor in graphs[name].inputs}
        for one, other in zip(wide.run(name, feeds).values(), slim.run(name, feeds).values(), strict=True):
            assert one.tobytes() == other.tobytes(), name
    for name in ("step", "encode"):  # the matrices of the tiny net's readout are too small to be worth it
        kept = [len(tensor.raw_data) for tensor in onnx.load_model_from_string(narrowed[name].proto).graph.initializer]
        before = [len(tensor.raw_data) for tensor in onnx.load_model_from_string(graphs[name].proto).graph.initializer]
        assert sum(kept) < 0.5 * sum(before), name


def test_a_net_that_was_not_rounded_is_left_as_it_is(tiny_run):
    net = load_checkpoint(tiny_run.run / CHECKPOINT).net
    net.leaning.reading.normal_()  # zeros, as long as it has not been fitted, are as good as rounded
    proto = export_graphs(net)["step"].proto
    kept = onnx.load_model_from_string(narrow(proto)).graph.initializer
    assert not any(tensor.data_type == onnx.TensorProto.INT8 for tensor in kept)
