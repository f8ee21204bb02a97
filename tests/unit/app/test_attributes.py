"""Typed columns of item attributes against plain dicts."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.catalogue.attributes import MAX_ATTRIBUTES, MAX_ENTRIES, MAX_NAME, MAX_NAMES, MAX_STRING, Attributes
from app.catalogue.columns import LookupColumn, OrderedColumn
from app.errors import InvalidRequestError
from app.recommend.rules import Cap

SHOE = {"brand": "Alder", "price": 59.5, "new": True, "tags": ["red", "wool", "winter", "wide", "sale", "red"]}


def everything(attributes):
    """What is to be read back, by row."""
    return [
        {name: value for name in attributes.kinds() if (value := attributes.value(row, name)) is not None}
        for row in range(len(attributes))
    ]


def where(attributes, name, *values):
    return np.flatnonzero(attributes.column(name).any_of(values)).tolist()


def message(attributes, given_):
    with pytest.raises(InvalidRequestError) as raised:
        attributes.check(given_)
    return raised.value.detail


def test_a_row_reads_back_as_it_was_set():
    attributes = Attributes(3)
    attributes.set(1, SHOE)
    assert everything(attributes) == [{}, SHOE, {}]
    assert attributes.kinds() == {"brand": "string", "price": "number", "new": "boolean", "tags": "list"}


def test_setting_replaces_all_attributes_of_a_row():
    attributes = Attributes(1)
    attributes.set(0, SHOE)
    attributes.set(0, {"price": 3})
    assert everything(attributes) == [{"price": 3.0}]
    assert where(attributes, "tags", "red", "sale") == []  # the first slot, and one behind the slots


def test_clearing_a_row_leaves_the_others_and_the_types():
    attributes = Attributes()
    attributes.set(0, SHOE)
    attributes.set(1, SHOE)
    attributes.clear(0)
    assert everything(attributes) == [{}, SHOE]
    assert "is a number" in message(attributes, {"price": "low"})


def test_a_row_beyond_the_end_grows_every_column():
    attributes = Attributes(1)
    attributes.set(0, SHOE)
    attributes.set(6, {"brand": "Birch"})
    assert len(attributes) == 7
    assert everything(attributes)[1:6] == [{}] * 5
    for name in SHOE:
        assert len(attributes.column(name).present()) == 7
    assert where(attributes, "brand", "Birch") == [6]


def test_an_empty_list_is_a_value_and_a_missing_one_is_none():
    attributes = Attributes(2)
    attributes.set(0, {"tags": []})
    assert everything(attributes) == [{"tags": []}, {}]
    assert attributes.column("tags").present().tolist() == [True, False]


def test_an_unknown_name_has_no_column_and_no_value():
    attributes = Attributes(1)
    assert attributes.column("brand") is None
    assert attributes.value(0, "brand") is None


def test_the_version_grows_with_every_change_and_with_nothing_else():
    attributes = Attributes(1)
    seen = [attributes.version]
    for change in (lambda: attributes.set(0, SHOE), lambda: attributes.clear(0), lambda: attributes.grow(5)):
        change()
        seen.append(attributes.version)
    assert seen == sorted(set(seen))
    attributes.grow(2)
    attributes.check(SHOE)
    assert attributes.version == seen[-1]


@pytest.mark.parametrize("wrong", [{"price": "low"}, {"price": True}, {"tags": "red"}, {"new": 1}, {"brand": ["Alder"]}])
def test_a_value_of_another_type_changes_nothing(wrong):
    attributes = Attributes(1)
    attributes.set(0, SHOE)
    version = attributes.version
    with pytest.raises(InvalidRequestError):
        attributes.set(9, {"other": 1, "brand": "Birch"} | wrong)
    assert everything(attributes) == [SHOE]
    assert set(attributes.kinds()) == set(SHOE)
    assert attributes.version == version


def test_an_error_names_the_attribute_and_both_types():
    attributes = Attributes(1, {"price": "number"})
    assert message(attributes, {"price": "low"}) == "attributes.price: `price` is a number for every item; this value is a string"


def test_every_wrong_attribute_is_among_the_errors():
    with pytest.raises(InvalidRequestError) as raised:
        Attributes().check({"price": None, "brand": "Alder", "size": {}, "id": "x"})
    assert [error["field"] for error in raised.value.errors] == ["attributes.price", "attributes.size", "attributes.id"]


@pytest.mark.parametrize("value", [None, {}, [1], ["a", None], float("nan"), float("inf"), 10**400, "x" * (MAX_STRING + 1)])
def test_what_is_no_value_is_refused(value):
    assert message(Attributes(), {"a": value}).startswith("attributes.a: ")


@pytest.mark.parametrize("value", [["x"] * (MAX_ENTRIES + 1), ["x" * (MAX_STRING + 1)]])
def test_a_list_is_bounded_in_its_length_and_in_its_entries(value):
    assert "at most" in message(Attributes(), {"a": value})


@pytest.mark.parametrize("name", ["", " a", "a ", "a`b", "a\nb", "x" * (MAX_NAME + 1), "\ud800"])
def test_a_name_that_a_filter_cannot_say_is_refused(name):
    assert "a name has" in message(Attributes(), {name: 1})


@pytest.mark.parametrize("name", ["id", "title", "categories"])
def test_the_names_that_every_item_has_are_taken(name):
    assert "taken" in message(Attributes(), {name: "x"})


def test_values_at_their_bounds_are_taken():
    attributes = Attributes()
    full = {"x" * MAX_NAME: "y" * MAX_STRING, "not in": ["y" * MAX_STRING] * MAX_ENTRIES, "größe": 2**53}
    attributes.set(0, full)
    assert everything(attributes) == [full]


def test_an_item_has_a_bounded_number_of_attributes():
    attributes = Attributes()
    attributes.set(0, {f"a{n}": n for n in range(MAX_ATTRIBUTES)})
    assert "at most 64" in message(attributes, {f"a{n}": n for n in range(MAX_ATTRIBUTES + 1)})


def test_the_names_of_all_items_are_bounded_but_known_ones_still_go():
    attributes = Attributes()
    for start in range(0, MAX_NAMES, MAX_ATTRIBUTES):
        attributes.set(start, {f"a{n}": n for n in range(start, start + MAX_ATTRIBUTES)})
    attributes.check({"a7": 1})
    with pytest.raises(InvalidRequestError) as raised:
        attributes.set(0, {"a7": 1, "b": 1})
    assert [error["field"] for error in raised.value.errors] == ["attributes.b"]
    assert len(attributes.kinds()) == MAX_NAMES


def test_many_changes_of_long_lists_are_compacted_and_still_read_back():
    attributes = Attributes(50)
    rng = np.random.default_rng(0)
    kept = [[] for _ in range(50)]
    peak = 0
    for _ in range(2_000):  # some 2,000 x 13 entries behind the slots, of which 50 x 13 live
        row = int(rng.integers(50))
        kept[row] = [f"t{n}" for n in rng.integers(0, 30, rng.integers(0, 30))]
        attributes.set(row, {"tags": kept[row]})
        peak = max(peak, attributes.nbytes)
    assert [attributes.value(row, "tags") or [] for row in range(50)] == kept
    for tag in ("t0", "t7", "t29"):
        assert where(attributes, "tags", tag) == [row for row in range(50) if tag in kept[row]]
    assert peak < 50_000


def test_strings_that_nobody_has_any_more_leave_the_memory():
    attributes = Attributes(1)
    attributes.set(0, {"brand": "x0", "tags": ["y0"]})
    before = attributes.nbytes
    for n in range(1, 2_000):
        attributes.set(0, {"brand": f"x{n}", "tags": [f"y{n}"]})
    assert attributes.nbytes < before + 1_000
    assert where(attributes, "brand", "x1999") == [0]
    assert where(attributes, "brand", "x1998") == []


def test_a_long_list_of_numbers_is_found_as_one_after_the_other_is():
    rng = np.random.default_rng(0)
    numbers = rng.integers(0, 3_000, 40_000) / 8 - 100
    attributes = Attributes()
    for row, number in enumerate(numbers.tolist()):
        if row % 10:
            attributes.set(row, {"price": number})
    values = [*(rng.integers(-50, 3_100, 1_000) / 8 - 100).tolist(), -0.0]
    has = np.arange(len(numbers)) % 10 > 0
    np.testing.assert_array_equal(attributes.column("price").any_of(values), np.isin(numbers, values) & has)


def test_minus_zero_is_zero_however_many_values_are_asked_for():
    attributes = Attributes()
    attributes.set(0, {"price": -0.0})
    assert where(attributes, "price", 0) == [0]
    assert where(attributes, "price", *range(20)) == [0]
    assert where(attributes, "price", -0.0, *range(1, 20)) == [0]


def test_a_lookup_answers_from_its_index_and_never_scans():
    ids = {"a": 0, "b": 1, "c": 2}
    column = LookupColumn(lambda: 3, lambda item_id: [ids[item_id]] if item_id in ids else [])
    assert column.any_of(["c", "nobody"]).tolist() == [False, False, True]
    assert column.present().tolist() == [True] * 3
    assert column.groups().tolist() == [0, 1, 2]


names = st.sampled_from(["brand", "price", "new", "tags", "colour"])
VALUES = {
    "brand": st.sampled_from([f"b{n}" for n in range(12)]),
    "colour": st.text("ab é", max_size=3),
    "price": st.integers(-3, 8) | st.floats(-2, 2),
    "new": st.booleans(),
    "tags": st.lists(st.sampled_from([f"t{n}" for n in range(12)]), max_size=7),
}
rows_of_values = st.lists(names, unique=True).flatmap(lambda some: st.fixed_dictionaries({name: VALUES[name] for name in some}))


def check_groups(cap, held):
    """The same number for the same value, another one for another, in whatever order rows are asked for."""
    rows = np.asarray([*reversed(range(len(held))), 0, len(held)])
    numbers = {}
    for row, codes in zip(rows.tolist(), cap.codes(rows).tolist(), strict=True):
        has = held[row] if row < len(held) else []
        assert codes[len(has) :] == [-1] * (len(codes) - len(has))
        for value, code in zip(has, codes, strict=False):
            assert code != -1
            assert numbers.setdefault(float(value) if cap.name == "price" else value, code) == code
    assert len(set(numbers.values())) == len(numbers)


def test_groups_are_as_of_when_they_were_asked_for():
    attributes = Attributes()
    attributes.set(0, {"brand": "a", "price": 1, "new": True, "tags": [*"abcdef"]})
    groups = {name: attributes.column(name).groups() for name in attributes.kinds()}
    before = {name: Cap(name, 1, some).codes(np.asarray([0])).tolist() for name, some in groups.items()}
    attributes.set(0, {"brand": "b", "price": 2, "new": False, "tags": [*"ghi"]})
    assert {name: Cap(name, 1, some).codes(np.asarray([0])).tolist() for name, some in groups.items()} == before


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 20), rows_of_values), max_size=40), st.data())
def test_columns_answer_as_dicts_do_after_any_changes(changes, data):
    attributes = Attributes(2)
    plain = [{}, {}]
    for row, values in changes:
        attributes.set(row, values)
        plain.extend({} for _ in range(row + 1 - len(plain)))
        plain[row] = values
    assert everything(attributes) == plain
    for name in attributes.kinds():
        column = attributes.column(name)
        assert column.present().tolist() == [name in row for row in plain]
        kind = VALUES["brand"] if name == "tags" else VALUES[name]
        entries = st.sampled_from([f"t{n}" for n in range(12)]) if name == "tags" else kind
        wanted = data.draw(st.lists(entries, max_size=12))
        held = [row.get(name, []) if name == "tags" else [row[name]] if name in row else [] for row in plain]
        assert column.any_of(wanted).tolist() == [any(entry in wanted for entry in some) for some in held]
        check_groups(Cap(name, 1, column.groups()), held)
    if (column := attributes.column("price")) is not None:
        bound = data.draw(VALUES["price"])
        ordered: OrderedColumn = column
        assert ordered.ordered("<", bound).tolist() == ["price" in row and row["price"] < bound for row in plain]
        assert ordered.ordered("<=", bound).tolist() == ["price" in row and row["price"] <= bound for row in plain]
        assert ordered.ordered(">", bound).tolist() == ["price" in row and row["price"] > bound for row in plain]
        assert ordered.ordered(">=", bound).tolist() == ["price" in row and row["price"] >= bound for row in plain]
