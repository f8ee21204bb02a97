from __future__ import annotations

import struct
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.errors import StateFormatError
from app.runtime.manifest import StateTensor
from app.state.codec import HEADER_BYTES, Header, StateCodec, deflate, inflate, peek

TENSORS = [
    StateTensor(name="h", dtype="float32", shape=[2, 3]),
    StateTensor(name="ring_time", dtype="int32", shape=[5]),
    StateTensor(name="repeat_key", dtype="int64", shape=[4]),
    StateTensor(name="flag", dtype="bool", shape=[3]),
    StateTensor(name="clock", dtype="int64", shape=[1]),
]
CODEC = StateCodec(TENSORS)
HEADER = Header(epoch=b"\x00\xff12345\x00", base=7, applied=2**40 + 1, catalogue_version=2**64 - 1)

u64 = st.integers(0, 2**64 - 1)
headers = st.builds(Header, st.binary(min_size=8, max_size=8), u64, u64, u64, st.integers(0, 2**32 - 1))


def arrays(seed: int, users: int) -> dict[str, np.ndarray]:
    """Random bits, not random numbers: NaNs with payloads, infinities and denormals come up by themselves."""
    rng = np.random.default_rng(seed)
    made = {}
    for tensor in TENSORS:
        shape = (users, *tensor.shape)
        if tensor.dtype == "bool":
            made[tensor.name] = rng.integers(0, 2, shape).astype(bool)
        else:
            size = int(np.prod(shape)) * np.dtype(tensor.dtype).itemsize
            made[tensor.name] = np.frombuffer(rng.bytes(size), tensor.dtype).reshape(shape).copy()
    return made


@given(headers, st.integers(0, 2**32))
def test_a_state_comes_back_bit_for_bit(header: Header, seed: int):
    state = {name: array[0] for name, array in arrays(seed, 1).items()}
    back_header, back = CODEC.unpack(CODEC.pack(header, state))
    assert back_header == header
    assert list(back) == [tensor.name for tensor in TENSORS]
    for name, array in state.items():
        assert back[name].dtype == array.dtype
        assert back[name].shape == array.shape
        assert back[name].tobytes() == array.tobytes()  # bytes: NaN != NaN


def test_nan_payloads_and_infinities_survive():
    bits = np.array([0x7FC00001, 0xFFFFFFFF, 0x7F800001, 0x7F800000, 0xFF800000, 0x80000000], np.uint32)
    state = {name: array[0] for name, array in arrays(0, 1).items()} | {"h": bits.view(np.float32).reshape(2, 3)}
    _, back = CODEC.unpack(CODEC.pack(HEADER, state))
    assert back["h"].view(np.uint32).ravel().tolist() == bits.tolist()


@given(st.lists(headers, min_size=1, max_size=4), st.integers(0, 2**32))
def test_many_users_at_once_are_each_user_alone(many: list[Header], seed: int):
    state = arrays(seed, len(many))
    blobs = CODEC.pack_many(many, state)
    assert blobs == [CODEC.pack(header, {n: a[i] for n, a in state.items()}) for i, header in enumerate(many)]
    back_headers, back = CODEC.unpack_many(blobs)
    assert back_headers == many
    assert all(back[name].tobytes() == state[name].tobytes() for name in state)


def test_no_users_make_arrays_of_no_rows():
    assert CODEC.unpack_many([])[1]["h"].shape == (0, 2, 3)
    assert CODEC.pack_many([], arrays(0, 0)) == []


def test_unpacked_arrays_can_be_written_and_fed_to_onnxruntime():
    _, back = CODEC.unpack_many(CODEC.pack_many([HEADER], arrays(1, 1)))
    assert all(array.flags.writeable and array.flags.c_contiguous and array.dtype.isnative for array in back.values())


@pytest.mark.parametrize("users", [1, 3])
def test_what_is_read_is_what_is_unpacked_and_fit_for_onnxruntime(users: int):
    blobs = CODEC.pack_many([HEADER] * users, arrays(8, users))
    names = ["clock", "h", "repeat_key"]  # of these the clock lies behind three bytes, where no int64 should be read
    found, expected = CODEC.read_many(blobs, names), CODEC.unpack_many(blobs)[1]
    assert list(found) == names
    for name, array in found.items():
        assert (array.dtype, array.shape) == (expected[name].dtype, expected[name].shape)
        assert array.tobytes() == expected[name].tobytes()
        assert array.flags.aligned or users > 1  # what is not contiguous is copied anyhow
    assert users > 1 or all(array.flags.c_contiguous for array in found.values())


def test_one_state_is_read_where_it_lies():
    (blob,) = CODEC.pack_many([HEADER], arrays(8, 1))
    found = CODEC.read_many([blob], ["h"])["h"]
    assert np.shares_memory(found, np.frombuffer(blob, np.uint8))


@pytest.mark.parametrize("others", [0, 2])
def test_what_is_no_state_of_this_model_is_not_read(others: int):
    *good, bad = CODEC.pack_many([HEADER] * (others + 1), arrays(5, others + 1))
    for broken in (bad[:-1], b"LWSX" + bad[4:], bad[:4] + b"\x63" + bad[5:]):
        with pytest.raises(StateFormatError):
            CODEC.read_many([*good, broken], ["h"])


