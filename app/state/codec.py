"""Bytes <-> state. A packed state: a 48-byte header, then the model's tensors in manifest order, raw or deflated.

Everything is little-endian and nothing is converted: what the graph wrote comes back bit for bit, NaN payloads included.
The scripts `load.lua` and `commit.lua` read the header where `Header` puts it; change them together and raise FORMAT.

Workers keep states raw. In Redis they are deflated, which halves them (slots that are empty, counts that are small) and the
append-only file with them, for some 70 microseconds a commit.
"""

from __future__ import annotations

import random
import secrets
import struct
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from app.errors import StateFormatError

MAGIC = b"LWST"
FORMAT = 3
EPOCH_BYTES = 8

# magic, format, how the tensors are packed, epoch, base, applied, catalogue version, bytes of the tensors as packed, unknown
# items
_HEADER = struct.Struct("<4sHH8sQQQII")
_RAW, _DEFLATED = 0, 1
_LEVEL = 1  # higher ones take twice the time for a percent
HEADER_BYTES = _HEADER.size
PREFIX = _HEADER.pack(MAGIC, FORMAT, _RAW, bytes(EPOCH_BYTES), 0, 0, 0, 0, 0)[:6]
"""How every state of this format begins; a blob that begins otherwise is not continued but rebuilt."""

# Epochs must differ, not be secret: a generator of our own spares a system call for each event.
_random = random.Random(secrets.token_bytes(32))


def new_epoch() -> bytes:
    """What names a sequence that is written anew."""
    return _random.randbytes(EPOCH_BYTES)


class Header(msgspec.Struct, frozen=True):
    """Which fold a state is: of the events [base, applied) of the user's sequence `epoch`, at a catalogue version.

    Events are counted from 0, the first one the user ever had in this epoch. `epoch` has 8 bytes. `unknown` has 32 bits that
    stand for the items that were not known at that version (`app.catalogue.catalogue.unknown_bits`).
    """

    epoch: bytes
    base: int
    applied: int
    catalogue_version: int
    unknown: int = 0


class TensorSpec(Protocol):
    """One state tensor as the bundle's manifest describes it: `shape` is that of one user, `dtype` a numpy name."""

    @property
    def name(self) -> str: ...

    @property
    def dtype(self) -> str: ...

    @property
    def shape(self) -> Sequence[int]: ...


class StateCodec:
    """Packs and unpacks the states of one model.

    `state` are the manifest's state tensors, in its order. Arrays are those of one user; in the batch forms (B, ...), of B users.
    """

    def __init__(self, state: Sequence[TensorSpec]) -> None:
        # Same bytes as the manifest's dtype on the little-endian machines that onnxruntime supports, explicit on any other.
        self._dtype = np.dtype([(t.name, np.dtype(t.dtype).newbyteorder("<"), tuple(t.shape)) for t in state])
        self._fields = [(t.name, np.dtype(t.dtype), tuple(t.shape)) for t in state]
        self._with_header = np.dtype([("header", np.void, HEADER_BYTES), ("state", self._dtype)])
        offsets = np.cumsum([0, *(self._dtype[name].itemsize for name, _, _ in self._fields)])
        of_fields = zip(self._fields, offsets.tolist(), strict=False)
        self._unaligned = {name for (name, dtype, _), offset in of_fields if offset % dtype.itemsize}
        self.size = HEADER_BYTES + self._dtype.itemsize
        """Bytes of one raw state, header included; the same for every user."""

    def pack(self, header: Header, state: Mapping[str, NDArray[Any]]) -> bytes:
        """One user's state as bytes.

        Raises:
            StateFormatError: a tensor is missing, or has another shape or dtype than the manifest says.
        """
        return self.pack_many([header], {name: array[np.newaxis] for name, array in state.items()})[0]

    def pack_many(self, headers: Sequence[Header], state: Mapping[str, NDArray[Any]]) -> list[bytes]:
        """The states of B users, tensors (B, ...), as B blobs. Raises StateFormatError like `pack`."""
        rows = self.empty(len(headers))
        self.write(rows, state)
        return self.seal(headers, rows)

    def empty(self, users: int) -> NDArray[np.void]:
        """Room for the states of some users, to be written and then sealed."""
        return np.empty(users, self._with_header)

    def write(self, rows: NDArray[np.void], state: Mapping[str, NDArray[Any]]) -> None:
        """Put the tensors (B, ...) of B users into their rows. Raises StateFormatError like `pack`."""
        tensors = rows["state"]
        for name, dtype, shape in self._fields:
            array = state.get(name)
            expected = (len(rows), *shape)
            if array is None:
                raise StateFormatError(f"state tensor {name!r} is missing")
            if array.shape != expected or array.dtype != dtype:
                raise StateFormatError(f"state tensor {name!r} is {array.dtype} {array.shape}, expected {dtype} {expected}")
            tensors[name] = array

    def seal(self, headers: Sequence[Header], rows: NDArray[np.void]) -> list[bytes]:
        """Rows that were written, as blobs with these headers."""
        packed = [_pack_header(header, self._dtype.itemsize) for header in headers]
        rows["header"] = np.frombuffer(b"".join(packed), self._with_header["header"])
        return [row.tobytes() for row in rows]

    def unpack(self, blob: bytes) -> tuple[Header, dict[str, NDArray[Any]]]:
        """Header and tensors of one user. Raises StateFormatError like `unpack_many`."""
        (header,), state = self.unpack_many([blob])
        return header, {name: array[0] for name, array in state.items()}

    def read_many(self, blobs: Sequence[bytes], names: Sequence[str]) -> dict[str, NDArray[Any]]:
        """Some of the tensors (B, ...) of B raw states, to be read alone: they may lie in the blobs themselves, and those of one
        state are contiguous there.

        Raises:
            StateFormatError: a blob has another size, magic or format.
        """
        for blob in blobs:
            if len(blob) != self.size or not blob.startswith(PREFIX):
                self.unpack(blob)  # says what is wrong with it
        if len(blobs) == 1:
            rows = np.frombuffer(blobs[0], self._dtype, 1, HEADER_BYTES)
        else:
            rows = np.frombuffer(b"".join(blobs), self._with_header)["state"]
        return {name: rows[name].copy() if name in self._unaligned else rows[name] for name in names}

    def unpack_many(self, blobs: Sequence[bytes]) -> tuple[list[Header], dict[str, NDArray[Any]]]:
        """Headers and tensors (B, ...) of B raw states; the arrays are contiguous and writable.

        Raises:
            StateFormatError: a blob has another size, magic or format, or is deflated; `detail` says which.
        """
        headers = []
        for blob in blobs:
            headers.append(peek(blob))
            if len(blob) != self.size:
                raise StateFormatError(f"state has {len(blob)} bytes, this model's have {self.size}")
        rows = np.frombuffer(b"".join(blob[HEADER_BYTES:] for blob in blobs), self._dtype)
        return headers, {name: np.array(rows[name], dtype=dtype, order="C") for name, dtype, _ in self._fields}


