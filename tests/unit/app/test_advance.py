"""The background fold and the commits behind it: they outlive every error, and lose and double nothing they were given."""

import asyncio

import pytest

from app.errors import OverloadedError, StorageError
from app.fold.cache import CachedState, StateCache
from app.fold.commits import Commits
from app.ingest import advance as module
from app.ingest.advance import Advance
from app.state.codec import EPOCH_BYTES, HEADER_BYTES, Header, StateCodec, inflate, peek
from app.telemetry import Metrics

EPOCH, OTHER = b"epoch-01", b"epoch-02"
CODEC = StateCodec([])
assert len(EPOCH) == len(OTHER) == EPOCH_BYTES


def state(applied, epoch=EPOCH, base=0, stored=0):
    header = Header(epoch, base, applied, 0)
    return CachedState(header, CODEC.pack_many([header], {})[0], stored, 0)


class Tape:
    """A fold whose state is the list of all that it folded, kept beside the blobs."""

    def __init__(self):
        self.calls, self.contents, self.errors = [], {}, []

    def __call__(self, work):
        if self.errors:
            raise self.errors.pop(0)
        self.calls.append(len(work))
        done = []
        for user in work:
            before = self.contents[user.state] if user.state is not None else ()
            base = peek(user.state).base if user.state is not None else user.start
            header = Header(user.epoch, base, user.start + len(user.tail), len(self.contents))
            blob = CODEC.pack_many([header], {})[0]
            self.contents[blob] = (*before, *user.tail)
            done.append((header, blob))
        return done


class Users:
    """Keeps what is folded; `current` says who had to be asked for in the store."""

    def __init__(self, cache, *errors):
        self.cache, self.errors, self.asked, self.generation = cache, list(errors), [], 0

    async def current(self, tenant, user_id):
        if self.errors:
            raise self.errors.pop(0)
        self.asked.append(user_id)

    def keep(self, tenant, user_id, header, blob, stored, generation):
        self.cache.put(tenant, user_id, CachedState(header, blob, stored, generation))


class Stand:
    def __init__(self, *errors, **bounds):
        self.cache, self.fold = StateCache(10**6), Tape()
        self.users = Users(self.cache, *errors)
        bounds = {"delay_s": 0.0, "batch_users": 64, "batch_events": 100, "most_events": 1_000} | bounds
        self.advance = Advance(self.users, self.fold, self.cache, Metrics(), **bounds)

    def mark(self, user_id, total, *events, epoch=EPOCH):
        self.advance.mark("default", user_id, epoch, {}, total, events, self.users.generation)

    def folded(self, user_id):
        held = self.cache.get("default", user_id)
        return self.fold.contents[held.blob] if held is not None else None


@pytest.fixture
async def run():
    tasks = []

    async def start(stand, until):
        tasks.append(asyncio.create_task(stand.advance.run()))
        try:
            async with asyncio.timeout(2):
                while not until():  # noqa: ASYNC110 - the fold tells nobody when it is done
                    await asyncio.sleep(0.001)
        except TimeoutError:
            pytest.fail(f"the fold does not come to it; asked for {stand.users.asked}, folded {stand.fold.calls}")

    yield start
    for task in tasks:
        task.cancel()
    assert all(isinstance(end, asyncio.CancelledError) for end in await asyncio.gather(*tasks, return_exceptions=True))


async def test_users_are_folded_in_batches_without_a_word_to_the_store(run):
    stand = Stand(batch_users=4)
    for n in range(10):
        stand.mark(f"u{n}", 1, n)
    stand.mark("u0", 3, "b", "c")  # again, before the first fold
    await run(stand, lambda: stand.folded("u9"))
    assert stand.fold.calls == [4, 4, 2]
    assert [stand.folded(f"u{n}") for n in range(10)] == [(0, "b", "c"), *((n,) for n in range(1, 10))]
    assert stand.users.asked == []


async def test_more_events_of_one_user_than_go_into_a_call_are_left_to_a_thread(run):
    stand = Stand(batch_events=3)
    stand.mark("busy", 4, 1, 2, 3, 4)
    stand.mark("u", 3, 5, 6, 7)
    await run(stand, lambda: stand.folded("u") and stand.users.asked)
    assert stand.users.asked == ["busy"]
    assert stand.folded("u") == (5, 6, 7)
    assert stand.folded("busy") is None


async def test_a_fold_goes_on_where_the_last_one_ended(run):
    stand = Stand()
    stand.mark("u", 2, 1, 2)
    await run(stand, lambda: stand.folded("u"))
    stand.mark("u", 3, 3)
    await run(stand, lambda: len(stand.folded("u")) == 3)
    assert stand.folded("u") == (1, 2, 3)
    assert stand.cache.get("default", "u").header == Header(EPOCH, 0, 3, 1)


