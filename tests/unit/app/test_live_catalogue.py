"""Items that come, change and go after the bundle."""

import numpy as np
import pytest

import app.catalogue.catalogue as module
from app.catalogue.catalogue import ALWAYS, NEVER, Catalogue, unknown_bits
from app.catalogue.growing import Growing
from app.catalogue.popularity import LivePopularity
from app.errors import ConflictError

N, D = 5, 3
VECTORS = np.arange(N * D, dtype=np.float32).reshape(N, D)
BIAS = np.linspace(-1, 1, N, dtype=np.float32)


@pytest.fixture
def catalogue():
    vectors, bias = VECTORS.copy(), BIAS.copy()
    vectors.flags.writeable = bias.flags.writeable = False  # as they are mapped from a bundle
    ids = [f"i{row}" for row in range(N)]
    return Catalogue(ids, [f"Item {row}" for row in range(N)], [("all",)] * N, vectors, bias)


def test_the_bundle_alone_is_handed_on_as_it_is(catalogue):
    assert np.array_equal(catalogue.vectors, VECTORS)
    assert np.array_equal(catalogue.bias_at(0), BIAS)
    assert catalogue.open_at(0).all()
    assert catalogue.bias_at(0) is catalogue.bias_at(10**15)


def test_a_new_item_is_there_at_once_and_in_lists_with_its_vector(catalogue):
    row = catalogue.put("new", "New", ("fresh",))
    catalogue.settle(1)
    assert (row, catalogue.row("new"), len(catalogue), catalogue.title("new")) == (N, N, N + 1, "New")
    assert not catalogue.knows("new")
    assert catalogue.open_at(0)[row]
    assert catalogue.bias_at(0)[row] == -np.inf
    assert catalogue.rows_of_keys(catalogue.keys).tolist() == [0, 1, 2, 3, 4, 5]
    catalogue.teach(row, np.asarray([7, 8, 9], np.float32), 0.5, 1)
    catalogue.settle(1)
    assert catalogue.knows("new")
    assert (catalogue.vectors[row].tolist(), catalogue.bias_at(0)[row]) == ([7, 8, 9], 0.5)
    assert np.array_equal(catalogue.vectors[:N], VECTORS)


def test_thousands_of_items_find_their_rows(catalogue):
    for number in range(3_000):
        row = catalogue.put(f"new-{number}", None, None)
        catalogue.teach(row, np.full(D, number, np.float32), 0.0, number)
        if number % 700 == 0:
            catalogue.settle(number)
    catalogue.settle(3_000)
    assert catalogue.rows_of_keys(catalogue.keys).tolist() == list(range(N + 3_000))
    assert catalogue.vectors[N:, 0].tolist() == list(range(3_000))
    assert catalogue.rows_of_keys(np.asarray([[0, 12345]])).tolist() == [[-1, -1]]


def test_an_item_is_in_lists_from_its_first_moment_until_before_its_last(catalogue):
    catalogue.put("i1", None, None, 1_000, 2_000)
    catalogue.put("i2", None, None, ALWAYS, 1_500)
    catalogue.put("i3", None, None, NEVER, NEVER)
    catalogue.settle(1)
    for moment, there in [(999, "0 2 4"), (1_000, "0 1 2 4"), (1_499, "0 1 2 4"), (1_500, "0 1 4"), (2_000, "0 4")]:
        open_rows = [int(row) for row in there.split()]
        assert np.flatnonzero(catalogue.open_at(moment)).tolist() == open_rows
        bias = catalogue.bias_at(moment)
        assert np.flatnonzero(np.isfinite(bias)).tolist() == open_rows
        assert bias[open_rows].tolist() == BIAS[open_rows].tolist()
    catalogue.put("i3", None, None)
    catalogue.settle(2)
    assert catalogue.open_at(999)[3]


