"""The states that a worker holds: a bounded number of bytes, never an older state of the same fold."""

from app.fold.cache import CachedState, StateCache
from app.state.codec import Header


def state(applied, epoch=b"epoch-01", base=0, size=400):
    return CachedState(Header(epoch, base, applied, 0), bytes(size), 0)


def test_the_oldest_states_give_way_and_a_look_makes_one_young():
    cache = StateCache(3_000)  # three of 400 bytes and what goes with them
    for user in "abc":
        cache.put("t", user, state(1))
    assert cache.get("t", "a") is not None
    cache.put("t", "d", state(1))
    assert [cache.get("t", user) is not None for user in "abcd"] == [True, False, True, True]
    assert len(cache) == 3


def test_replacing_and_dropping_give_their_bytes_back():
    cache = StateCache(2_100)
    for applied in range(100):
        cache.put("t", "a", state(applied))
    cache.put("t", "b", state(1))
    assert len(cache) == 2
    cache.drop("t", "a")
    cache.drop("t", "a")
    cache.put("t", "c", state(1))
    assert [cache.get("t", user) is not None for user in "abc"] == [False, True, True]


def test_a_fold_that_was_slower_does_not_replace_a_newer_state():
    cache = StateCache(10**6)
    cache.put("t", "u", state(5))
    cache.put("t", "u", state(4))
    assert cache.get("t", "u").header.applied == 5


def test_another_epoch_or_another_beginning_replaces_whatever_was_there():
    cache = StateCache(10**6)
    cache.put("t", "u", state(50))
    cache.put("t", "u", state(2, b"epoch-02"))
    assert cache.get("t", "u").header.applied == 2
    cache.put("t", "u", state(1, b"epoch-02", base=1))
    assert cache.get("t", "u").header.base == 1


def test_users_of_two_tenants_are_two_users_and_a_cache_without_bytes_keeps_nothing():
    cache = StateCache(10**6)
    cache.put("t", "u", state(1))
    assert cache.get("s", "u") is None
    empty = StateCache(0)
    empty.put("t", "u", state(1))
    assert len(empty) == 0
