"""Item vectors of 8 bits: how far they are from what was learned, and that both halves multiply them out alike."""

import numpy as np
import pytest
import torch

from model.vectors import VectorError, as_stored, rounded


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


@pytest.mark.parametrize("number", [0.0, 1e-45])
def test_a_row_without_a_scale_is_zeros(number):
    stored = as_stored(torch.tensor([[number, -number], [1.0, 2.0]]), "int8")
    assert stored[0].tolist() == [0.0, 0.0]
    assert stored[1, 1] == 2.0


def test_float_vectors_stay_as_they_are_and_other_ways_are_refused(vectors):
    assert as_stored(vectors, "float32") is vectors
    with pytest.raises(VectorError, match="float32 or int8, not as 'int4'"):
        as_stored(vectors, "int4")
