"""What a model reads of an item in numbers."""

import struct

import numpy as np
import pytest

from app.recommend.dense import pack, unpack


def test_numbers_come_back_with_as_few_digits_as_they_were_given_and_as_the_very_same_float32():
    assert unpack(pack([0.1, -0.2, 0.0, 1, 123456.7, 1e15, -1e15, 3e-5])) == [0.1, -0.2, 0.0, 1.0, 123456.7, 1e15, -1e15, 3e-5]
    rng = np.random.default_rng(0)
    many = (rng.normal(size=4_000) * 10.0 ** rng.integers(-44, 15, 4_000)).astype(np.float32)
    with np.errstate(under="ignore"):
        assert pack(unpack(many.tobytes())) == many.tobytes()


@pytest.mark.parametrize("number", [1.4e-45, 1e-40, 3.4028235e38, -1.17549435e-38])
def test_the_smallest_and_the_largest_come_back(number):
    packed = struct.pack("<f", number)
    assert pack(unpack(packed)) == packed
