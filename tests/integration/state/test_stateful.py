"""Whatever happens in whatever order, a user is what was acknowledged, and a state is the fold of it.

Two workers on one Redis do at random what workers do and what happens to them, while a plain model in memory says what must be
true. The fold is a hash of attributes and events in order, so a state proves which events it has seen, once each. In the end the
event log must say what has happened to each user, in order, and nothing else.
"""

from __future__ import annotations

import asyncio
import contextlib
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest

import numpy as np
import pytest
import redis
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from app.archive.record import ATTRIBUTES, ERASED, EVENT, HISTORY, MOVED, SEQUENCE, parse
from app.errors import ConflictError
from app.fold import Commits, StateCache, Unfolded, Users
from app.ingest.advance import Advance
from app.runtime.manifest import StateTensor
from app.state import keys
from app.state.codec import Header, StateCodec, inflate, peek
from app.state.embedded import EmbeddedRedis
from app.state.events import StoredEvent
from app.state.redis import RedisStore
from app.state.store import Append
from app.telemetry import Metrics

MAX_SEQUENCE = 6
WINDOW = 3
USERS = ["ann", "bob", "cat"]
MODELS = ["m1", "m2"]
CODEC = StateCodec([StateTensor(name="hash", dtype="int64", shape=[1])])


def start_hash(attributes: Mapping[str, str]) -> int:
    return zlib.crc32(repr(sorted(attributes.items())).encode())


def step(value: int, event: StoredEvent) -> int:
    return zlib.crc32(f"{value} {event.item_id} {event.time_ms}".encode())


class HashFold:
    """In the place of `Fold`."""

    def restore(self, stored: bytes, epoch: bytes, applied: int) -> bytes | None:
        blob = inflate(stored, CODEC.size)
        header = peek(blob)
        return blob if (header.epoch, header.applied) == (epoch, applied) else None

    def is_outdated(self, header: Header) -> bool:
        return False  # every item is known

    def __call__(self, users: Sequence[Unfolded]) -> list[tuple[Header, bytes]]:
        done = []
        for user in users:
            base, value = user.start, start_hash(user.attributes)
            if user.state is not None:
                header, state = CODEC.unpack(user.state)
                assert header.applied == user.start
                base, value = header.base, int(state["hash"][0])
            for event in user.tail:
                value = step(value, event)
            header = Header(user.epoch, base, user.start + len(user.tail), 0)
            done.append((header, CODEC.pack(header, {"hash": np.asarray([value], np.int64)})))
        return done


class Worker:
    """Caches, folds and commits of one process, for one model."""

    def __init__(self, store: RedisStore, model_id: str) -> None:
        fold, cache, metrics = HashFold(), StateCache(10**6), Metrics()
        self.commits = Commits(store, cache, model_id, metrics, every=3, delay_s=60.0)
        self.users = Users(store, fold, cache, self.commits, model_id, metrics)
        self.advance = Advance(self.users, fold, cache, metrics, delay_s=0.0, batch_users=8, batch_events=64, most_events=1_000)

    def die(self) -> None:
        """What was not committed is gone."""
        if self.commits._flushing is not None:
            self.commits._flushing.cancel()


@dataclass
class Person:
    """What must be true of one identity. `events` are [offset, offset + len(events)) of the epoch."""

    to: str | None = None
    events: list[StoredEvent] = field(default_factory=list)
    offset: int = 0
    stored: int = 0
    ids: list[str] = field(default_factory=list)
    attributes: dict[str, str] = field(default_factory=dict)
    erased_at: int = -1
    sources: set[str] = field(default_factory=set)
    latest: int = 0

    @property
    def total(self) -> int:
        return self.offset + len(self.events)