async def test_events_that_another_worker_stored_in_between_are_asked_for(run):
    stand = Stand()
    stand.mark("gap", 1, "a")
    stand.mark("gap", 3, "c")  # the second event is not known here
    stand.mark("late", 7, "g")  # and of this user the first six
    stand.mark("fresh", 1, "x")
    await run(stand, lambda: len(stand.users.asked) == 2)
    assert sorted(stand.users.asked) == ["gap", "late"]
    assert stand.folded("fresh") == ("x",)


async def test_a_new_epoch_is_never_folded_onto_the_old_state(run):
    stand = Stand()
    stand.mark("u", 2, 1, 2)
    await run(stand, lambda: stand.folded("u"))
    stand.mark("u", 3, 9, epoch=OTHER)  # after a merge: the first two of the new epoch are not known
    await run(stand, lambda: stand.users.asked)
    assert stand.users.asked == ["u"]


async def test_events_of_two_epochs_are_not_taken_for_one_sequence(run):
    stand = Stand()
    stand.mark("u", 1, 1)
    stand.mark("u", 2, 2, epoch=OTHER)  # other attributes since: all is folded again, from where the first one may not be
    await run(stand, lambda: stand.users.asked)
    assert (stand.users.asked, stand.folded("u")) == (["u"], None)


async def test_a_state_that_is_further_behind_than_what_is_known_is_not_folded_on(run):
    stand = Stand()
    stand.mark("u", 1, 1)
    await run(stand, lambda: stand.folded("u"))
    stand.mark("u", 3, 3)  # the second one went by another worker
    await run(stand, lambda: stand.users.asked)
    assert (stand.users.asked, stand.folded("u")) == (["u"], (1,))


async def test_what_another_server_had_is_asked_for_again(run):
    stand = Stand()
    stand.mark("held", 1, 1)
    await run(stand, lambda: stand.folded("held"))
    stand.mark("waiting", 1, 1)
    stand.users.generation += 1  # it may have lost either
    stand.mark("held", 2, 2)
    stand.mark("new", 1, 1)
    await run(stand, lambda: len(stand.users.asked) == 2)
    assert sorted(stand.users.asked) == ["held", "waiting"]
    assert (stand.folded("held"), stand.folded("new")) == ((1,), (1,))


async def test_a_state_of_what_another_server_had_is_not_committed():
    store = Store()
    pending = commits(store)
    pending.submit("default", "u", state(1))
    store.generation += 1
    await pending.close()
    assert store.commits == []


async def test_what_a_read_folded_meanwhile_is_not_folded_again(run):
    stand = Stand()
    stand.mark("all", 2, 1, 2)
    stand.mark("some", 3, 1, 2, 3)
    for user, part in (("all", (1, 2)), ("some", (1, 2))):
        header = Header(EPOCH, 0, 2, 7)
        blob = CODEC.pack_many([header], {})[0]
        stand.fold.contents[blob] = part
        stand.cache.put("default", user, CachedState(header, blob, 0, 0))
    await run(stand, lambda: len(stand.folded("some")) == 3)
    assert (stand.folded("all"), stand.folded("some")) == ((1, 2), (1, 2, 3))
    assert stand.fold.calls == [1]


async def test_events_are_not_folded_on_where_their_server_was_replaced_before_they_were_acknowledged(run):
    stand = Stand()
    stand.users.generation = 1
    stand.cache.put("default", "u", CachedState(state(1).header, state(1).blob, 0, 1))  # as the new server has it
    stand.advance.mark("default", "u", EPOCH, {}, 2, ["lost"], 0)
    stand.advance.mark("default", "new", EPOCH, {}, 1, ["lost"], 0)
    await run(stand, lambda: len(stand.users.asked) == 2)
    assert stand.fold.calls == []


async def test_storage_that_was_away_delays_the_fold_and_loses_nobody(run, monkeypatch):
    monkeypatch.setattr(module, "_BACK_OFF_S", 0.0)
    stand = Stand(StorageError("away"), StorageError("away"))
    for user in "abc":
        stand.mark(user, 5, "x")  # unknown before: each must be asked for
    await run(stand, lambda: len(stand.users.asked) >= 3)
    assert set(stand.users.asked) == set("abc")


async def test_a_user_that_cannot_be_folded_does_not_stop_the_others(run):
    stand = Stand(batch_users=1)
    stand.fold.errors.append(ValueError("bad event"))
    stand.mark("bad", 1, 1)
    stand.mark("good", 1, 1)
    await run(stand, lambda: stand.folded("good"))
    assert stand.folded("bad") is None


