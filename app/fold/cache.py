"""States that this worker folded lately. What is here need not come from Redis again, nor be folded again."""

from __future__ import annotations

from collections import OrderedDict
from time import monotonic

import msgspec

from app.state.codec import Header

_ENTRY_BYTES = 600  # of an entry beside its state: keys, header, dictionary


class CachedState(msgspec.Struct, frozen=True):
    """A user's state as bytes.

    Attributes:
        stored: how many events the state in Redis has, as far as this worker knows.
        generation: of the store when the state's events were seen there; in another one it says nothing.
        renewed_s: when the state in Redis was last stored or read, as far as this worker knows, on time.monotonic().
    """

    header: Header
    blob: bytes
    stored: int
    generation: int
    renewed_s: float = msgspec.field(default_factory=monotonic)


class StateCache:
    """The states of the users that were read or folded last, up to a number of bytes.

    A cache of a cache: whoever uses an entry asks Redis in the same breath how many events the user has had, and in which epoch.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._bytes = 0
        self._states: OrderedDict[tuple[str, str], CachedState] = OrderedDict()

    def __len__(self) -> int:
        return len(self._states)

    def get(self, tenant: str, user_id: str) -> CachedState | None:
        """The user's state, if it is here; it is then the last to be given up."""
        state = self._states.get((tenant, user_id))
        if state is not None:
            self._states.move_to_end((tenant, user_id))
        return state

    def put(self, tenant: str, user_id: str, state: CachedState) -> None:
        """Keep a state, unless the same fold is here with more events; the oldest give way."""
        key = (tenant, user_id)
        there = self._states.get(key)
        if there is not None:
            same_fold = (there.header.epoch, there.header.base, there.generation) == (
                state.header.epoch,
                state.header.base,
                state.generation,
            )
            if same_fold and there.header.applied > state.header.applied:
                return
            self._bytes -= len(there.blob) + _ENTRY_BYTES
        self._states[key] = state
        self._states.move_to_end(key)
        self._bytes += len(state.blob) + _ENTRY_BYTES
        while self._bytes > self._max_bytes and self._states:
            _, oldest = self._states.popitem(last=False)
            self._bytes -= len(oldest.blob) + _ENTRY_BYTES

    def drop(self, tenant: str, user_id: str) -> None:
        """Forget a user's state."""
        state = self._states.pop((tenant, user_id), None)
        if state is not None:
            self._bytes -= len(state.blob) + _ENTRY_BYTES