class World(RuleBasedStateMachine):
    url: str

    kept = Bundle("kept")  # states that some fold held for a while

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        with redis.Redis.from_url(self.url) as raw:
            raw.flushall()
        self.store = RedisStore(self.url, max_sequence=MAX_SEQUENCE, dedupe_window=WINDOW)
        self.people = {user: Person() for user in USERS}
        self.told: dict[str, list[tuple[object, ...]]] = {user: [] for user in USERS}  # what the log must say of each
        self.model_id = MODELS[0]
        self.number = 0

    @initialize()
    def begin(self) -> None:
        for model_id in MODELS:
            self.run(self.store.register_model(model_id, "{}"))
        self.workers = [Worker(self.store, self.model_id) for _ in range(2)]

    def run(self, work):
        return self.runner.run(work)

    def refused_to(self, user: str) -> int:
        """Up to which time events of a user are refused: by every tombstone on the way to who has them."""
        latest = self.people[user].erased_at
        while (to := self.people[user].to) is not None:
            user = to
            latest = max(latest, self.people[user].erased_at)
        return latest

    def holder(self, user: str) -> str:
        while (to := self.people[user].to) is not None:
            user = to
        return user

    @rule(
        user=st.sampled_from(USERS),
        which=st.integers(0, 1),
        times=st.lists(st.integers(0, 100), min_size=1, max_size=6),
        ids=st.lists(st.sampled_from(["a", "b", "c", "d", "e", None]), min_size=6, max_size=6),
        mark=st.booleans(),
    )
    def append(self, user: str, which: int, times: list[int], ids: list[str | None], mark: bool) -> None:
        events = []
        for time_ms in times:
            self.number += 1
            events.append(StoredEvent("purchase", time_ms, str(self.number)))
        (appended,) = self.run(self.store.append("t", [Append(user, events, ids[: len(events)])]))
        name = self.holder(user)
        person, fresh, flags = self.people[name], [], ""
        for event, event_id in zip(events, ids, strict=False):
            if event.time_ms <= self.refused_to(user):
                flags += "g"
            elif event_id is not None and event_id in person.ids[-WINDOW:]:
                flags += "0"
            else:
                flags += "1"
                fresh.append(event)
                self.told[name].append((EVENT, event, event_id, person.total + len(fresh)))
                if event_id is not None:
                    person.ids.append(event_id)
        person.events += fresh
        person.latest = max([person.latest, *(event.time_ms for event in fresh)])
        person.stored = min(person.stored + len(fresh), MAX_SEQUENCE)
        assert (appended.user_id, appended.flags, appended.total) == (name, flags, person.total)
        if mark and fresh:

            async def tell() -> None:
                self.workers[which].advance.mark(
                    "t", name, appended.epoch, appended.attributes, appended.total, fresh, appended.generation
                )
                while self.workers[which].advance._dirty:
                    await self.workers[which].advance._fold_some()

            self.run(tell())

    @rule(user=st.sampled_from(USERS), which=st.integers(0, 1))
    def read(self, user: str, which: int) -> None:
        state = self.run(self.workers[which].users.current("t", user))
        name = self.holder(user)
        person = self.people[name]
        if not person.total:
            assert state is None
            return
        assert state is not None
        assert (state.user_id, state.header.applied, state.meta.appended) == (name, person.total, person.total)
        assert state.meta.stored == person.stored
        self.is_the_fold(state.blob, person)
        # However much was trimmed and lost, a fold never begins later than the sequence does.
        assert person.offset <= state.header.base <= person.total - person.stored

    def is_the_fold(self, blob: bytes, person: Person) -> None:
        header, state = CODEC.unpack(blob)
        value = start_hash(person.attributes)
        for event in person.events[header.base - person.offset : header.applied - person.offset]:
            value = step(value, event)
        assert int(state["hash"][0]) == value

    @rule(which=st.integers(0, 1))
    def commit(self, which: int) -> None:
        self.run(self.workers[which].commits.flush())
        for name, person in self.people.items():
            for model_id in MODELS:
                (loaded,) = self.run(self.store.load("t", model_id, [name]))
                if person.to is None and loaded.state is not None:
                    self.is_the_fold(inflate(loaded.state, CODEC.size), person)

    @rule(which=st.integers(0, 1))
    def crash(self, which: int) -> None:
        async def die() -> None:
            self.workers[which].die()

        self.run(die())
        self.workers[which] = Worker(self.store, self.model_id)

    @rule(model_id=st.sampled_from(MODELS))
    def swap(self, model_id: str) -> None:
        self.model_id = model_id
        for which in (0, 1):
            self.crash(which)

    @rule(user=st.sampled_from(USERS), model_id=st.sampled_from(MODELS))
    def lose_a_state(self, user: str, model_id: str) -> None:
        with redis.Redis.from_url(self.url) as raw:
            raw.delete(keys.state_key("t", model_id, user))

    @rule(target=kept, user=st.sampled_from(USERS))
    def keep_a_state(self, user: str) -> tuple[str, bytes] | None:
        state = self.run(self.workers[0].users.current("t", user))
        return (state.user_id, state.blob) if state is not None else None

    @rule(state=kept)
    def commit_an_old_state(self, state: tuple[str, bytes] | None) -> None:
        """A fold that took its time: what is of an epoch that has ended must not be stored any more."""
        if state is not None:
            user, blob = state
            (result,) = self.run(self.store.commit_many("t", self.model_id, [(user, blob)]))
            with redis.Redis.from_url(self.url) as raw:
                current = raw.hget(keys.user_keys("t", user).meta, "e") == peek(blob).epoch
            assert result == "refused" if not current else result in ("stored", "overtaken", "refused")

    @rule(user=st.sampled_from(USERS), at=st.integers(0, 100))
    def erase(self, user: str, at: int) -> None:
        name = self.holder(user)
        every = {user, name, *self.people[name].sources}
        erased = self.run(self.store.erase("t", user, at))
        assert set(erased.identities) == every
        # An event dated after its erasure must not come back either, under any name, also if the erasure is repeated.
        upto = max(at, self.people[name].latest, self.people[name].erased_at)
        for one in every:
            self.people[one] = Person(erased_at=max(upto, self.people[one].erased_at))
            self.told[one].append((ERASED, self.people[one].erased_at))
        assert erased.refused_to == self.people[user].erased_at

    @rule(user=st.sampled_from(USERS), source=st.sampled_from(USERS))
    def merge(self, user: str, source: str) -> None:
        to, of = self.holder(user), self.holder(source)
        with contextlib.ExitStack() as stack:
            if (of == to and of == source) or (of != to and of != source):
                stack.enter_context(pytest.raises(ConflictError))
            self.run(self.store.merge("t", user, source))
        if of == to or of != source:
            return
        target, gone = self.people[to], self.people[source]
        self.told[source].append((MOVED, to, gone.stored))
        if not gone.total and not gone.attributes:  # nothing is known of this one
            target.sources |= {source, *gone.sources}
            self.people[source] = Person(to=to, erased_at=gone.erased_at)
            for one in gone.sources:
                self.people[one].to = to
            return
        new = gone.events[len(gone.events) - gone.stored :]
        there = target.events[len(target.events) - target.stored :]
        total = target.total + len(new)
        attributes = gone.attributes | target.attributes
        self.told[to].append((SEQUENCE, source, len(new), attributes if gone.attributes else None))
        self.told[to] += [(HISTORY, event) for event in new]
        together = sorted([*there, *new], key=lambda event: event.time_ms)
        kept = together[max(0, len(together) - MAX_SEQUENCE) :]
        latest = [ids[-WINDOW:][::-1] for ids in (gone.ids, target.ids)]
        if len({*latest[0], *latest[1]}) > WINDOW:  # in turns: each side keeps its latest
            latest = [[one for pair in zip_longest(*latest) for one in pair if one is not None]]
        ids = list(dict.fromkeys(one for part in latest for one in part))[:WINDOW][::-1]
        self.people[to] = Person(
            events=kept,
            offset=total - len(kept),
            stored=len(kept),
            ids=ids,
            attributes=attributes,
            erased_at=target.erased_at,
            sources=target.sources | gone.sources | {source},
            latest=max([target.latest, *(event.time_ms for event in new)]),
        )
        self.people[source] = Person(to=to, erased_at=gone.erased_at)
        for one in gone.sources:  # the way stays short
            self.people[one].to = to

    @rule(user=st.sampled_from(USERS), source=st.sampled_from(USERS), which=st.integers(0, 1))
    def merge_with_full_windows(self, user: str, source: str, which: int) -> None:
        """Neither may push out what the other was told last: it may be sent again."""
        if self.holder(source) != source or self.holder(user) == source:
            return
        said: dict[str, tuple[int, str]] = {}
        for name in (source, user):  # the user last: what was stored last is what a retry comes for
            time_ms = max(self.refused_to(name), self.people[self.holder(name)].latest, 0) + 1
            ids: list[str | None] = [f"{name} {self.number} {turn}" for turn in range(WINDOW)]
            self.append(name, which, [time_ms] * WINDOW, ids, False)
            said[name] = time_ms, str(ids[-1])
        self.merge(user, source)
        for name, (time_ms, event_id) in said.items():
            again = Append(name, [StoredEvent("purchase", time_ms, "again")], [event_id])
            (appended,) = self.run(self.store.append("t", [again]))
            assert appended.user_id == self.holder(user)
            assert appended.flags in ("0", "g")  # what the other's tombstone reaches is not stored either

    @rule(user=st.sampled_from(USERS), country=st.sampled_from(["UK", "France"]))
    def set_attributes(self, user: str, country: str) -> None:
        self.run(self.store.set_attributes("t", user, {"country": country}))
        name = self.holder(user)
        if self.people[name].attributes != {"country": country}:
            self.told[name].append((ATTRIBUTES, {"country": country}))
        self.people[name].attributes = {"country": country}

    def the_log_says_what_happened(self, user: str) -> None:
        key, pp = keys.user_keys("t", user), keys.partition("t", user)
        with redis.Redis.from_url(self.url) as raw:
            records = [parse(int(pp, 16), *entry) for entry in raw.xrange(key.log)]
            epoch = raw.hget(key.meta, "e") or b""
        said: list[tuple[object, ...]] = []
        current = b""
        for record in records:
            if record.user_id != user:
                continue
            if record.kind == EVENT:
                said.append((EVENT, record.event, record.event_id, record.n))
                assert record.epoch == (current or record.epoch)
            elif record.kind == HISTORY:
                said.append((HISTORY, record.event))
                assert record.epoch == current
            elif record.kind == SEQUENCE:
                said.append((SEQUENCE, record.other, record.count, record.attributes))
                assert record.epoch != current
            elif record.kind == ATTRIBUTES:
                said.append((ATTRIBUTES, record.attributes))
                assert record.epoch != current
            elif record.kind == ERASED:
                said.append((ERASED, record.gone_ms))
            else:
                said.append((record.kind, record.other, record.count))
            current = record.epoch  # none after an erasure or a move
        assert said == self.told[user]
        assert current == epoch

    def teardown(self) -> None:
        async def close() -> None:
            for worker in self.workers:
                worker.die()
            await self.store.close()

        try:
            for user in USERS:
                self.read(user, 0)
                self.read(user, 1)
                self.the_log_says_what_happened(user)
        finally:
            self.run(close())
            self.runner.close()


def test_users_stay_what_was_acknowledged_whatever_happens(redis_server: EmbeddedRedis) -> None:
    World.url = redis_server.url
    run_state_machine_as_test(
        World,
        settings=settings(
            max_examples=60,
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            print_blob=True,
        ),
    )
