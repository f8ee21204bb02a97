"""What may happen to a cluster under a store: nothing acknowledged is lost or doubled, and no error is but a StorageError."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

import pytest
from on_cluster import Writers, numbered, users_of
from redis_cluster import RedisCluster, slot_of

from app.errors import StorageError
from app.state import keys
from app.state.redis import RedisStore
from app.state.store import Append
from app.state.transport import Confirm

OpenStore = Callable[..., Awaitable[RedisStore]]

PP = "00"
SLOT = slot_of(f"{{{PP}}}")
OF_SLOT = users_of(PP, 20)
OTHERS = [user for pp in ("01", "55", "aa", "ff") for user in users_of(pp, 5)]
EVERYWHERE = [f"user {n}" for n in range(2_000)]


async def append(store: RedisStore, user: str, id_: str) -> int:
    ((appended),) = await store.append("default", [Append(user, [numbered(id_)], [id_])])
    return appended.total


def elsewhere(cluster: RedisCluster) -> str:
    """A user of another master than that of SLOT."""
    return next(
        user for user in OTHERS if cluster.client_of(keys.user_keys("default", user).seq) is not cluster.client_of(f"{{{PP}}}")
    )


async def test_a_batch_over_all_partitions_is_stored_whole_and_once(cluster: RedisCluster, open_on_cluster: OpenStore):
    store = await open_on_cluster()
    assert {keys.partition("default", user) for user in EVERYWHERE} == {f"{pp:02x}" for pp in range(256)}
    batches = [Append(user, [numbered(user)] * 2, [f"{user} 0", f"{user} 1"]) for user in EVERYWHERE]
    assert {(one.flags, one.total) for one in await store.append("default", batches)} == {("11", 2)}
    assert {(one.flags, one.total) for one in await store.append("default", batches)} == {("00", 2)}
    logged = sum(master.client.xlen(key) for master in cluster.masters for key in master.client.keys("lw:*:log"))
    assert logged == 4_000


async def test_nodes_that_forget_their_scripts_run_each_call_once(cluster: RedisCluster, open_on_cluster: OpenStore):
    # No event ids: a call that ran twice would show.
    store = await open_on_cluster()

    async def forget() -> None:
        for n in range(100):
            cluster.masters[n % 3].ask("SCRIPT", "FLUSH")
            await asyncio.sleep(0.002)

    forgetting = asyncio.create_task(forget())
    for n in range(1, 11):
        batches = [Append(user, [numbered("")], [None]) for user in EVERYWHERE[:200]]
        assert {one.total for one in await store.append("default", batches)} == {n}
    await forgetting


async def test_a_user_in_the_middle_of_a_move_is_waited_for_not_answered_wrongly(
    cluster: RedisCluster, open_on_cluster: OpenStore
):
    store = await open_on_cluster()
    await append(store, OF_SLOT[0], "a")
    user = keys.user_keys("default", OF_SLOT[0])
    with cluster.moving(SLOT) as move:
        move.migrate([user.seq])  # meta is still at the source
        reading = asyncio.create_task(store.load("default", "m", [OF_SLOT[0]]))
        writing = asyncio.create_task(append(store, OF_SLOT[0], "b"))
        await asyncio.sleep(0.1)
        assert not reading.done()
        assert not writing.done()
        await asyncio.to_thread(move.finish)
        (loaded,) = await reading
        assert [event.basket_id for event in loaded.tail][:1] == ["a"]
        assert await writing == 2


async def test_a_slot_that_takes_too_long_to_move_is_a_storage_error_for_its_users_alone(
    cluster: RedisCluster, open_on_cluster: OpenStore
):
    store = await open_on_cluster(timeout_ms=300)
    await append(store, OF_SLOT[0], "a")
    with cluster.moving(SLOT) as move:
        move.migrate([keys.user_keys("default", OF_SLOT[0]).meta])
        slow = asyncio.create_task(append(store, OF_SLOT[0], "b"))
        for n in range(20):
            assert await append(store, OTHERS[0], f"{n}") == n + 1
        with pytest.raises(StorageError):
            await slow
    assert await append(store, OF_SLOT[0], "b") == 2


async def test_slots_that_move_under_writes_lose_and_double_nothing(cluster: RedisCluster, open_on_cluster: OpenStore):
    store = await open_on_cluster()
    writers = Writers(store, [*OF_SLOT, *OTHERS])
    writers.start()
    for pp in (PP, "55", PP):
        await writers.more(200)
        slot = slot_of(f"{{{pp}}}")
        target = next(master for master in cluster.masters if master is not cluster.owner(slot))
        await asyncio.to_thread(cluster.move_slot, slot, target, step=3, between=lambda: time.sleep(0.01))
    await writers.more(200)
    await writers.stop()
    assert writers.check(cluster) == (set(), set())


async def test_a_killed_master_costs_nothing_that_a_replica_had_confirmed(cluster: RedisCluster, open_on_cluster: OpenStore):
    store = await open_on_cluster(confirm=Confirm(1, False, 500))
    writers = Writers(store, [*OF_SLOT, *OTHERS])
    writers.start()
    await writers.more(200)
    cluster.kill_master(SLOT)
    await asyncio.to_thread(cluster.wait_failover, SLOT)
    cluster.revive()  # without a replica nothing is confirmed
    await writers.more(200)
    await writers.stop()
    assert writers.refusals > 0
    assert writers.check(cluster) == (set(), set())


@pytest.mark.parametrize("replicas", [1, 0])
async def test_a_failover_to_a_replica_that_was_cut_off_loses_what_was_not_confirmed_and_nothing_else(
    cluster: RedisCluster, open_on_cluster: OpenStore, replicas: int
):
    store = await open_on_cluster(confirm=Confirm(replicas, False, 100))
    writers = Writers(store, [*OF_SLOT, *OTHERS])
    writers.start()
    await writers.more(100)
    replica = cluster.cut_off_replica(SLOT)
    await asyncio.sleep(0.3)
    cluster.kill_master(SLOT)
    cluster.take_over(replica)
    cluster.revive()
    await writers.more(100)
    await writers.stop()
    lost, doubled = writers.check(cluster)
    assert bool(lost) == (replicas == 0)
    assert doubled == set()


async def test_what_no_replica_has_is_not_acknowledged_and_known_to_a_retry(cluster: RedisCluster, open_on_cluster: OpenStore):
    store = await open_on_cluster(confirm=Confirm(1, False, 200))
    replica = cluster.cut_off_replica(SLOT)
    for _ in range(2):  # the retry writes nothing any more: it must not take that for confirmed
        with pytest.raises(StorageError, match="confirmed by 0 of 1 replicas"):
            await append(store, OF_SLOT[0], "a")
    assert await append(store, elsewhere(cluster), "a") == 1
    replica.resume()
    cluster.await_settled()
    assert await append(store, OF_SLOT[0], "a") == 1


async def test_a_master_that_hangs_holds_up_its_own_users_alone(cluster: RedisCluster, open_on_cluster: OpenStore):
    store = await open_on_cluster(timeout_ms=400)
    other = elsewhere(cluster)
    for user in (OF_SLOT[0], other):
        await append(store, user, "a")
    owner = cluster.owner(SLOT)
    assert owner is not None
    owner.pause()
    hanging = [asyncio.create_task(append(store, user, "b")) for user in OF_SLOT]
    for n in range(20):
        assert await append(store, other, f"{n}") == n + 2
    assert {type(result) for result in await asyncio.gather(*hanging, return_exceptions=True)} == {StorageError}
    for n in range(20, 40):  # now the store knows that something is wrong, and asks where the slots are
        assert await append(store, other, f"{n}") == n + 2


async def test_in_one_round_trip_only_the_users_of_a_master_that_hangs_fail(cluster: RedisCluster, open_on_cluster: OpenStore):
    store = await open_on_cluster(timeout_ms=400)
    users = [*OF_SLOT, *OTHERS]
    batches = [Append(user, [numbered("a")], ["a"]) for user in users]
    await store.append("default", batches)
    owner = cluster.owner(SLOT)
    assert owner is not None
    hung = {user for user in users if cluster.owner(slot_of(keys.user_keys("default", user).seq)) is owner}
    assert set(OF_SLOT) <= hung < set(users)
    owner.pause()
    again = [Append(user, [numbered("b")], ["b"]) for user in users]
    found = dict(zip(users, await store.append("default", again), strict=True))
    owner.resume()
    cluster.await_settled()
    assert {user for user, one in found.items() if isinstance(one, StorageError)} == hung
    assert {one.total for user, one in found.items() if user not in hung} == {2}
    # Sent again, as clients do: whatever the one that hung has done of it.
    assert {one.total for one in await store.append("default", again)} == {2}
    assert await store.append("default", again) == await store.append("default", again)


async def test_a_cluster_of_which_no_node_answers_is_one_error(cluster: RedisCluster, open_on_cluster: OpenStore):
    store = await open_on_cluster(timeout_ms=400)
    batches = [Append(user, [numbered("a")], ["a"]) for user in EVERYWHERE[:50]]
    await store.append("default", batches)
    masters = cluster.masters
    for master in masters:
        master.pause()
    with pytest.raises(StorageError):
        await store.append("default", batches)
    for master in masters:
        master.resume()
    cluster.await_settled()
