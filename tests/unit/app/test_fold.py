"""The fold as arithmetic: however events are cut and users are grouped, the state is the same."""

import random
from dataclasses import replace

import numpy as np
import pytest

import app.fold.fold as module
from app.catalogue.catalogue import Catalogue, item_key
from app.fold.fold import CHUNK, Fold, Unfolded, _groups
from app.fold.tensors import EventTensors
from app.runtime.bundle import read_bundle
from app.runtime.session import open_runtime
from app.state.codec import StateCodec, deflate, peek
from app.state.events import StoredEvent

START_MS = 1_300_000_000_000


@pytest.fixture(scope="module")
def tensors(runtime):
    return EventTensors(runtime.bundle.manifest, catalogue_of(runtime.bundle), None)


@pytest.fixture(scope="module")
def runtime(tiny_bundle):
    return open_runtime(read_bundle(tiny_bundle), "cpu", 1)


@pytest.fixture(scope="module")
def fold(runtime, tensors):
    return Fold(runtime, catalogue_of(runtime.bundle), StateCodec(runtime.bundle.manifest.state), tensors)


def catalogue_of(bundle):
    ids, titles = [item.id for item in bundle.items], [item.title for item in bundle.items]
    return Catalogue(ids, titles, [()] * len(ids), bundle.vectors, bundle.bias)


def events(n, seed=0):
    rng = random.Random(seed)
    time_ms, made = START_MS, []
    for _ in range(n):
        time_ms += rng.choice([0, 1_000, 3_600_000, -500])
        kind = rng.choice(["purchase", "view", "cancellation"])
        made.append(StoredEvent(kind, time_ms, f"item-{rng.randrange(60):03d}", quantity=rng.choice([None, 2.0])))
    return made


def user(tail, state=None, start=0, attributes=None):
    return Unfolded(b"epoch-01", attributes or {}, state, tail, start)


@pytest.fixture(scope="module")
def assert_same(fold):
    def same(one, other):
        assert one[0] == other[0]
        tensors, expected = fold.tensors([one[1]]), fold.tensors([other[1]])
        for name, array in tensors.items():
            np.testing.assert_allclose(array, expected[name], rtol=1e-5, atol=1e-4, err_msg=name)

    return same


@pytest.mark.parametrize("cuts", [[1] * 30, [29, 1], [1, 29], [7, 0, 11, 12]])
def test_any_cut_through_the_stored_state_gives_the_state_of_the_whole(fold, assert_same, cuts):
    made = events(30)
    (whole,) = fold([user(made)])
    blob, position = None, 0
    for cut in cuts:
        (state,) = fold([user(made[position : position + cut], blob, position)])
        blob, position = state[1], position + cut
    assert_same(state, whole)


def test_a_history_longer_than_a_chunk_carries_its_state_over(fold, assert_same):
    made = events(2 * CHUNK + 3)
    (whole,) = fold([user(made)])
    (first,) = fold([user(made[:700])])
    (rest,) = fold([user(made[700:], first[1], 700)])
    assert_same(rest, whole)
    assert whole[0].applied == len(made)


def test_a_user_folds_alike_alone_and_among_others(fold, assert_same):
    users = []
    for seed, (length, stored) in enumerate([(1, 0), (1, 40), (0, 5), (2, 0), (600, 0), (3, 3), (0, 9), (513, 1), (37, 0)]):
        made = events(length + stored, seed)
        blob = fold([user(made[:stored])])[0][1] if stored else None
        users.append(user(made[stored:], blob, stored, {"country": "France"} if seed % 2 else {}))
    for together, one in zip(fold(users), users, strict=True):
        assert_same(together, fold([one])[0])


def test_graphs_are_fed_numbers_where_the_processor_wants_them(runtime, fold, monkeypatch):
    stored = [fold([user(events(3, seed))])[0][1] for seed in range(4)]
    assert len(stored[0]) % 8, "states one after the other are aligned by themselves: this shows nothing"
    fed = []

    def spied(graph):
        return lambda feeds: fed.extend(feeds.items()) or graph(feeds)

    monkeypatch.setattr(fold, "_runtime", replace(runtime, step=spied(runtime.step), encode=spied(runtime.encode)))
    fold([user(events(length), state, 3) for length, state in zip([900, 500, 200, 1], stored, strict=True)])
    assert len(fed) > 60
    assert [name for name, array in fed if not array.flags.aligned] == []


@pytest.mark.parametrize("lengths", [[0, 1, 1, 2, 3, 5, 8, 64, 511, 512, 513, 2000], [4, 5], [0, 0], [], [600] * 70, [7] * 3_000])
def test_every_event_is_in_one_call_and_those_of_a_user_in_order(fold, monkeypatch, lengths):
    calls = Calls()
    monkeypatch.setattr(fold, "_tensors", calls)
    tails = [[(user, event) for event in range(length)] for user, length in enumerate(sorted(lengths, reverse=True))]
    for first, last in _groups([len(tail) for tail in tails]):
        for _, made in fold._calls(tails[first:last]):
            calls.seen += made["rows"].tolist() if "rows" in made else made["chunks"]
    assert sorted(calls.seen) == sorted([list(event) for tail in tails for event in tail])
    for user in range(len(tails)):
        assert [event for of, event in calls.seen if of == user] == list(range(len(tails[user])))
    assert calls.largest <= module._POSITIONS