async def test_writes_wait_while_the_fold_is_too_far_behind(run):
    stand = Stand(most_events=3)
    stand.mark("u", 2, 1, 2)
    await stand.advance.room(0.0)
    stand.mark("v", 2, 1, 2)  # now there are four
    with pytest.raises(OverloadedError, match="4 events"):
        await stand.advance.room(0.01)
    waiting = asyncio.create_task(stand.advance.room(2.0))
    await asyncio.sleep(0.01)
    assert not waiting.done()
    await run(stand, lambda: stand.folded("v"))
    await waiting


async def test_events_of_users_whom_others_write_too_are_as_many_as_have_come(run, monkeypatch):
    monkeypatch.setattr(module, "_BACK_OFF_S", 0.0)
    stand = Stand(StorageError("away"), StorageError("away"), most_events=3)
    for total in (1, 5, 9):  # of all that came in between this worker knows nothing
        await stand.advance.room(0.0)
        stand.mark("hot", total, "x")
    with pytest.raises(OverloadedError, match="3 events"):
        await stand.advance.room(0.01)
    await run(stand, lambda: stand.users.asked)
    await stand.advance.room(0.0)
    assert stand.users.asked == ["hot"]
    assert stand.advance._waiting == 0


async def test_a_fold_that_was_stopped_in_the_middle_refuses_no_write_and_goes_on_when_it_begins_again(run):
    # a model that is active again: were what had waited not folded, no write would ever have room, and none wake the fold
    stand = Stand(batch_users=1, most_events=2)
    for user in "abcd":
        stand.mark(user, 1, 1)
    began = asyncio.create_task(stand.advance.run())
    while not stand.folded("a"):  # noqa: ASYNC110 - the fold tells nobody when it is done
        await asyncio.sleep(0)
    waiting = asyncio.create_task(stand.advance.room(2.0))
    await asyncio.sleep(0)
    began.cancel()
    await asyncio.gather(began, return_exceptions=True)
    assert stand.folded("d") is None
    async with asyncio.timeout(1):
        await waiting
    await run(stand, lambda: stand.folded("d"))


class Store:
    def __init__(self, *errors, results=()):
        self.errors, self.results = list(errors), list(results)
        self.commits, self.generation = [], 0

    async def commit_many(self, tenant, model_id, blobs, only):
        assert only == self.generation
        await asyncio.sleep(0)
        if self.errors:
            raise self.errors.pop(0)
        self.commits += [(user, peek(blob).applied) for user, blob in blobs]
        assert all(inflate(blob, HEADER_BYTES) for _, blob in blobs)
        return [self.results.pop(0) if self.results else "stored" for _ in blobs]


def commits(store, cache=None, every=1, delay_s=0.0):
    return Commits(store, StateCache(10**6) if cache is None else cache, "m", Metrics(), every=every, delay_s=delay_s)


async def test_only_the_newest_state_of_a_user_is_committed():
    store = Store()
    pending = commits(store)
    for applied in (3, 5):
        pending.submit("default", "u", state(applied))
    await pending.close()
    assert store.commits == [("u", 5)]


async def test_a_state_is_committed_when_it_is_far_enough_ahead_of_the_stored_one():
    store = Store()
    pending = commits(store, every=32)
    pending.submit("default", "near", state(131, stored=100))
    pending.submit("default", "far", state(132, stored=100))
    await pending.close()
    assert store.commits == [("far", 132)]


async def test_the_next_commit_counts_from_the_last_one():
    store, cache = Store(), StateCache(10**6)
    pending = commits(store, cache, every=10)
    cache.put("default", "u", state(10))
    pending.submit("default", "u", cache.get("default", "u"))
    cache.put("default", "u", state(12))  # the fold has gone on meanwhile
    await asyncio.sleep(0.02)
    held = cache.get("default", "u")
    assert (held.header.applied, held.stored) == (12, 10)
    await pending.close()


async def test_a_state_that_is_refused_is_forgotten():
    store, cache = Store(results=["refused", "overtaken"]), StateCache(10**6)
    pending = commits(store, cache)
    for user in ("gone", "behind"):
        cache.put("default", user, state(5))
        pending.submit("default", user, state(5))
    await pending.close()
    assert cache.get("default", "gone") is None
    assert cache.get("default", "behind").stored == 5


async def test_closing_commits_what_still_waits():
    store = Store()
    pending = commits(store, delay_s=60.0)
    pending.submit("default", "u", state(1))
    await asyncio.sleep(0.01)
    assert store.commits == []
    await pending.close()
    assert store.commits == [("u", 1)]


@pytest.mark.parametrize("error", [StorageError("away"), RuntimeError("bug")])
async def test_a_failed_commit_raises_nowhere_and_the_next_one_works(error):
    store = Store(error)
    pending = commits(store)
    pending.submit("default", "u", state(1))
    await asyncio.sleep(0.02)
    pending.submit("default", "u", state(2))
    await asyncio.sleep(0.02)
    assert store.commits == [("u", 2)]
    await pending.close()