def test_what_is_not_said_of_a_bundles_item_is_as_the_bundle_says(catalogue):
    row = catalogue.put("i0", "Another name", None)
    assert (catalogue.titles[row], catalogue.categories[row]) == ("Another name", ("all",))
    catalogue.put("i0", None, ())
    assert (catalogue.titles[row], catalogue.categories[row]) == ("Item 0", ())
    catalogue.close(row)
    catalogue.settle(3)
    assert not catalogue.open_at(0)[row]
    catalogue.as_in_bundle(row)
    catalogue.settle(4)
    assert catalogue.open_at(0)[row]
    assert (catalogue.titles[row], catalogue.categories[row]) == ("Item 0", ("all",))


def test_a_vector_can_be_renewed_and_nobody_elses_changes(catalogue):
    row = catalogue.put("new", "New", None)
    catalogue.teach(row, np.ones(D, np.float32), 0.0, 1)
    catalogue.settle(1)
    catalogue.teach(row, np.full(D, 2, np.float32), 1.0, 2)
    catalogue.settle(2)
    assert catalogue.vectors[row].tolist() == [2, 2, 2]
    assert np.array_equal(catalogue.vectors[:N], VECTORS)
    assert catalogue._arrivals.rows[:, 0].tolist() == [1]  # a renewed one has not arrived


def test_what_came_or_was_renewed_since_is_known(catalogue):
    assert catalogue.renewed_since(0).tolist() == []
    row = catalogue.put("new", "New", None)
    catalogue.put("i1", "Renamed", None)
    catalogue.settle(1)
    assert catalogue.renewed_since(0).tolist() == [row]
    before = catalogue.changes
    catalogue.teach(row, np.ones(D, np.float32), 0.0, 1)
    assert catalogue.renewed_since(before).tolist() == [row]
    catalogue.settle(1)
    assert catalogue.renewed_since(catalogue.changes).tolist() == []


def test_an_arrival_is_told_to_those_who_met_the_item_before_it(catalogue):
    row = catalogue.put("new", "New", None)
    bits = unknown_bits(module.item_key("new"))
    assert not catalogue.arrived(bits, 0)
    catalogue.teach(row, np.ones(D, np.float32), 0.0, 7)
    assert catalogue.arrived(bits, 6)
    assert catalogue.arrived(0xFFFFFFFF, 6)
    assert not catalogue.arrived(bits, 7)
    assert not catalogue.arrived(0, 6)


def test_two_items_with_one_key_are_told_apart_by_refusing_the_second(catalogue, monkeypatch):
    monkeypatch.setattr(module, "item_key", lambda item_id: 42)
    catalogue.put("a", None, None)
    for _ in range(2):
        with pytest.raises(ConflictError, match="'b' and 'a' have the same 64-bit key"):
            catalogue.put("b", None, None)
        catalogue.settle(1)
    assert len(catalogue) == N + 1


def test_popularity_makes_room_and_leaves_out_what_is_not_available(catalogue):
    popularity = LivePopularity(catalogue, [3600.0], np.arange(N, dtype=float)[:, None], 0, in_flight_s=1)
    assert popularity.at(0).shape == (N, 1)
    row = catalogue.put("new", "New", None)
    catalogue.put("i4", None, None, NEVER, NEVER)
    catalogue.settle(1)
    assert popularity.at(0).shape == (N + 1, 1)
    popularity.add([("new", 10.0, 0)], 0.0)
    assert popularity.top(3, 0) == ([row, 3, 2], [10.0, 3.0, 2.0])
    assert popularity.top(9, 0, among=[4, 1]) == ([1], [1.0])


def test_a_thread_finds_a_new_item_only_once_everything_of_it_is_there(catalogue, monkeypatch):
    put, looked = Growing.put, []

    def put_while_a_thread_looks(self, row, value):
        found = catalogue.row("new")
        looked.append(found)
        if found is not None:
            columns = (catalogue.vectors, catalogue.bias, catalogue.keys, catalogue.known, catalogue.born_ms, catalogue.ids)
            assert found < min(map(len, columns))
        put(self, row, value)

    monkeypatch.setattr(Growing, "put", put_while_a_thread_looks)
    row = catalogue.put("new", "New", ("b",))
    assert looked[0] is None
    assert (row, catalogue.row("new"), catalogue.ids[row]) == (N, N, "new")
    assert (catalogue.titles[row], catalogue.categories[row]) == ("New", ("b",))
