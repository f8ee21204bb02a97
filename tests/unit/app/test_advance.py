"""The background fold and the commits behind it: they outlive every error and lose nothing they were given."""

import asyncio
from types import SimpleNamespace

import pytest

from app.errors import StorageError
from app.fold.commits import Commits
from app.ingest import advance as module
from app.ingest.advance import Advance
from app.state.codec import Header
from app.telemetry import Metrics


def state(applied, epoch=b"epoch-01"):
    return SimpleNamespace(header=Header(epoch, 0, applied, 0), folded=1)


class FlakyUsers:
    """Fails as often as told, then folds."""

    def __init__(self, *errors):
        self.errors = list(errors)
        self.folded = []

    async def current(self, tenant, user_ids, *, by):
        if self.errors:
            raise self.errors.pop(0)
        self.folded.append(list(user_ids))
        return [state(1) for _ in user_ids]


class Sink:
    def __init__(self):
        self.submitted = []

    def submit(self, tenant, user_id, state):
        self.submitted.append(user_id)


@pytest.fixture
async def run():
    tasks = []

    async def start(advance, until):
        tasks.append(asyncio.create_task(advance.run()))
        async with asyncio.timeout(2):
            while not until():  # noqa: ASYNC110 - the fold tells nobody when it is done
                await asyncio.sleep(0.001)

    yield start
    for task in tasks:
        task.cancel()
    assert all(isinstance(end, asyncio.CancelledError) for end in await asyncio.gather(*tasks, return_exceptions=True))


async def test_users_are_folded_in_batches_each_once(run):
    users, sink = FlakyUsers(), Sink()
    advance = Advance(users, sink, 0.0, batch_users=4)
    advance.mark("default", [f"u{i}" for i in range(10)])
    advance.mark("default", ["u0", "u9"])  # again, before the first fold
    await run(advance, lambda: len(sink.submitted) >= 10)
    assert [len(batch) for batch in users.folded] == [4, 4, 2]
    assert sink.submitted == [f"u{i}" for i in range(10)]


async def test_storage_that_was_away_delays_the_fold_and_loses_nobody(run, monkeypatch):
    monkeypatch.setattr(module, "_BACK_OFF_S", 0.0)
    users, sink = FlakyUsers(StorageError("away"), StorageError("away")), Sink()
    advance = Advance(users, sink, 0.0, batch_users=2)
    advance.mark("default", ["a", "b", "c"])
    await run(advance, lambda: len(sink.submitted) >= 3)
    assert sorted(sink.submitted) == ["a", "b", "c"]


async def test_a_user_that_cannot_be_folded_does_not_stop_the_others(run):
    users, sink = FlakyUsers(ValueError("bad state")), Sink()
    advance = Advance(users, sink, 0.0, batch_users=1)
    advance.mark("default", ["bad", "good"])
    await run(advance, lambda: sink.submitted)
    assert sink.submitted == ["good"]


class Store:
    def __init__(self, *errors):
        self.errors = list(errors)
        self.commits = []

    async def commit_many(self, tenant, model_id, blobs):
        await asyncio.sleep(0)
        if self.errors:
            raise self.errors.pop(0)
        self.commits += blobs
        return [True] * len(blobs)


def commits(store, delay_s=0.0):
    packer = SimpleNamespace(pack=lambda state: state.header.applied)
    return Commits(store, packer, "m", Metrics(), delay_s)


async def test_only_the_newest_state_of_a_user_is_committed():
    store = Store()
    pending = commits(store)
    for applied in (3, 5, 4):
        pending.submit("default", "u", state(applied))
    await pending.close()
    assert store.commits == [("u", 5)]


async def test_a_new_epoch_replaces_a_longer_state_of_the_old_one():
    store = Store()
    pending = commits(store)
    pending.submit("default", "u", state(50))
    pending.submit("default", "u", state(2, b"epoch-02"))
    await pending.close()
    assert store.commits == [("u", 2)]


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
