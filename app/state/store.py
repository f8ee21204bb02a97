"""What the service needs of its storage. One implementation talks to Redis; tests run against a real server."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from app.state.events import StoredEvent


@dataclass(frozen=True, slots=True)
class Append:
    """Events of one user to be appended together, in this order."""

    user_id: str
    events: Sequence[StoredEvent]


@dataclass(frozen=True, slots=True)
class Appended:
    """What became of one `Append`.

    `fresh` has one flag per event: False where the `event_id` was already known (a retry), and nothing was stored again.
    `total` is how many events the user has had so far, these included.
    """

    fresh: tuple[bool, ...]
    total: int


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
class Loaded:
    """A user as one round trip finds it.

    `meta` is None for a user with neither events nor attributes. `state` is the stored blob (header and tensors), or None if
    there is none that can be continued: of another epoch or format, or followed by events that have left the sequence.
    `tail` holds the events that the state does not cover yet: all stored ones where it is None.
    `tail_start` is the index (0 = the user's first event ever) of the first event of `tail`: the state's `applied`, or the
    `base` of a fold that starts afresh.
    """

    meta: UserMeta | None
    state: bytes | None
    tail: Sequence[StoredEvent]
    tail_start: int


class StateStore(Protocol):
    """Every method raises `StorageError` when Redis does not answer; nothing is half-done then."""

    async def append(self, tenant: str, batches: Sequence[Append]) -> list[Appended]:
        """Append atomically per user: dedupe, sequence, counters, event log. All users in one round trip.

        On `StorageError` each user's events are stored together or not at all. One batch per user, else ValueError.
        """

    async def load(self, tenant: str, model_id: str, user_ids: Sequence[str]) -> list[Loaded]:
        """States and unfolded tails of these users, in one round trip."""

    async def commit(self, tenant: str, model_id: str, user_id: str, blob: bytes) -> bool:
        """Store a state blob if its epoch matches and it is ahead of what is stored; otherwise return False."""

    async def commit_many(self, tenant: str, model_id: str, blobs: Sequence[tuple[str, bytes]]) -> list[bool]:
        """`commit` for (user_id, blob) pairs, each atomic on its own, all in one round trip."""

    async def recent(self, tenant: str, user_id: str, limit: int) -> list[StoredEvent]:
        """The last `limit` events of the user in arrival order, oldest first."""

    async def set_attributes(self, tenant: str, user_id: str, attributes: Mapping[str, str]) -> None:
        """Replace the user's attributes; starts a new epoch, so that every state is folded again from them."""

    async def import_history(
        self, tenant: str, user_id: str, events: Sequence[StoredEvent], attributes: Mapping[str, str]
    ) -> None:
        """Replace the user's sequence by a history (oldest first) under a new epoch; touches no counters and no log."""

    async def seed_popularity(
        self, tenant: str, half_lives_s: Sequence[float], items: Sequence[str], counts: Sequence[Sequence[float]], at_ms: int
    ) -> None:
        """Give items that have no popularity yet these decayed counts (one row per item, one column per half-life)."""

    async def count_popularity(
        self, tenant: str, half_lives_s: Sequence[float], increments: Sequence[tuple[str, float, int]]
    ) -> None:
        """Add (item_id, weight, unix ms) to the decayed counts, in one round trip."""

    async def popularity(self, tenant: str, half_lives_s: Sequence[float]) -> dict[str, tuple[int, tuple[float, ...]]]:
        """item_id -> (unix ms the counts refer to, decayed counts per half-life)."""

    async def ping(self) -> None:
        """Return when Redis answers; raise `StorageError` otherwise."""

    async def close(self) -> None: ...