def test_rows_that_are_written_in_parts_are_the_states_of_all():
    state, many = arrays(9, 5), [Header(bytes([user] * 8), user, 2 * user, 3) for user in range(5)]
    rows = CODEC.empty(5)
    for first, last in ((3, 5), (0, 1), (0, 3)):  # what was written is written over
        CODEC.write(rows[first:last], {name: array[first:last] for name, array in state.items()})
    assert CODEC.seal(many, rows) == CODEC.pack_many(many, state)
    assert [peek(blob) for blob in CODEC.seal(many, rows)] == many


def test_bytes_are_the_documented_layout():
    blob = CODEC.pack(HEADER, {name: array[0] for name, array in arrays(2, 1).items()})
    magic, version, _, epoch, base, applied, catalogue = struct.unpack_from("<4sHH8sQQQ", blob)
    assert (magic, version, epoch, base, applied, catalogue) == (b"LWST", 3, HEADER.epoch, 7, 2**40 + 1, 2**64 - 1)
    assert HEADER_BYTES == 48
    assert struct.unpack_from("<I", blob, 40) == (len(blob) - 48,)
    assert blob[48 : 48 + 24] == arrays(2, 1)["h"].astype("<f4").tobytes()  # manifest order, no padding
    assert len(blob) == CODEC.size == 48 + 24 + 20 + 32 + 3 + 8


@pytest.mark.parametrize("extra", [-1, 1])
def test_a_state_of_another_size_is_refused(extra: int):
    blob = CODEC.pack(HEADER, {name: array[0] for name, array in arrays(3, 1).items()})
    with pytest.raises(StateFormatError, match=f"{len(blob) + extra} bytes.*{len(blob)}"):
        CODEC.unpack((blob + b"x")[: len(blob) + extra])


def test_another_magic_or_format_is_refused_even_by_peek():
    blob = CODEC.pack(HEADER, {name: array[0] for name, array in arrays(4, 1).items()})
    assert peek(blob) == HEADER
    with pytest.raises(StateFormatError, match="LWST"):
        peek(b"X" + blob[1:])
    with pytest.raises(StateFormatError, match="format 4"):
        peek(blob[:4] + b"\x04\x00" + blob[6:])
    with pytest.raises(StateFormatError, match="47 bytes"):
        peek(blob[:47])


@given(headers, st.integers(0, 2**32))
def test_a_deflated_state_comes_back_bit_for_bit_with_its_header_readable(header: Header, seed: int):
    blob = CODEC.pack(header, {name: array[0] for name, array in arrays(seed, 1).items()})
    stored = deflate(blob)
    assert peek(stored) == header
    assert struct.unpack_from("<I", stored, 40) == (len(stored) - HEADER_BYTES,)
    assert inflate(stored, CODEC.size) == blob
    assert inflate(blob, CODEC.size) == blob  # one that was stored raw


@pytest.mark.parametrize(
    "spoil", [lambda s: s[:-1], lambda s: s[:51], lambda s: s[:50] + b"???" + s[53:], lambda s: s[:40], lambda s: b""]
)
def test_a_damaged_deflated_state_is_refused(spoil):
    zeros = {name: np.zeros_like(array[0]) for name, array in arrays(0, 1).items()}
    stored = deflate(CODEC.pack(HEADER, zeros))
    assert len(stored) < CODEC.size
    with pytest.raises(StateFormatError):
        inflate(spoil(stored), CODEC.size)


def test_what_inflates_to_more_than_a_state_is_refused_and_not_kept_in_memory():
    bomb = zlib.compress(bytes(10**8))
    blob = CODEC.pack(HEADER, {name: array[0] for name, array in arrays(1, 1).items()})
    with pytest.raises(StateFormatError):
        inflate(deflate(blob)[:HEADER_BYTES] + bomb, CODEC.size)


def test_one_bad_state_among_good_ones_is_refused():
    good, bad = CODEC.pack_many([HEADER, HEADER], arrays(5, 2))
    with pytest.raises(StateFormatError):
        CODEC.unpack_many([good, bad[:-1]])


def test_tensors_that_are_not_the_models_are_refused_by_name():
    state = arrays(6, 1)
    missing = {name: array for name, array in state.items() if name != "clock"}
    with pytest.raises(StateFormatError, match="'clock' is missing"):
        CODEC.pack_many([HEADER], missing)
    with pytest.raises(StateFormatError, match=r"'h' is float64 \(1, 2, 3\), expected float32"):
        CODEC.pack_many([HEADER], state | {"h": state["h"].astype(np.float64)})
    with pytest.raises(StateFormatError, match=r"'h'.*\(1, 3, 2\)"):
        CODEC.pack_many([HEADER], state | {"h": state["h"].reshape(1, 3, 2)})


def test_an_epoch_has_eight_bytes():
    with pytest.raises(StateFormatError, match="epoch"):
        CODEC.pack_many([Header(b"short", 0, 0, 0)], arrays(7, 1))
