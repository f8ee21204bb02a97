"""Graphs whose weights take 8 bits each: matrices that were rounded are stored as codes, and multiplied out by the graph itself.

ONNX Runtime does that once, when it opens the graph, so a call costs what it did and gives the same bits.
"""

from __future__ import annotations

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper

from model.rounding import rounded

SMALLEST = 256
"""Matrices of fewer numbers stay as they are: the nodes that multiply them out would take more."""


def narrow(proto: bytes) -> bytes:
    """A graph of a net `with_stored_weights(..., "int8")`; what is not exactly codes times scales in it stays float32."""
    model = onnx.load_model_from_string(proto)
    nodes, tensors = [], []
    for tensor in model.graph.initializer:
        found = _codes(numpy_helper.to_array(tensor))
        if found is None:
            tensors.append(tensor)
            continue
        name = tensor.name
        codes, scales, wide = f"{name}.codes", f"{name}.scales", f"{name}.wide"
        tensors += [numpy_helper.from_array(found[0], codes), numpy_helper.from_array(found[1], scales)]
        nodes += [
            helper.make_node("Cast", [codes], [wide], to=onnx.TensorProto.FLOAT),
            helper.make_node("Mul", [wide, scales], [name]),
        ]
    nodes += model.graph.node
    del model.graph.initializer[:], model.graph.node[:]
    model.graph.initializer.extend(tensors)
    model.graph.node.extend(nodes)
    narrowed: bytes = model.SerializeToString()
    return narrowed


def _codes(array: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """int8 codes of the array's shape, and float32 scales that broadcast to it; None where they would not give it exactly.

    The exporter leaves a matrix as it is or transposes it, so what was a row is the last dimension or the one before.
    """
    if array.dtype != np.float32 or array.ndim < 2 or array.size < SMALLEST:
        return None
    for axis in (-1, -2):
        moved = np.swapaxes(array, axis, -1)
        codes, scales = (each.numpy() for each in rounded(torch.tensor(moved.reshape(-1, moved.shape[-1]))))
        if np.array_equal(codes * scales[:, None], moved.reshape(codes.shape)):
            parts = codes.reshape(moved.shape), scales.reshape(*moved.shape[:-1], 1)
            first, second = (np.ascontiguousarray(np.swapaxes(part, axis, -1)) for part in parts)
            return first, second
    return None
