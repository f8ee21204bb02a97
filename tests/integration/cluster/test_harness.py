"""The cluster that the other tests rely on does what it says: moves, dies, loses and comes back as a real one."""

from __future__ import annotations

from contextlib import suppress

import pytest
import redis
from redis.exceptions import AskError, MovedError, TryAgainError
from redis_cluster import SLOTS, RedisCluster, slot_of

TAG = "{00}"
SLOT = slot_of(TAG)
TOUCH = "return redis.call('EXISTS', KEYS[1], KEYS[2])"


def fill(cluster: RedisCluster, keys: int) -> None:
    owner = cluster.owner(SLOT)
    assert owner is not None
    for n in range(keys):
        owner.client.set(f"{TAG}{n}", n)


def test_three_masters_share_the_slots_and_each_has_a_replica(cluster: RedisCluster):
    assert len(cluster.masters) == 3
    assert {cluster.owner(slot) for slot in range(0, SLOTS, 64)} == set(cluster.masters)
    assert {cluster.replica(slot) for slot in range(0, SLOTS, 64)} == set(cluster.nodes) - set(cluster.masters)


def test_a_cluster_client_finds_everything(cluster: RedisCluster):
    with redis.RedisCluster.from_url(cluster.url) as client:
        for n in range(50):
            client.set(f"key {n}", n)
    assert sum(master.client.dbsize() for master in cluster.masters) == 50
    assert all(master.client.dbsize() for master in cluster.masters)


def test_a_moving_slot_asks_its_clients_to_go_on_and_to_try_again(cluster: RedisCluster):
    fill(cluster, 3)
    with cluster.moving(SLOT) as move:
        move.migrate([f"{TAG}1"])
        assert move.source.client.get(f"{TAG}0") == b"0"
        with pytest.raises(AskError):
            move.source.client.get(f"{TAG}1")
        with pytest.raises(TryAgainError), move.target.client.pipeline(transaction=False) as pipeline:
            pipeline.execute_command("ASKING").eval(TOUCH, 2, f"{TAG}1", f"{TAG}0").execute()
    assert cluster.owner(SLOT) is move.target
    assert move.target.client.dbsize() == 3


def test_a_slot_moves_with_all_its_keys_in_steps(cluster: RedisCluster):
    fill(cluster, 25)
    steps = []
    target = next(master for master in cluster.masters if master is not cluster.owner(SLOT))
    cluster.move_slot(SLOT, target, step=10, between=lambda: steps.append(target.client.dbsize()))
    assert steps == [10, 20, 25]
    assert cluster.owner(SLOT) is target


def test_a_move_that_a_test_left_unfinished_is_gone_after_healing(cluster: RedisCluster):
    fill(cluster, 3)
    source = cluster.owner(SLOT)
    with suppress(ZeroDivisionError), cluster.moving(SLOT) as move:
        move.migrate([f"{TAG}1"])
        raise ZeroDivisionError
    cluster.heal()
    assert cluster.owner(SLOT) is source
    fill(cluster, 3)  # no ASK any more


def test_a_killed_master_is_followed_by_its_replica_without_help(cluster: RedisCluster):
    fill(cluster, 3)
    replica = cluster.replica(SLOT)
    owner = cluster.owner(SLOT)
    assert owner is not None
    assert owner.client.wait(1, 5_000) == 1
    cluster.kill_master(SLOT)
    assert cluster.wait_failover(SLOT) is replica
    assert replica.client.dbsize() == 3
    cluster.heal()
    assert cluster.replica(SLOT) is owner


def test_what_a_replica_never_got_is_lost_when_it_takes_over(cluster: RedisCluster):
    fill(cluster, 3)
    replica = cluster.cut_off_replica(SLOT)
    fill(cluster, 10)
    cluster.kill_master(SLOT)
    cluster.take_over(replica)
    cluster.wait_failover(SLOT)
    assert replica.client.dbsize() == 3


def test_a_paused_master_is_replaced_and_comes_back_as_a_replica(cluster: RedisCluster):
    owner, replica = cluster.owner(SLOT), cluster.replica(SLOT)
    assert owner is not None
    owner.pause()
    assert cluster.wait_failover(SLOT) is replica
    owner.resume()
    cluster.await_settled()
    with pytest.raises(MovedError):
        owner.client.set(f"{TAG}0", 0)
