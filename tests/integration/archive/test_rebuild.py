"""States that remember from the very beginning, made from the archive: exact, and taken over by the workers."""

from __future__ import annotations

import random

import numpy as np
import pytest

from app.archive.histories import histories
from app.archive.rebuild import rebuild
from app.fold import Commits, Fold, StateCache, Unfolded, Users
from app.models.served import fold_of
from app.models.shelf import load_model
from app.runtime.session import Runtime
from app.settings import load_settings
from app.state import keys
from app.state.codec import Header, peek
from app.state.events import StoredEvent
from app.state.store import Append
from app.telemetry import Metrics

MAX_SEQUENCE = 50
USERS = [f"user {n}" for n in range(5)]


@pytest.fixture(scope="module")
def runtime(tiny_bundle) -> Runtime:
    return load_model(tiny_bundle, "cpu", 1)


@pytest.fixture
async def store(open_store):
    return await open_store(max_sequence=MAX_SEQUENCE, log_max_length=0)


@pytest.fixture
async def fold(runtime, store) -> Fold:
    return await fold_of(runtime, load_settings(), store)


def events(count, seed):
    rng = random.Random(seed)
    return [
        StoredEvent("purchase", 1_300_000_000_000 + 60_000 * n, f"item-{rng.randrange(60):03d}", quantity=rng.randrange(1, 5))
        for n in range(count)
    ]


async def told(store, user, made):
    for start in range(0, len(made), 40):
        some = made[start : start + 40]
        await store.append("default", [Append(user, some, [None] * len(some))])


def worker(store, fold, cache_bytes=10**6):
    cache = StateCache(cache_bytes)
    commits = Commits(store, cache, "m", Metrics(), every=1, delay_s=60.0)
    return Users(store, fold, cache, commits, "m", Metrics()), commits


def assert_folds(fold, blob, attributes, made):
    ((_, whole),) = fold([Unfolded(peek(blob).epoch, attributes, None, made, 0)])
    found, expected = fold.tensors([blob]), fold.tensors([whole])
    for name, array in found.items():
        np.testing.assert_allclose(array, expected[name], rtol=1e-5, atol=1e-4, err_msg=name)


async def test_a_lost_state_is_rebuilt_from_its_very_first_event(store, fold, archive, make_archiver):
    made = {user: events(30 + 60 * n, n) for n, user in enumerate(USERS)}
    for user, of_user in made.items():
        await told(store, user, of_user)
    await store.set_attributes("default", USERS[1], {"country": "France"})
    make_archiver().once()
    late = events(3, 99)
    await told(store, USERS[2], late)  # not archived yet
    # No state was ever stored: a read can only begin with what the bounded sequence has.
    lost = await worker(store, fold)[0].current("default", USERS[4])
    assert lost.header.base == len(made[USERS[4]]) - MAX_SEQUENCE > 0

    result = await rebuild(histories(archive), store, fold, "m")
    assert (result.stored, result.current, result.differs) == (5, 0, 0)
    for user in USERS:
        whole = made[user] + (late if user == USERS[2] else [])
        state = await worker(store, fold)[0].current("default", user)
        assert (state.header.base, state.header.applied) == (0, len(whole))
        assert_folds(fold, state.blob, {"country": "France"} if user == USERS[1] else {}, whole)
    again = await rebuild(histories(archive), store, fold, "m")
    assert (again.stored, again.current, again.differs) == (0, 5, 0)


async def test_a_worker_that_holds_a_shorter_memory_takes_the_longer_one_over(store, fold, archive, make_archiver):
    made = events(200, 1)
    await told(store, "u", made)
    users, commits = worker(store, fold)
    assert (await users.current("default", "u")).header.base == 150
    make_archiver().once()
    await rebuild(histories(archive), store, fold, "m")
    more = events(1, 2)
    await told(store, "u", more)
    await users.current("default", "u")
    await commits.flush()  # refused: what is stored remembers more
    state = await users.current("default", "u")
    assert state.header == Header(state.header.epoch, 0, 201, 0)
    assert_folds(fold, state.blob, {}, made + more)


async def test_a_user_who_is_not_as_archived_is_left_alone(store, fold, archive, make_archiver, raw):
    for user in USERS[:2]:
        await told(store, user, events(60, 1))
    make_archiver().once()
    await store.erase("default", USERS[0], 2_000_000_000_000)
    await store.set_attributes("default", USERS[1], {"country": "Norway"})  # another epoch, which is not archived yet
    result = await rebuild(histories(archive), store, fold, "m")
    assert (result.stored, result.differs) == (0, 2)
    assert list(raw.scan_iter("lw:*:state:*")) == []


@pytest.mark.parametrize("kind", ["seq", "meta"])
async def test_one_damaged_user_keeps_no_other_from_being_rebuilt(store, fold, archive, make_archiver, raw, kind):
    for user in USERS:
        await told(store, user, events(60, 1))
    make_archiver().once()
    name = getattr(keys.user_keys("default", USERS[2]), kind)
    raw.delete(name)
    raw.set(name, "a hand that slipped")
    result = await rebuild(histories(archive), store, fold, "m")
    assert (result.stored, result.differs) == (len(USERS) - 1, 1)


async def test_who_was_merged_is_rebuilt_but_where_what_had_left_before_is_dated_later(store, fold, archive, make_archiver):
    first = events(60, 1)
    ahead = StoredEvent("purchase", 1_400_000_000_000, "item-001", quantity=1.0)  # dated later than all, told first
    await told(store, USERS[0], first)
    await told(store, USERS[1], [ahead, *first])
    for user, cookie in ((USERS[0], "cookie 0"), (USERS[1], "cookie 1")):
        await told(store, cookie, events(70, 2))  # of which the first 20 have left, too
        await store.merge("default", user, cookie)
    make_archiver().once()
    result = await rebuild(histories(archive), store, fold, "m")
    assert (result.stored, result.differs) == (1, 1)
    together = sorted([*first, *events(70, 2)[20:]], key=lambda one: one.time_ms)
    state = await worker(store, fold)[0].current("default", USERS[0])
    assert (state.header.base, state.header.applied) == (0, 110)
    assert_folds(fold, state.blob, {}, together)
    state = await worker(store, fold)[0].current("default", USERS[1])
    assert (state.header.base, state.header.applied) == (111 - MAX_SEQUENCE, 111)