class Calls:
    """Event tensors that say which events were in which call."""

    def __init__(self):
        self.seen, self.largest = [], 0

    def step(self, events):
        return {"rows": np.asarray(events)}

    def encode(self, rows):
        self.largest = max(self.largest, len(rows) * max(map(len, rows)))
        assert max(map(len, rows)) <= CHUNK
        return {"chunks": [list(event) for row in rows for event in row]}


def test_users_share_calls_while_padding_costs_less_than_another_call():
    lengths = [100, 99, 90, 40, 39, 38, 9, 5, 4, 2, 1, 1, 0]
    assert list(_groups(lengths)) == [(0, 4), (4, 8), (8, 12)]  # 1 + 10 + 60; 1 + 30 + 34; steps
    for first, last in _groups(list(range(300, 0, -1))):
        assert sum(300 - first - (300 - row) for row in range(first, last)) <= 128 or 300 - first <= 4


def test_the_initial_states_of_all_attributes_are_right_whichever_are_kept(fold, assert_same, monkeypatch):
    monkeypatch.setattr(module, "_INITIALS", 1)
    alone = [fold([user(events(1), attributes=attributes)])[0] for attributes in ({}, {"country": "France"})]
    for _ in range(2):
        together = fold(
            [user(events(1), attributes=attributes) for attributes in ({"country": "France"}, {}, {"country": "France"})]
        )
        for one, expected in zip(together, [alone[1], alone[0], alone[1]], strict=True):
            assert_same(one, expected)


def test_attributes_set_the_initial_state_and_unknown_values_do_not(fold, assert_same):
    plain, french, martian = (fold([user(events(1), attributes=a)])[0] for a in ({}, {"country": "France"}, {"country": "Mars"}))
    assert np.abs(fold.tensors([french[1]])["h"] - fold.tensors([plain[1]])["h"]).max() > 1e-3
    assert_same(martian, plain)


def test_the_header_says_which_events_the_state_is_of(fold):
    header, blob = fold([Unfolded(b"epoch-02", {}, None, events(4), 96)])[0]
    assert peek(blob) == header
    assert (header.epoch, header.base, header.applied, header.catalogue_version) == (b"epoch-02", 96, 100, 0)


def test_an_event_of_an_unknown_type_is_applied_without_a_trace(fold):
    made = events(6)
    (with_it,) = fold([user([*made[:3], StoredEvent("wink", START_MS, "item-001"), *made[3:]])])
    (without,) = fold([user(made)])
    assert with_it[0].applied == 7
    with_it, without = fold.tensors([with_it[1]]), fold.tensors([without[1]])
    np.testing.assert_array_equal(with_it["count"], without["count"])
    np.testing.assert_allclose(with_it["h"], without["h"], atol=1e-5)


def test_an_unknown_item_keeps_its_key_and_has_no_vector(tensors):
    fed = tensors.step(
        [StoredEvent("purchase", 1, "nowhere"), StoredEvent("view", 2, text="red shoes"), StoredEvent("view", 3, "item-001")]
    )
    assert fed["item_known"].tolist() == [False, False, True]
    assert fed["item_key"].tolist() == [item_key("nowhere"), 0, item_key("item-001")]
    assert not fed["item_vector"][:2].any()
    assert fed["item_vector"][2].any()


def test_missing_numbers_are_nan_and_huge_ones_stay_finite(tensors):
    numbers = tensors.step([StoredEvent("view", 1, "item-001", value=1e300, price=-1e300)])["numbers"][0]
    assert np.isfinite(numbers[[0, 2]]).all()
    assert np.isnan(numbers[1])


def test_a_model_may_look_at_no_number(runtime, tensors):
    manifest = runtime.bundle.manifest.model_copy(update={"numbers": []})
    numberless = EventTensors(manifest, catalogue_of(runtime.bundle), None)
    assert numberless.step(events(3))["numbers"].shape == (3, 0)
    assert numberless.encode([events(2), events(5)])["numbers"].shape == (2, 5, 0)


def test_padding_stands_only_at_the_end_of_a_row(tensors):
    fed = tensors.encode([events(2), events(5)])
    assert fed["valid"].tolist() == [[True, True, False, False, False], [True] * 5]
    assert fed["item_vector"].shape == (2, 5, 16)
    assert not fed["item_key"][0, 2:].any()


@pytest.mark.parametrize("spoil", [lambda blob: blob[:-1], lambda blob: b"?" + blob[1:], lambda blob: b""])
def test_a_state_that_is_none_is_not_continued(fold, spoil):
    (_, blob) = fold([user(events(3))])[0]
    assert fold.restore(blob, b"epoch-01", 3) == fold.restore(deflate(blob), b"epoch-01", 3) == blob
    assert fold.restore(spoil(blob), b"epoch-01", 3) is None
    assert fold.restore(spoil(deflate(blob)), b"epoch-01", 3) is None
    assert fold.restore(blob, b"epoch-01", 2) is None
    assert fold.restore(blob, b"epoch-02", 3) is None