def peek(blob: bytes) -> Header:
    """The header alone, without knowing the model. Raises StateFormatError for another magic or format."""
    if len(blob) < HEADER_BYTES:
        raise StateFormatError(f"state has {len(blob)} bytes, its header alone takes {HEADER_BYTES}")
    magic, version, _, epoch, base, applied, catalogue_version, _, unknown = _HEADER.unpack_from(blob)
    if magic != MAGIC:
        raise StateFormatError(f"not a state: begins with {magic!r}, expected {MAGIC!r}")
    if version != FORMAT:
        raise StateFormatError(f"state has format {version}, this version reads {FORMAT}")
    return Header(epoch, base, applied, catalogue_version, unknown)


def deflate(blob: bytes) -> bytes:
    """A raw state as it is stored."""
    body = zlib.compress(blob[HEADER_BYTES:], _LEVEL)
    fields = list(_HEADER.unpack_from(blob))
    fields[2], fields[7] = _DEFLATED, len(body)
    return _HEADER.pack(*fields) + body


def inflate(blob: bytes, size: int) -> bytes:
    """A stored state as a raw one of `size` bytes; one that was stored raw comes back as it is.

    Raises:
        StateFormatError: it is damaged, or has another size.
    """
    peek(blob)
    fields = list(_HEADER.unpack_from(blob))
    if fields[2] == _DEFLATED:
        unpacker = zlib.decompressobj()
        try:
            body = unpacker.decompress(blob[HEADER_BYTES:], size)  # bounded: what is damaged must not fill the memory
        except zlib.error as error:
            raise StateFormatError(f"state cannot be inflated: {error}") from None
        if not unpacker.eof:
            raise StateFormatError("state cannot be inflated: it is cut short, or longer than this model's")
        fields[2], fields[7] = _RAW, len(body)
        blob = _HEADER.pack(*fields) + body
    if len(blob) != size:
        raise StateFormatError(f"state has {len(blob)} bytes, this model's have {size}")
    return blob


def _pack_header(header: Header, body_bytes: int) -> bytes:
    if len(header.epoch) != EPOCH_BYTES:
        raise StateFormatError(f"epoch has {len(header.epoch)} bytes, expected {EPOCH_BYTES}")
    counted = (header.base, header.applied, header.catalogue_version)
    return _HEADER.pack(MAGIC, FORMAT, _RAW, header.epoch, *counted, body_bytes, header.unknown)
