"""States from events, many users at once. Pure arithmetic: no storage, no clock."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from app.catalogue.catalogue import Catalogue
from app.errors import StateFormatError
from app.fold.tensors import EventTensors
from app.runtime.manifest import Manifest
from app.runtime.session import Array, Runtime
from app.state.codec import Header, StateCodec, peek
from app.state.events import StoredEvent
from app.state.store import Loaded, UserMeta

CHUNK = 512  # events per row of one encode call; longer tails carry the state over
_POSITIONS = 16_384  # rows x events of one encode call, which bounds its memory


@dataclass(frozen=True, slots=True)
class UserState:
    """A user's state with every stored event applied.

    Attributes:
        header: which fold it is.
        tensors: every state tensor with a batch dimension of 1, as the graphs take it.
        folded: events that this fold added to what was stored; 0 means the stored state was current.
    """

    meta: UserMeta
    header: Header
    tensors: dict[str, Array]
    folded: int


class Fold:
    """Brings loaded users up to date with their tails: step.onnx for one event, encode.onnx for more.

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

    def continues(self, user: Loaded) -> bool:
        """Whether the stored state, if there is one, can be continued with the tail; if not, the whole sequence is needed."""
        if user.state is None or user.meta is None:
            return True
        try:
            header = peek(user.state)
        except StateFormatError:
            return False
        return len(user.state) == self._codec.size and header.epoch == user.meta.epoch and header.applied == user.tail_start

    def __call__(self, users: Sequence[Loaded]) -> list[UserState]:
        """Fold the tails of users that have a meta and whose states `continues`.

        The result for a user depends on that user alone (to float noise), whoever else is in the batch.
        """
        headers, state = self._start(users)
        tails = [[event for event in user.tail if self._tensors.knows(event)] for user in users]
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
        return [
            UserState(
                meta=meta_of(user),
                header=Header(
                    epoch=header.epoch,
                    base=header.base,
                    applied=user.tail_start + len(user.tail),
                    catalogue_version=self._catalogue.version,
                ),
                tensors={name: array[row : row + 1] for name, array in state.items()},
                folded=len(user.tail),
            )
            for row, (user, header) in enumerate(zip(users, headers, strict=True))
        ]

    def pack(self, user: UserState) -> bytes:
        """The state as the store keeps it."""
        return self._codec.pack_many([user.header], user.tensors)[0]

    def _start(self, users: Sequence[Loaded]) -> tuple[list[Header], dict[str, Array]]:
        """Headers and (U, ...) tensors before the tails: unpacked where stored, initial where not."""
        if all(user.state is not None for user in users):
            return self._codec.unpack_many([user.state for user in users if user.state is not None])
        attributes = np.asarray([self._attribute_row(meta_of(user)) for user in users], np.int64)
        initial = self._runtime.initial({"attributes": attributes.reshape(len(users), len(self._attributes))})
        state = {name: initial[name + "_out"] for name in self._names}
        headers = [Header(meta_of(user).epoch, user.tail_start, user.tail_start, self._catalogue.version) for user in users]
        stored = [(row, user.state) for row, user in enumerate(users) if user.state is not None]
        if stored:
            rows = [row for row, _ in stored]
            found, tensors = self._codec.unpack_many([blob for _, blob in stored])
            for row, header in zip(rows, found, strict=True):
                headers[row] = header
            for name in self._names:
                state[name][rows] = tensors[name]
        return headers, state

    def _attribute_row(self, meta: UserMeta) -> list[int]:
        return [values.get(meta.attributes.get(name, ""), 0) for name, values in self._attributes]


def meta_of(user: Loaded) -> UserMeta:
    """The meta of a user that has one; callers have set aside those without."""
    if user.meta is None:
        raise ValueError("a user without events has no state")
    return user.meta


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
