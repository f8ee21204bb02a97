from __future__ import annotations

import re
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st
from redis.crc import key_slot

from app.state import keys

# Characters that mean something in a key, and those that encoders get wrong; lone surrogates too.
nasty = st.text(alphabet=st.sampled_from(":{}%/ .~-_+aA0\x00\n\x7fé€😀\ud800\udfff"), max_size=6)
ids = nasty | st.text(max_size=8)


def every_key(tenant: str, user: str, model: str) -> list[str]:
    of_user = keys.user_keys(tenant, user)
    return [of_user.seq, of_user.meta, of_user.ids, of_user.shown, of_user.gone, keys.state_key(tenant, model, user)]


@given(st.tuples(ids, ids), st.tuples(ids, ids), ids)
def test_two_users_never_share_a_key(one: tuple[str, str], other: tuple[str, str], model: str):
    shared = set(every_key(*one, model)) & set(every_key(*other, model))
    assert bool(shared) == (one == other)


@given(st.tuples(ids, ids, ids), st.tuples(ids, ids, ids))
def test_two_states_never_share_a_key(one: tuple[str, str, str], other: tuple[str, str, str]):
    assert (keys.state_key(*one) == keys.state_key(*other)) == (one == other)


@given(ids, ids, ids)
def test_kinds_of_keys_never_meet_whatever_the_ids(tenant: str, user: str, model: str):
    shared = [keys.user_keys(tenant, user).log, keys.LAYOUT_KEY, keys.popularity_key(tenant, [])]
    names = [*every_key(tenant, user, model), *shared]
    assert len(set(names)) == len(names)


@given(ids, ids, ids)
def test_all_keys_of_a_user_have_one_hash_tag(tenant: str, user: str, model: str):
    # Redis Cluster hashes what stands between the first { and the next }: an id with a brace must not move a key elsewhere.
    tags = {re.search(r"\{(.*?)\}", key).group(1) for key in [*every_key(tenant, user, model), keys.user_keys(tenant, user).log]}
    assert tags == {keys.partition(tenant, user)}


def test_partitions_are_the_same_in_every_version():
    # Stored data depends on these: a change loses every user.
    assert [keys.partition("default", user) for user in ("alice", "bob", "é:{}")] == ["6b", "1e", "44"]
    assert keys.user_keys("default", "é:{}").seq == "lw:{44}:default:seq:%C3%A9%3A%7B%7D"


def test_users_spread_evenly_over_256_partitions():
    counts = Counter(keys.partition("default", str(user)) for user in range(25_600))
    assert len(counts) == keys.PARTITIONS
    assert max(counts.values()) < 160  # 100 expected, standard deviation 10


def test_models_with_other_half_lives_count_popularity_apart():
    assert keys.popularity_key("default", [86_400.0]) != keys.popularity_key("default", [86_400.0, 604_800.0])


def test_a_key_says_whose_it_is_and_what_is_in_it():
    user = keys.user_keys("ten:ant", "ann:{1}\ud800")
    state = keys.state_key("ten:ant", "m:1", "ann:{1}\ud800")
    for key, kind in [(user.seq, "list"), (user.meta, "hash"), (user.ids, "string"), (state, "string")]:
        assert (keys.user_of(key), keys.type_of(key)) == (("ten:ant", "ann:{1}\ud800"), kind)
    assert (keys.user_of(user.gone), keys.type_of(user.gone)) == (None, "string")
    assert (keys.user_of(user.log), keys.type_of(user.log)) == (None, "stream")
    for key in (keys.LAYOUT_KEY, keys.MODEL_KEY, keys.WORKERS_KEY, keys.popularity_key("t", [1.0])):
        assert (keys.user_of(key), keys.type_of(key)) == (None, None)


def test_what_one_script_touches_of_the_catalogue_is_in_one_slot():
    for tenant in ("default", "a:b{c}"):
        assert key_slot(keys.items_key(tenant).encode()) == key_slot(keys.item_changes_key(tenant).encode())
