"""States from events, many users at once. Pure arithmetic: no storage, no clock."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from app.catalogue.catalogue import Catalogue
from app.errors import StateFormatError
from app.fold.tensors import EventTensors
from app.runtime.manifest import Manifest
from app.runtime.session import Array, Runtime
from app.state.codec import Header, StateCodec, inflate, peek
from app.state.events import StoredEvent

CHUNK = 512  # events per row of one encode call; longer tails carry the state over
_POSITIONS = 16_384  # rows x events of one encode call, which bounds its memory


@dataclass(frozen=True, slots=True)
class Unfolded:
    """A user's state and the events that it does not cover.

    Attributes:
        state: packed, raw, or None for a fold that starts with `tail`.
        start: index of the first event of `tail`, 0 being the user's first event ever.
    """

    epoch: bytes
    attributes: Mapping[str, str]
    state: bytes | None
    tail: Sequence[StoredEvent]
    start: int


class Fold:
    """Brings users up to date with their tails: step.onnx for one event, encode.onnx for more.

    Events of a type that this model does not know (kept from an older model, or declared later) are not told to the model, but
    they count as applied: the state is the fold of the sequence as this model can read it, and a rebuild skips the same ones.
    """

    def __init__(self, runtime: Runtime, catalogue: Catalogue, codec: StateCodec, tensors: EventTensors) -> None:
        self._runtime = runtime
        self._catalogue = catalogue
        self._codec = codec
        self._tensors = tensors
        manifest: Manifest = runtime.bundle.manifest
        self._names = [tensor.name for tensor in manifest.state]
        self._attributes = [
            (attribute.name, {value: index for index, value in enumerate(attribute.values, start=1)})
            for attribute in manifest.user_attributes
        ]

    def restore(self, stored: bytes, epoch: bytes, applied: int) -> bytes | None:
        """A state as Redis has it, ready to be folded on; None if it is not this model's, or not of so many events."""
        try:
            blob = inflate(stored, self._codec.size)
        except StateFormatError:
            return None
        header = peek(blob)
        return blob if header.epoch == epoch and header.applied == applied else None

    def __call__(self, users: Sequence[Unfolded]) -> list[tuple[Header, bytes]]:
        """The states after the tails, packed; every state given is raw, of this model.

        The result for a user depends on that user alone (to float noise), whoever else is in the batch.
        """
        headers, state = self._start(users)
        tails = [[event for event in user.tail if self._tensors.knows(event)] for user in users]
        # Before anything is folded: what becomes known meanwhile counts as unknown, and is folded anew. The version first.
        version = self._catalogue.version
        unknown = [self._tensors.unknown(tail) for tail in tails]
        for rows, chunks in _plan(tails):
            whole = len(rows) == len(users)  # then rows are all rows in order, and nothing needs copying
            feeds = state if whole else {name: state[name][rows] for name in self._names}
            if len(chunks[0]) == 1:
                after = self._runtime.step(feeds | self._tensors.step([chunk[0] for chunk in chunks]))
            else:
                after = self._runtime.encode(feeds | self._tensors.encode(chunks))
            if whole:
                state = {name: after[name + "_out"] for name in self._names}
            else:
                for name in self._names:
                    state[name][rows] = after[name + "_out"]
        headers = [_after(header, user, version, of_tail) for header, user, of_tail in zip(headers, users, unknown, strict=True)]
        return list(zip(headers, self._codec.pack_many(headers, state), strict=True))

    def is_outdated(self, header: Header) -> bool:
        """Whether the state was folded with an item as unknown that is known by now."""
        return header.unknown != 0 and self._catalogue.arrived(header.unknown, header.catalogue_version)

    def tensors(self, blobs: Sequence[bytes]) -> dict[str, Array]:
        """The tensors (B, ...) of B packed states, as the graphs take them."""
        return self._codec.unpack_many(blobs)[1]

    def read(self, blobs: Sequence[bytes], names: Sequence[str]) -> dict[str, Array]:
        """Some of them, not copied where that can be helped; not to be written to."""
        return self._codec.read_many(blobs, names)

    def _start(self, users: Sequence[Unfolded]) -> tuple[list[Header], dict[str, Array]]:
        """Headers and (U, ...) tensors before the tails: unpacked where there is a state, initial where not."""
        blobs = [user.state for user in users if user.state is not None]
        if len(blobs) == len(users):
            return self._codec.unpack_many(blobs)
        attributes = np.asarray([self._attribute_row(user.attributes) for user in users], np.int64)
        initial = self._runtime.initial({"attributes": attributes.reshape(len(users), len(self._attributes))})
        state = {name: initial[name + "_out"] for name in self._names}
        headers = [Header(user.epoch, user.start, user.start, self._catalogue.version) for user in users]
        if blobs:
            rows = [row for row, user in enumerate(users) if user.state is not None]
            found, tensors = self._codec.unpack_many(blobs)
            for row, header in zip(rows, found, strict=True):
                headers[row] = header
            for name in self._names:
                state[name][rows] = tensors[name]
        return headers, state

    def _attribute_row(self, attributes: Mapping[str, str]) -> list[int]:
        return [values.get(attributes.get(name, ""), 0) for name, values in self._attributes]


def _after(before: Header, user: Unfolded, version: int, unknown: int) -> Header:
    """The header after a tail: its catalogue version is the oldest one at which an item was not known."""
    if before.unknown and (not unknown or before.catalogue_version < version):
        version = before.catalogue_version
    return Header(before.epoch, before.base, user.start + len(user.tail), version, before.unknown | unknown)


def _plan(tails: Sequence[Sequence[StoredEvent]]) -> Iterator[tuple[list[int], list[Sequence[StoredEvent]]]]:
    """Cut tails into calls: (rows, their next chunks), a row's chunks in order, rows ascending within a call.

    Rows share a call when their chunks' lengths lie within a factor of two, so less than half of it is padding.
    """
    position = [0] * len(tails)
    while True:
        groups: dict[int, list[int]] = {}
        for row, tail in enumerate(tails):
            if remaining := min(len(tail) - position[row], CHUNK):
                groups.setdefault((remaining - 1).bit_length(), []).append(row)
        if not groups:
            return
        for size, group in groups.items():
            most = max(1, _POSITIONS >> size)
            for start in range(0, len(group), most):
                rows = group[start : start + most]
                yield rows, [tails[row][position[row] : position[row] + CHUNK] for row in rows]
                for row in rows:
                    position[row] += min(len(tails[row]) - position[row], CHUNK)
