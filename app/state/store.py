"""What the service needs of its storage. One implementation talks to Redis; tests run against a real server."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal, Protocol

import msgspec

from app.state.events import StoredEvent
from app.state.identities import Erased

STORED: Final = "1"
DUPLICATE: Final = "0"
ERASED: Final = "g"

Decayed = tuple[int, Sequence[float]]
"""An item's popularity: unix ms that the counts refer to, and the decayed count for each half-life."""

NONE_BEGUN: Final[Mapping[str, Decayed]] = {}


class Append(msgspec.Struct, frozen=True):
    """Events of one user to be appended together, in this order; `event_ids` has one for each, None where there is none."""

    user_id: str
    events: Sequence[StoredEvent]
    event_ids: Sequence[str | None]


class Appended(msgspec.Struct, frozen=True):
    """What became of one `Append`.

    Attributes:
        user_id: who has the events now: another one than was named if that one has been merged.
        flags: one character per event: STORED, DUPLICATE (its id was known: a retry, and nothing was stored again), or ERASED (it
            happened before its user was erased, and was refused).
        total: how many events the user has had so far in this epoch, these included.
        epoch, attributes: see `UserMeta`; None where the attributes cannot be read: the events are stored all the same, and
            whoever reads the user hears of it.
        generation: of the store when it was asked. In a later one the events may be gone.
    """

    user_id: str
    flags: str
    total: int
    epoch: bytes
    attributes: Mapping[str, str] | None
    generation: int


@dataclass(frozen=True, slots=True)
class UserMeta:
    """`appended` events so far, of which the last `stored` are still in the sequence; `epoch` changes with each rewrite.

    The times are the smallest and the largest of all events so far, 0 for a user with attributes alone.
    """

    appended: int
    stored: int
    epoch: bytes
    first_time_ms: int
    last_time_ms: int
    attributes: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Held:
    """Which state of a user the caller holds already: it is not sent again if it can be continued."""

    epoch: bytes
    applied: int


@dataclass(frozen=True, slots=True)
class Loaded:
    """A user as one round trip finds it.

    Attributes:
        user_id: whose sequence this is: another user's than was asked for if that one has been merged.
        meta: None for a user with neither events nor attributes.
        state: the stored blob (header and tensors), or None if there is none that can be continued (of another epoch or format,
            or followed by events that have left the sequence), or if the caller's own can be.
        held: whether the caller's own state is what `tail` continues.
        tail: the events that the state does not cover yet: all stored ones where there is no state, the first `most` of them if
            the caller set a bound.
        tail_start: the index (0 = the user's first event ever) of the first event of `tail`: the state's `applied`, or the `base`
            of a fold that starts afresh.
    """

    user_id: str
    meta: UserMeta | None
    state: bytes | None
    held: bool
    tail: Sequence[StoredEvent]
    tail_start: int


CommitResult = Literal["stored", "overtaken", "refused"]
"""`overtaken`: what is stored is as good. `refused`: the state is of no use any more; load the user again."""


class StateStore(Protocol):
    """Attributes:
    generation: grows whenever another server answers than before. It may have lost events that were acknowledged, so what a
        worker remembers of users from before says nothing any more.

    Every method raises `StorageError` when Redis does not answer. A write may have been done then; of no user it is half-done."""

    @property
    def generation(self) -> int: ...

    async def append(self, tenant: str, batches: Sequence[Append]) -> list[Appended | Exception]:
        """Append each batch atomically: dedupe, sequence, counters, event log. All in one round trip, in this order.

        Where a batch failed for a reason of its own, which says nothing of the others, the error stands in its place. On
        `StorageError` each batch is stored whole or not at all.
        """

    async def load(
        self,
        tenant: str,
        model_id: str,
        user_ids: Sequence[str],
        held: Sequence[Held | None] | None = None,
        most: int = 0,
        only: int | None = None,
    ) -> list[Loaded]:
        """States and unfolded tails of these users, in one round trip; of each tail at most the first `most` events (0: all).

        Raises StorageChangedError if `only` is given and is not the store's generation.
        """

    async def commit_many(
        self, tenant: str, model_id: str, blobs: Sequence[tuple[str, bytes]], only: int | None = None
    ) -> list[CommitResult]:
        """Store each (user_id, blob) if its epoch matches and it is ahead of what is stored; all in one round trip.

        Raises StorageChangedError if `only` is given and is not the store's generation.
        """

    async def discard_states(self, tenant: str, model_id: str, states: Sequence[tuple[str, bytes]]) -> None:
        """Delete each (user_id, state as it was loaded) that is still there: it cannot be continued, but says that it can."""

    async def recent(self, tenant: str, user_id: str, limit: int) -> list[StoredEvent]:
        """The last `limit` events of the user in arrival order, oldest first."""

    async def set_attributes(self, tenant: str, user_id: str, attributes: Mapping[str, str]) -> None:
        """Replace the user's attributes; starts a new epoch, so that every state is folded again from them."""

    async def write_history(
        self, tenant: str, user_id: str, events: Sequence[StoredEvent], event_ids: Sequence[str | None], import_id: str
    ) -> int | None:
        """Add a history to the user's sequence, sorted by time, under a new epoch; touches no popularity.

        Returns how many events were taken, which those of before an erasure are not; None, and does nothing, if this user has had
        the import `import_id` before.
        """

    async def merge(self, tenant: str, target: str, source: str) -> str:
        """Join `source` into `target`; returns who has the events of both now. Raises ConflictError."""

    async def erase(self, tenant: str, user_id: str, now_ms: int) -> Erased:
        """Forget a user, with every identity merged into it, and refuse from now on what happened before `now_ms`."""

    async def register_model(self, model_id: str, about: str) -> None:
        """Say that a model may have states: an erasure must find them."""

    async def count_popularity(
        self,
        tenant: str,
        half_lives_s: Sequence[float],
        increments: Sequence[tuple[str, float, int]],
        beginnings: Mapping[str, Decayed] = NONE_BEGUN,
    ) -> int:
        """Add (item_id, weight, unix ms) to the decayed counts, in one round trip; returns how many events were ever counted.

        An item that has no counts yet begins with those in `beginnings`, or with none.
        """

    async def popularity(self, tenant: str, half_lives_s: Sequence[float]) -> dict[str, Decayed]:
        """The counts of every item that was ever counted."""

    def popularity_parts(self, tenant: str, half_lives_s: Sequence[float]) -> AsyncIterator[dict[str, Decayed]]:
        """`popularity` part by part."""

    async def popularity_events(self, tenant: str, half_lives_s: Sequence[float]) -> int:
        """How many events were ever counted, by whomever: while it stands still, so do the counts."""

    async def ping(self) -> None:
        """Return when Redis answers; raise `StorageError` otherwise."""

    async def close(self) -> None: ...
