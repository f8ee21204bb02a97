"""Users as they are now: one round trip to the store, then the fold of whatever is not folded yet."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Sequence, Set
from dataclasses import dataclass, replace
from time import monotonic

import structlog

from app.errors import DamagedError, StorageChangedError, StorageError
from app.fold.cache import CachedState, StateCache
from app.fold.commits import Commits
from app.fold.fold import Fold, Unfolded
from app.runtime.batcher import FOREVER, Batcher, Patience
from app.state.codec import Header, peek
from app.state.damage import OneOfManyError
from app.state.store import Held, Loaded, StateStore, UserMeta
from app.telemetry import Metrics

# Under this model id nobody ever stores a state, so that loading with it gives the whole sequence.
_NO_MODEL = "-"

# Folds of more events than this, of one user or of all users of a batch, would hold up every other request of the event loop:
# they go to a thread.
_INLINE_EVENTS = 128
_INLINE_BATCH_EVENTS = 512

_MOST_EVENTS = 4_096  # of one user in one round trip: longer tails come in parts
_BATCH_USERS = 64
_ROUND_TRIPS = 2
_FEW_BITS = 16  # of 32: of some ten unknown items
_RENEW_S = 60.0
_MOST_RENEWED = 10_000
_MOST_WAITING = 2_048

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class UserState:
    """A user with every stored event applied.

    Attributes:
        user_id: another one than was asked for where that one has been merged.
        folded: events that were folded for this answer.
    """

    user_id: str
    meta: UserMeta
    header: Header
    blob: bytes
    folded: int = 0


@dataclass(frozen=True, slots=True)
class Asked:
    """A user to be loaded; `own` is a state of theirs that was just folded, which the cache may have given up already."""

    tenant: str
    user_id: str
    own: CachedState | None = None


@dataclass(frozen=True, slots=True)
class LongTail:
    """A user whose tail is too long to be folded between other requests.

    Attributes:
        anew: from the beginning, whatever state there is.
        start: index of the first event that is not folded.
    """

    tenant: str
    user_id: str
    anew: bool = False
    start: int = 0


class Users:
    """Loads users and folds their tails; what comes back reflects every event acknowledged before the call.

    Concurrent calls share round trips and calls of the model, and a long fold of one user is done once for all who wait for it.
    """

    def __init__(
        self,
        store: StateStore,
        fold: Fold,
        cache: StateCache,
        commits: Commits,
        model_id: str,
        metrics: Metrics,
        patience: Patience = FOREVER,
    ) -> None:
        self._store = store
        self._fold = fold
        self._cache = cache
        self._commits = commits
        self._model_id = model_id
        self._metrics = metrics
        self._batcher = Batcher(self.batch, most=_BATCH_USERS, running=_ROUND_TRIPS, waiting=_MOST_WAITING, patience=patience)
        self._renewed_s: dict[tuple[str, str], float] = {}  # when users with many bits were folded anew, on time.monotonic()
        self._long: dict[tuple[str, str], asyncio.Task[CachedState | None]] = {}

    async def current(self, tenant: str, user_id: str) -> UserState | None:
        """The state of a user with every stored event applied; None for a user without events.

        A stored state that cannot be continued (damaged, another format) is ignored and the user folded from the sequence.

        Raises:
            StorageError: the store did not answer, or not soon enough (LateError).
            OverloadedError: too many requests are waiting.
        """
        asked = Asked(tenant, user_id)
        while True:
            found = await self._batcher(asked)
            if not isinstance(found, LongTail):
                return found
            asked = await self.shorten(found)

    async def peek(self, tenant: str, user_id: str) -> Loaded:
        """The user as stored, not folded: `tail_start` is how far the state of this worker, or else the stored one, goes.

        Raises StorageError if the store did not answer.
        """
        own = self._cache.get(tenant, user_id)
        if own is not None and own.generation != self.generation:
            own = None
        held = Held(own.header.epoch, own.header.applied) if own is not None else None
        (loaded,) = await self._store.load(tenant, self._model_id, [user_id], [held], 1)
        return loaded

    @property
    def generation(self) -> int:
        """Of the store: what was seen of users in another one says nothing any more."""
        return self._store.generation

    def forget(self, tenant: str, user_id: str) -> None:
        """Drop what this worker holds of a user. What others hold is of an epoch that has ended, and never used again."""
        self._cache.drop(tenant, user_id)

    def keep(self, tenant: str, user_id: str, header: Header, blob: bytes, stored: int, generation: int) -> CachedState:
        """Hold on to a state that was just folded, and have it stored when that is worth it."""
        there = self._cache.get(tenant, user_id)
        state = CachedState(header, blob, stored, generation, there.renewed_s if there is not None else monotonic())
        self._cache.put(tenant, user_id, state)
        self._commits.submit(tenant, user_id, state)
        return state

    async def shorten(self, long: LongTail) -> Asked:
        """Fold a long tail; returns what to ask for again. Raises StorageError."""
        # Shielded: others wait for the same fold, and whoever comes back after giving up should find it done.
        own = await asyncio.shield(self._fold_long(long))
        # By the name that has the events, and with the state: whatever becomes of cache and commit, it is not folded again.
        return Asked(long.tenant, long.user_id, own)

    async def batch(self, asked: Sequence[Asked], at_least: int = 0) -> list[UserState | LongTail | None]:
        """`current` for several users in one round trip; one whose tail is too long to be folded between other requests comes
        back as `LongTail`: `shorten` it and ask again. Who has fewer events to be folded than `at_least` is passed over, None."""
        found: dict[tuple[str, str], UserState | LongTail | None] = {}
        for tenant in dict.fromkeys(one.tenant for one in asked):
            users: dict[str, CachedState | None] = {}
            for one in asked:
                if one.tenant == tenant:
                    users[one.user_id] = users.get(one.user_id) or self._cache.get(tenant, one.user_id) or one.own
            just_folded = {one.user_id for one in asked if one.own is not None}
            states = await self._load_and_fold(tenant, list(users), list(users.values()), just_folded, at_least)
            found |= {(tenant, user): state for user, state in zip(users, states, strict=True)}
        return [found[one.tenant, one.user_id] for one in asked]

    async def _load_and_fold(
        self, tenant: str, users: Sequence[str], held: Sequence[CachedState | None], just_folded: Set[str], at_least: int
    ) -> list[UserState | LongTail | None]:
        loaded, held, generation = await self._load(tenant, users, held)
        anew = await self._renew(tenant, users, loaded, held, just_folded)
        result: list[UserState | LongTail | None] = [None] * len(users)
        short = []
        budget = _INLINE_BATCH_EVENTS
        for place, user in enumerate(loaded):
            if user.meta is None or user.meta.appended == 0 or user.meta.appended - user.tail_start < at_least:
                continue
            blob = _state_of(user, held[place])
            if user.tail_start == user.meta.appended and blob is not None:
                # Nothing to fold.
                own = held[place]
                if user.held and own is not None:
                    header = own.header
                    self._commits.renew(tenant, user.user_id, own)
                else:
                    header = self._keep_loaded(tenant, user, blob, generation)
                result[place] = UserState(user.user_id, user.meta, header, blob)
            elif len(user.tail) <= min(budget, _INLINE_EVENTS) and user.tail_start + len(user.tail) == user.meta.appended:
                budget -= len(user.tail)
                short.append((place, user, blob))
            else:
                result[place] = LongTail(tenant, user.user_id, place in anew, user.tail_start)
        if short:
            folded = self._fold([_unfolded(user, blob) for _, user, blob in short])
            self._metrics.folded.labels("read").inc(sum(len(user.tail) for _, user, _ in short))
            for (place, user, _), (header, blob) in zip(short, folded, strict=True):
                self.keep(tenant, user.user_id, header, blob, _stored(user, held[place]), generation)
                assert user.meta is not None
                result[place] = UserState(user.user_id, user.meta, header, blob, len(user.tail))
        return result

    async def _load(
        self, tenant: str, users: Sequence[str], held: Sequence[CachedState | None]
    ) -> tuple[list[Loaded], Sequence[CachedState | None], int]:
        """The users as the store has them; the states that this worker holds are offered to be continued.

        Returns the users, the states that were offered, and the generation of the store that both are of.
        """
        while True:
            generation = self.generation
            held = [own if own is not None and own.generation == generation else None for own in held]
            offered = [Held(own.header.epoch, own.header.applied) if own is not None else None for own in held]
            try:
                loaded = await self._store.load(tenant, self._model_id, users, offered, _MOST_EVENTS, generation)
                break
            except StorageChangedError:
                log.warning("another Redis answers than before; states held from before it are not used")
        damaged: list[int] = []
        bad: list[tuple[str, bytes]] = []
        for place, user in enumerate(loaded):
            if user.state is not None and user.meta is not None:
                blob = self._fold.restore(user.state, user.meta.epoch, user.tail_start)
                if blob is None:
                    damaged.append(place)
                    bad.append((user.user_id, user.state))
                else:
                    loaded[place] = replace(user, state=blob)
        if damaged:
            log.warning("stored state cannot be continued, folding the sequence again", users=len(damaged))
            self._metrics.rebuilt.labels("damaged").inc(len(damaged))
            with contextlib.suppress(StorageError):  # of a store that takes no writes one can be answered all the same
                # By its header it is as good as what will be folded, or remembers more: no commit would ever replace it.
                await self._store.discard_states(tenant, self._model_id, bad)
            await self._load_whole(tenant, loaded, damaged)
        return loaded, held, generation

    async def _load_whole(self, tenant: str, loaded: list[Loaded], places: Sequence[int]) -> None:
        """Some of the users once more, as if they had no state. Raises as if all were loaded again."""
        try:
            whole = await self._store.load(tenant, _NO_MODEL, [loaded[place].user_id for place in places], None, _MOST_EVENTS)
        except DamagedError as error:  # such as an event that the state has behind it
            if len(loaded) == 1:
                raise
            raise OneOfManyError(error.detail) from error
        for place, user in zip(places, whole, strict=True):
            loaded[place] = user

    async def _renew(
        self,
        tenant: str,
        users: Sequence[str],
        loaded: list[Loaded],
        held: Sequence[CachedState | None],
        just_folded: Set[str],
    ) -> Sequence[int]:
        """Places of users who must be folded anew, since an item has arrived that they met before; they come without state then.

        Who was just folded is not begun again at once: where items arrive all the time, that would never end.
        """
        outdated = [
            place
            for place, user in enumerate(loaded)
            if users[place] not in just_folded and self._is_outdated(tenant, user, held[place])
        ]
        if outdated:
            self._metrics.rebuilt.labels("item_arrived").inc(len(outdated))
            for place in outdated:
                self._cache.drop(tenant, loaded[place].user_id)
            await self._load_whole(tenant, loaded, outdated)
        return outdated

    def _is_outdated(self, tenant: str, user: Loaded, own: CachedState | None) -> bool:
        """Whether an item has arrived that the user's state knows nothing of, and all events of the state are there to be folded
        again: what it remembers beyond them is worth more than that item."""
        blob = _state_of(user, own)
        if user.meta is None or blob is None:
            return False
        header = own.header if user.held and own is not None else peek(blob)
        if not self._fold.is_outdated(header) or header.base < user.meta.appended - user.meta.stored:
            return False
        if header.unknown.bit_count() <= _FEW_BITS:
            return True
        # Who met many unknown items has the bits of nearly all: each arrival would have the whole sequence folded again.
        now_s, key = monotonic(), (tenant, user.user_id)
        if now_s < self._renewed_s.get(key, -math.inf) + _RENEW_S:
            return False
        self._renewed_s[key] = now_s
        while len(self._renewed_s) > _MOST_RENEWED:
            del self._renewed_s[next(iter(self._renewed_s))]
        return True

    def _keep_loaded(self, tenant: str, user: Loaded, blob: bytes, generation: int) -> Header:
        """Hold on to a state as it came from the store."""
        header = peek(blob)
        self._cache.put(tenant, user.user_id, CachedState(header, blob, user.tail_start, generation))
        return header

    def _fold_long(self, long: LongTail) -> asyncio.Task[CachedState | None]:
        """The one task that folds a long tail of a user."""
        key = (long.tenant, long.user_id)
        task = self._long.get(key)
        if task is None:
            task = self._long[key] = asyncio.create_task(self._fold_in_parts(long))

            def done(task: asyncio.Task[CachedState | None]) -> None:
                del self._long[key]
                if not task.cancelled():
                    task.exception()  # is raised to those who wait; there may be none left

            task.add_done_callback(done)
        return task

    async def _fold_in_parts(self, long: LongTail) -> CachedState | None:
        """Fold a long tail in a thread, part by part, until little of it is left; returns the state."""
        tenant, anew = long.tenant, long.anew
        own = self._cache.get(tenant, long.user_id) if not anew else None
        while True:
            loaded, (own,), generation = await self._load(tenant, [long.user_id], [own])
            if anew:
                await self._load_whole(tenant, loaded, [0])
                anew = False
            (user,) = loaded
            if user.meta is None or len(user.tail) <= _INLINE_EVENTS:
                return own
            state = _state_of(user, own)
            if state is None:
                self._metrics.rebuilt.labels("no_state").inc()
            ((header, blob),) = await asyncio.to_thread(self._fold, [_unfolded(user, state)])
            self._metrics.folded.labels("read").inc(len(user.tail))
            own = self.keep(tenant, user.user_id, header, blob, _stored(user, own), generation)


def _state_of(user: Loaded, own: CachedState | None) -> bytes | None:
    return own.blob if user.held and own is not None else user.state


def _unfolded(user: Loaded, blob: bytes | None) -> Unfolded:
    assert user.meta is not None
    return Unfolded(user.meta.epoch, user.meta.attributes, blob, user.tail, user.tail_start)


def _stored(user: Loaded, own: CachedState | None) -> int:
    """How many events the state in the store has, as far as can be told."""
    if user.held and own is not None:
        return own.stored
    return user.tail_start if user.state is not None else 0
