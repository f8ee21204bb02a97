"""Ids, titles and categories, packed, against plain lists and dicts of the same."""

import random
import tracemalloc

import numpy as np
import pytest

import app.catalogue.names as module
from app.catalogue.catalogue import Catalogue
from app.catalogue.categories import Categories
from app.catalogue.columns import StringColumn
from app.catalogue.growing import Mostly
from app.catalogue.lists import ListColumn
from app.catalogue.names import NO_TITLE, Ids, TitleColumn, Titles
from app.packed import GroupPacking, TextPacking, pack_groups, pack_texts

ODD = ["", "a", "ä", "a\u0308", "日本語", "🕯️", "\x00", "x" * 300, " ", "a\nb"]


def test_texts_come_back_as_they_were_packed():
    texts = [None, *ODD, None, "a"]
    packed = pack_texts(texts)
    assert list(packed) == texts
    assert [packed[row] for row in range(len(packed))] == texts
    assert list(pack_texts([])) == []


def test_every_id_finds_its_row_and_no_other_finds_any():
    names = ODD + [f"item-{number}" for number in range(3_000)]
    ids = Ids(pack_texts(names))
    for _ in range(2):  # the second time they are remembered
        assert [ids.row(name) for name in names] == list(range(len(names)))
        assert [ids[row] for row in range(len(names))] == names
        assert ids.of(range(len(names))) == names
    assert ids.rows(names) == list(range(len(names)))
    assert ids.rows([None, "item-7", "item-3000", "a", None]) == [-1, ids.row("item-7"), -1, ids.row("a"), -1]
    assert [ids.row(name) for name in ("item-3000", "Item-1", "item-1 ", "b", "\ud800")] == [None] * 5
    assert Ids(pack_texts([])).row("a") is None


@pytest.mark.parametrize("spread", [1, 2, 7])
def test_ids_whose_hashes_are_alike_find_their_rows(monkeypatch, spread):
    monkeypatch.setattr(module, "hash", lambda name: len(name) % spread, raising=False)
    names = [f"item-{number}" for number in range(200)]
    ids = Ids(pack_texts(names))
    assert [ids.row(name) for name in names] == list(range(200))
    assert ids.row("item-200") is None


def test_more_ids_and_titles_than_are_remembered_are_told_apart(monkeypatch):
    monkeypatch.setattr(module, "_KEPT", 4)
    names = [f"item-{number}" for number in range(50)]
    ids, titles = Ids(pack_texts(names)), Titles(pack_texts([*names[1:], None]))
    for rows in (range(50), [3, 3, 49, 0], range(49, -1, -1)):
        assert ids.of(rows) == [names[row] for row in rows]
        assert titles.of(rows) == [[*names[1:], None][row] for row in rows]
        assert [ids.row(names[row]) for row in rows] == list(rows)
    assert max(len(ids._recent), len(ids._recent_rows), len(titles._recent)) <= 4


def test_an_id_that_came_later_has_the_next_row():
    ids = Ids(pack_texts(["a", "b"]))
    ids.append("c")
    assert ([ids.row(name) for name in "abcd"], list(ids), len(ids)) == ([0, 1, 2, None], ["a", "b", "c"], 3)


def test_titles_follow_what_is_said_and_go_back_to_the_bundles():
    titles = Titles(pack_texts(["A", None, "C"]))
    column = TitleColumn(titles)
    for looked_at in (False, True):  # from when on the column has to be kept in step
        titles.put(0, "new")
        titles.put(1, "B")
        titles.put(3, None)
        assert titles.of(range(4)) == ["new", "B", "C", None]
        if looked_at:
            assert column.any_of(["new"]).tolist() == [True, False, False, False]
        assert column.present().tolist() == [True, True, True, False]
        titles.put(0, "A")
        titles.put_back(1)
        titles.put(3, "D")
        assert [titles[row] for row in range(4)] == ["A", None, "C", "D"]
        assert column.any_of(["A", "D", "B"]).tolist() == [True, False, False, True]
        assert column.present().tolist() == [True, False, True, True]


def test_a_filter_on_titles_finds_what_comparing_them_finds():
    chance = random.Random(0)
    names = [chance.choice([None, *ODD, *(f"Item {number}" for number in range(100))]) for _ in range(2_000)]
    column, plain = TitleColumn(Titles(pack_texts(names))), StringColumn(len(names))
    for row, name in enumerate(names):
        if name is not None:
            plain.put(row, name)
    assert np.array_equal(column.present(), plain.present())
    for number in (0, 1, 3, 8, 9, 60):
        asked = [f"Item {chance.randrange(150)}" for _ in range(number)]
        assert np.array_equal(column.any_of(asked), plain.any_of(asked))
    codes = column.groups()
    assert np.array_equal(codes == NO_TITLE, ~plain.present())
    assert len(set(zip(codes.tolist(), names, strict=True))) == len(set(names)) == len(set(codes.tolist()))


