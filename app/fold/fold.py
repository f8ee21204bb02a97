"""States from events, many users at once. Pure arithmetic: no storage, no clock."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import msgspec
import numpy as np

from app.catalogue.catalogue import Catalogue
from app.errors import StateFormatError
from app.fold.tensors import EventTensors
from app.runtime.manifest import Manifest
from app.runtime.session import Array, GraphSession, Runtime
from app.state.codec import EPOCH_BYTES, Header, StateCodec, inflate, peek
from app.state.events import StoredEvent

CHUNK = 512  # events per row of one encode call; longer tails carry the state over
_POSITIONS = 16_384  # rows x events of one encode call, which bounds its memory
# A call of encode costs as much as some 125 of its events whatever is in it, one of step as much as 30: so a few events are as
# many steps, which other users share, and longer tails share a call while less than that is padding.
_STEPS = 4
_PADDING = 128
_INITIALS = 64  # initial states that are kept


class Unfolded(msgspec.Struct, frozen=True):
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
    """Brings users up to date with their tails: step.onnx for a few events, encode.onnx for more.

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
        self._initials: dict[tuple[int, ...], bytes] = {}

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
        tails = [[event for event in user.tail if self._tensors.knows(event)] for user in users]
        order = sorted(range(len(users)), key=lambda place: -len(tails[place]))
        users, tails = [users[place] for place in order], [tails[place] for place in order]
        headers, state = self._start(users)
        # Before anything is folded: what becomes known meanwhile counts as unknown, and is folded anew. The version first.
        version = self._catalogue.version
        unknown = self._tensors.unknown(tails)
        rows, last = self._codec.empty(len(users)), 0
        for first, last in _groups([len(tail) for tail in tails]):
            # Copied, a single row too, which is contiguous as it lies: among others it may lie where its numbers are not aligned.
            now = {name: np.array(array[first:last], order="C") for name, array in state.items()}
            for graph, events in self._calls(tails[first:last]):
                goes_on = len(events["item_key"])
                after = graph({name: array[:goes_on] for name, array in now.items()} | events)
                now = {name: after[name + "_out"] for name in self._names}
                self._codec.write(rows[first : first + goes_on], now)
        if last < len(users):  # those of whose events none is known
            self._codec.write(rows[last:], {name: array[last:] for name, array in state.items()})
        headers = [_after(header, user, version, of_tail) for header, user, of_tail in zip(headers, users, unknown, strict=True)]
        folded = dict(zip(order, zip(headers, self._codec.seal(headers, rows), strict=True), strict=True))
        return [folded[place] for place in range(len(users))]

    def is_outdated(self, header: Header) -> bool:
        """Whether the state was folded with an item as unknown that is known by now."""
        return header.unknown != 0 and self._catalogue.arrived(header.unknown, header.catalogue_version)

    def tensors(self, blobs: Sequence[bytes]) -> dict[str, Array]:
        """The tensors (B, ...) of B packed states, as the graphs take them."""
        return self._codec.unpack_many(blobs)[1]

    def read(self, blobs: Sequence[bytes], names: Sequence[str]) -> dict[str, Array]:
        """Some of them, not copied where that can be helped; not to be written to."""
        return self._codec.read_many(blobs, names)

    def _calls(self, tails: Sequence[Sequence[StoredEvent]]) -> Iterator[tuple[GraphSession, dict[str, Array]]]:
        """The calls that fold a group of tails, longest first: each is of the first ones, those that have not ended yet."""
        longest = len(tails[0])
        if longest > _STEPS:
            for done in range(0, longest, CHUNK):
                yield (
                    self._runtime.encode,
                    self._tensors.encode([tail[done : done + CHUNK] for tail in tails if len(tail) > done]),
                )
            return
        counts = [sum(len(tail) > done for tail in tails) for done in range(longest)]
        columns = self._tensors.step([tail[done] for done, count in enumerate(counts) for tail in tails[:count]])
        start = 0
        for count in counts:
            yield self._runtime.step, {name: column[start : start + count] for name, column in columns.items()}
            start += count

    def _start(self, users: Sequence[Unfolded]) -> tuple[list[Header], dict[str, Array]]:
        """Headers and (U, ...) tensors before the tails: those of the state where there is one, initial ones where not."""
        initial = iter(self._initial([user.attributes for user in users if user.state is None]))
        headers, blobs = [], []
        for user in users:
            if user.state is None:
                headers.append(Header(user.epoch, user.start, user.start, self._catalogue.version))
                blobs.append(next(initial))
            else:
                headers.append(peek(user.state))
                blobs.append(user.state)
        return headers, self._codec.read_many(blobs, self._names)

    def _initial(self, users: Sequence[Mapping[str, str]]) -> list[bytes]:
        """The states of new users, packed, by their attributes: few different ones come again and again."""
        asked = [tuple(values.get(user.get(name, ""), 0) for name, values in self._attributes) for user in users]
        known = self._initials
        if missing := list(dict.fromkeys(row for row in asked if row not in known)):
            found = self._runtime.initial({"attributes": np.asarray(missing, np.int64).reshape(len(missing), -1)})
            nobody = Header(bytes(EPOCH_BYTES), 0, 0, 0)
            blobs = self._codec.pack_many([nobody] * len(missing), {name: found[name + "_out"] for name in self._names})
            known = known | dict(zip(missing, blobs, strict=True))
            self._initials = known if len(known) <= _INITIALS else {}  # replaced whole: threads fold, too
        return [known[row] for row in asked]


def _after(before: Header, user: Unfolded, version: int, unknown: int) -> Header:
    """The header after a tail: its catalogue version is the oldest one at which an item was not known."""
    if before.unknown and (not unknown or before.catalogue_version < version):
        version = before.catalogue_version
    return Header(before.epoch, before.base, user.start + len(user.tail), version, before.unknown | unknown)


def _groups(lengths: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Tails that are folded in the same calls, as [first, last) of lengths that are given longest first; empty ones are in none.

    Short ones take a step after the other. Of the others those go together whose padding costs less than a call for themselves.
    """
    first = 0
    while first < len(lengths) and lengths[first]:
        longest, last, padding = lengths[first], first + 1, 0
        rows = max(1, _POSITIONS // min(longest, CHUNK))
        while last < len(lengths) and lengths[last] and (lengths[last] <= _STEPS) == (longest <= _STEPS) and last < first + rows:
            padding += longest - lengths[last]
            if padding > _PADDING and longest > _STEPS:
                break
            last += 1
        yield first, last
        first = last
