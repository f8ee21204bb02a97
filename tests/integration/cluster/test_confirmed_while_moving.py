"""What replicas confirm while a slot moves. Valkey, which counts a connection's writes alone: who has found everything stored
already, and has written nothing, would wait for nothing."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

import pytest
from on_cluster import close, numbered, users_of
from redis_cluster import Node, RedisCluster, slot_of
from redis_process import valkey_server

from app.errors import StorageError
from app.state.redis import RedisStore
from app.state.store import Append
from app.state.transport import Confirm

OpenStore = Callable[..., Awaitable[RedisStore]]

PP = "00"
SLOT = slot_of(f"{{{PP}}}")
FIRST, LAST = users_of(PP, 2)
SYNC = f"lw:{{{PP}}}:sync"


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisCluster]:
    with RedisCluster(tmp_path_factory.mktemp("valkeys"), binary=valkey_server()) as cluster:
        yield cluster


@pytest.fixture
def valkeys(running: RedisCluster) -> RedisCluster:
    running.heal()
    return running


@pytest.fixture
async def open_on_valkeys(valkeys: RedisCluster) -> AsyncIterator[OpenStore]:
    stores = []

    async def open_one(**settings: object) -> RedisStore:
        stores.append(RedisStore(valkeys.url, cluster=True, **settings))  # type: ignore[arg-type]
        await stores[-1].open()
        return stores[-1]

    yield open_one
    for store in stores:
        await close(store)


async def append(store: RedisStore, *sent: tuple[str, str]) -> list[str]:
    """Send (user, event id); returns what became of each."""
    answers = await store.append("default", [Append(user, [numbered(id_)], [id_]) for user, id_ in sent])
    return [str(answer) if isinstance(answer, Exception) else answer.flags for answer in answers]


async def known(store: RedisStore, *users: str) -> None:
    """Let the users have every key that an append asks for: while a slot moves, who has some of them has to wait."""
    for user in users:
        await store.erase("default", user, 1)
    assert set(await append(store, *((user, "a") for user in users))) == {"1"}


def other_master(cluster: RedisCluster) -> Node:
    return next(master for master in cluster.masters if master is not cluster.owner(SLOT))


def pp_at(node: Node, cluster: RedisCluster) -> str:
    """Another partition, which this node has."""
    return next(pp for pp in (f"{n:02x}" for n in range(1, 256)) if cluster.owner(slot_of(f"{{{pp}}}")) is node)


async def test_a_retry_at_the_node_that_a_slot_moves_to_is_confirmed_by_its_replica(
    valkeys: RedisCluster, open_on_valkeys: OpenStore
):
    store, careless = await open_on_valkeys(confirm=Confirm(1, False, 200)), await open_on_valkeys()
    await known(store, LAST)
    target = other_master(valkeys)
    with valkeys.moving(SLOT, target) as move:
        move.migrate(move.keys())
        assert await append(store, (LAST, "b")) == ["1"]  # by the replica of the target
        replica = valkeys.replica(slot_of(f"{{{pp_at(target, valkeys)}}}"))
        replica.pause()  # and stays connected, with what it had
        assert await append(careless, (LAST, "c")) == ["1"]
        for _ in range(2):
            with pytest.raises(StorageError, match="confirmed by 0 of 1 replicas"):
                await append(store, (LAST, "c"))
        replica.resume()
        valkeys.await_settled()
        assert await append(store, (LAST, "c")) == ["0"]


async def test_a_retry_is_confirmed_whatever_became_of_the_slot_of_the_last_user(
    valkeys: RedisCluster, open_on_valkeys: OpenStore
):
    store, careless = await open_on_valkeys(confirm=Confirm(1, False, 200)), await open_on_valkeys()
    source, target = valkeys.owner(SLOT), other_master(valkeys)
    assert source is not None
    (stays,) = users_of(pp_at(source, valkeys), 1)
    await known(store, stays, LAST)
    replica = valkeys.replica(SLOT)
    valkeys.move_slot(SLOT, target)  # which the store does not know yet
    replica.pause()  # and stays connected, with what it had
    assert await append(careless, (stays, "b")) == ["1"]
    for n in range(2):
        with pytest.raises(StorageError, match="confirmed by 0 of 1 replicas"):
            await append(store, (stays, "b"), (LAST, f"{n}"))
    replica.resume()
    valkeys.await_settled()
    assert await append(store, (stays, "b"), (LAST, "1")) == ["0", "1"]


async def test_writes_on_both_sides_of_a_moving_slot_are_confirmed_at_once_and_do_not_hold_it_up(
    valkeys: RedisCluster, open_on_valkeys: OpenStore
):
    store = await open_on_valkeys(confirm=Confirm(1, False, 2_000))
    await known(store, FIRST, LAST)
    with valkeys.moving(SLOT) as move:
        assert SYNC.encode() in move.keys()  # noqa: SIM118 - no dictionary
        move.migrate([SYNC])  # before anything else: the source is not asked for it any more
        assert await append(store, (FIRST, "b"), (LAST, "b")) == ["1", "1"]
        assert await append(store, (FIRST, "b"), (LAST, "b")) == ["0", "0"]
        move.migrate(move.keys())
        assert await append(store, (FIRST, "c"), (LAST, "c")) == ["1", "1"]
        assert await append(store, (FIRST, "c"), (LAST, "c")) == ["0", "0"]
        assert move.keys() == []
    assert await append(store, (FIRST, "c"), (LAST, "d")) == ["0", "1"]