def test_categories_answer_filters_and_caps_as_one_list_for_each_item_would():
    chance = random.Random(0)

    def some() -> tuple[str, ...]:
        return tuple(chance.sample([f"c{number}" for number in range(12)], chance.choice([0, 1, 1, 2, 3, 6])))

    of_bundle = [some() for _ in range(300)]
    categories, now = Categories(pack_groups(of_bundle)), list(of_bundle)
    for turn in range(30):
        for _ in range(40):
            row, names = chance.randrange(len(now) + 1), some()
            now[row:] = [names, *now[row + 1 :]]
            categories.put(row, names)
            back = chance.randrange(300)
            now[back] = of_bundle[back]
            categories.put_back(back)
        plain = ListColumn(len(now))
        for row, names in enumerate(now):
            plain.put(row, names)
        assert list(categories) == now == [categories[row] for row in range(len(now))]
        assert np.array_equal(categories.present(), plain.present())
        for number in (0, 1, 5):
            asked = [f"c{chance.randrange(14)}" for _ in range(number)]
            assert np.array_equal(categories.any_of(asked), plain.any_of(asked)), turn
        codes = categories.groups()
        of_rows = codes(np.arange(len(now) + 2))
        assert len(codes) == len(now)
        assert (of_rows[len(now) :] == -1).all()
        code_of = {}
        for names, of_row in zip(now, of_rows.tolist(), strict=False):
            assert len(names) == sum(code != -1 for code in of_row)
            assert all(code_of.setdefault(name, code) == code for name, code in zip(names, of_row, strict=False))
        assert len(set(code_of.values())) == len(code_of)


@pytest.mark.parametrize("count", [127, 128, 40_000])
def test_a_bundles_item_may_have_any_number_of_categories(count):
    names = tuple(f"c{number}" for number in range(count))
    categories = Categories(pack_groups([names, ("c0", "x")]))
    assert categories[0] == names
    assert categories.any_of([names[-1]]).tolist() == [True, False]
    assert categories.any_of(["x"]).tolist() == [False, True]
    assert np.count_nonzero(categories.groups()(np.arange(2))[0] >= 0) == count
    categories.put(0, ())
    categories.put_back(0)
    assert categories[0] == names


def test_what_a_cap_knows_of_categories_stays_as_it_was():
    categories = Categories(pack_groups([("a",), ("b",)]))
    codes = categories.groups()
    before = codes(np.arange(2)).tolist()
    categories.put(0, ("c",))
    categories.put(0, ("d",))
    categories.put(1, ("a", "b"))
    assert codes(np.arange(2)).tolist() == before


def test_lists_of_categories_that_no_item_has_any_more_take_no_memory():
    categories = Categories(pack_groups([("a",)] * 3))
    for number in range(1_000):
        categories.put(number % 3, (f"c{number}",))
    assert len(categories._lists) <= 5
    categories.put_back(0)
    assert categories[0] == ("a",)


def test_a_column_of_one_value_takes_no_memory_until_a_row_has_another():
    column = Mostly(-1, 1_000)
    column.put(3, -1)
    column.put(1_000, -1)
    assert column.is_uniform
    assert column.rows.tolist() == [-1] * 1_001
    assert column.rows.strides == (0,)
    column.put(5, 7)
    column.put(1_001, -1)
    column.put(5, -1)
    column.put(6, 8)
    assert not column.is_uniform
    assert column.rows.tolist() == [8 if row == 6 else -1 for row in range(1_002)]


def test_names_of_an_item_take_about_what_their_letters_do():
    count = 20_000
    tracemalloc.start()
    try:
        ids, titles, categories = TextPacking(), TextPacking(), GroupPacking()
        for row in range(count):
            ids.add(f"item-{row:07d}")
            titles.add(f"Thing {row} of the kind {row % 64}")
            categories.add((f"kind {row % 64}",))
        vectors, bias = np.zeros((count, 1), np.float32), np.zeros(count, np.float32)
        catalogue = Catalogue(ids.packed(), titles.packed(), categories.packed(), vectors, bias)
        for row in range(count):
            catalogue.put(f"item-{row:07d}", None, None)
        catalogue.settle(1)
        ids = titles = categories = None
        taken = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    # 40 letters, keys, places: 120 bytes; and as many of them again as are remembered, each some 150 bytes.
    assert taken / count < 300
    assert catalogue.title("item-0000007") == "Thing 7 of the kind 7"
