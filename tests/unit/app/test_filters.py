"""Filters asked of columns, against the same questions asked of dicts."""

from __future__ import annotations

import re
from operator import eq, ge, gt, le, lt, ne
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.catalogue import attributes as bounds
from app.catalogue.attributes import Attributes
from app.catalogue.columns import LookupColumn, StringColumn
from app.catalogue.lists import ListColumn
from app.errors import FilterError
from app.recommend import filter_text
from app.recommend.filters import Masks, parse


class Items:
    """Attributes with the built-in ones, as a catalogue has them: item `i<row>`, in category `even` or `odd`, `Item <row>`."""

    def __init__(self, attributes):
        rows = len(attributes)
        self._attributes = attributes
        ids = {f"i{row}": row for row in range(rows)}
        titles, categories = StringColumn(rows), ListColumn(rows)
        for row in range(rows):
            titles.put(row, f"Item {row}")
            categories.put(row, ["all", "odd" if row % 2 else "even"])
        lookup = LookupColumn(lambda: rows, lambda item_id: [ids[item_id]] if item_id in ids else [])
        self._built_in = {"id": lookup, "title": titles, "categories": categories}

    @property
    def version(self):
        return self._attributes.version

    def __len__(self):
        return len(self._attributes)

    def kinds(self):
        return {name: column.kind for name, column in self._built_in.items()} | self._attributes.kinds()

    def column(self, name):
        return self._built_in.get(name) or self._attributes.column(name)


ROWS = [
    {"price": 10, "brand": "Alder", "new": True, "tags": ["red", "wool"]},
    {"price": 20.5, "brand": "Birch", "new": False, "tags": []},
    {"price": -1, "brand": "it's"},
    {"new": True, "tags": ["wool", "a", "b", "c", "d"]},
    {},
]


@pytest.fixture
def items():
    attributes = Attributes()
    for row, values in enumerate(ROWS):
        attributes.set(row, values)
    return Items(attributes)


def rows(items, text, parameters=None, user=None, context=None):
    return np.flatnonzero(parse(text).bind(parameters or {}, user or {}, context or {}).mask(items)).tolist()


def error(items, text, parameters=None, user=None, context=None):
    with pytest.raises(FilterError) as raised:
        rows(items, text, parameters, user, context)
    return raised.value


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("price = 10", [0]),
        ("price < 20.5", [0, 2]),
        ("price <= 20.5", [0, 1, 2]),
        ("price > 10", [1]),
        ("price >= 10", [0, 1]),
        ("price in (10, -1, 7)", [0, 2]),
        ("brand = 'Alder'", [0]),
        ("brand in ['Birch', 'it\\'s', 'nobody']", [1, 2]),
        ("new = true", [0, 3]),
        ("new in (true, false)", [0, 1, 3]),
        ("tags contains 'wool'", [0, 3]),
        ("tags contains 'd'", [3]),
        ("tags in ('red', 'd')", [0, 3]),
        ("id = 'i2'", [2]),
        ("id in ('i4', 'i0', 'nobody')", [0, 4]),
        ("id != 'i2'", [0, 1, 3, 4]),
        ("title = 'Item 3'", [3]),
        ("categories contains 'odd'", [1, 3]),
        ("price < 15 and new = true or id = 'i4'", [0, 4]),
        ("price in ()", []),
        ("not price in ()", [0, 1, 2, 3, 4]),
    ],
)
def test_a_filter_keeps_the_items_that_it_describes(items, text, expected):
    assert rows(items, text) == expected


def test_a_missing_value_makes_every_comparison_false_and_not_turns_the_result_around(items):
    for operator in ("=", "!=", "<", "<=", ">", ">="):
        assert 4 not in rows(items, f"price {operator} 10")
        assert 4 in rows(items, f"not price {operator} 10")
    assert rows(items, "brand != 'Alder'") == [1, 2]
    assert rows(items, "not brand = 'Alder'") == [1, 2, 3, 4]
    assert rows(items, "new != true") == [1]
    assert rows(items, "not tags contains 'wool'") == [1, 2, 4]


def test_a_missing_field_makes_its_comparison_false_and_is_left_out_of_a_list(items):
    assert rows(items, "price != user.budget") == []
    assert rows(items, "price != user.budget", user={"budget": None}) == []
    assert rows(items, "not price != user.budget") == [0, 1, 2, 3, 4]
    assert rows(items, "price in context.prices") == []
    assert rows(items, "price in (user.budget, 10)") == [0]
    assert rows(items, "new = true or price < context.limit") == [0, 3]


def test_values_come_from_where_they_are_asked_for(items):
    sources = {"parameters": {"x": 10}, "user": {"x": 20.5}, "context": {"x": -1}}
    assert rows(items, "price = $x", **sources) == [0]
    assert rows(items, "price = user.x", **sources) == [1]
    assert rows(items, "price = context.x", **sources) == [2]
    assert rows(items, "price in ($x, context.x)", **sources) == [0, 2]
    assert rows(items, "brand in $brands", {"brands": ["Alder", "Birch"]}) == [0, 1]
    assert rows(items, "tags in user.taste", user={"taste": ["red", "c"]}) == [0, 3]
    assert rows(items, "new = $new and tags contains $tag", {"new": True, "tag": "red"}) == [0]


@pytest.mark.parametrize(
    ("text", "position", "found", "expected"),
    [
        ("new = true and price = 'x'", 24, "the string `x`", "a number, since `price` is a number"),
        ("price = true", 9, "`true`", "a number, since `price` is a number"),
        ("brand = 5", 9, "the number `5`", "a string, since `brand` is a string"),
        ("new = 1", 7, "the number `1`", "`true` or `false`, since `new` is `true` or `false`"),
        ("tags contains 5", 15, "the number `5`", "a string, since `tags` is a list of strings"),
        ("price in ('x')", 11, "the string `x`", "a number, since `price` is a number"),
        ("tags < 5", 6, "`<` behind `tags`, which is a list", "`contains` or `in`"),
        ("tags = 'red'", 6, "`=` behind `tags`, which is a list", "`contains` or `in`"),
        ("brand < 'x'", 7, "`<` behind `brand`, which is a string", "`=`, `!=` or `in`"),
        ("price contains 5", 7, "`contains` behind `price`, which is a number", "`=`, `!=`, `<`, `<=`, `>`, `>=` or `in`"),
        ("price = $s", 9, "`$s`, which is a string", "a number, since `price` is a number"),
        ("brand in user.numbers", 10, "`user.numbers`, which is a number", "a string, since `brand` is a string"),
        ("price < $none", 9, "`$none`, which was not given", "`none` among the parameters"),
        ("price < $null", 9, "`$null`, which was not given", "`null` among the parameters"),
        ("price in $s", 10, "`$s`, which is no list", "a list behind `in`; one value stands in parentheses"),
        ("price = $list", 9, "`$list`, which is a list", "one value; a list can stand behind `in` alone"),
        ("price in (1, $list)", 14, "`$list`, which is a list", "one value; a list can stand behind `in` alone"),
        ("price in (1, $s)", 14, "a string in `$s`", "a number, as the values before: a list has values of one type"),
        ("price in $mixed", 10, "a string in `$mixed`", "a number, as the values before: a list has values of one type"),
        ("price in $long", 10, "`$long`, a list of 1,001", "at most 1,000 values in a list"),
        ("price = $huge", 9, "a number out of bounds in `$huge`", "a string, a finite number, `true` or `false`"),
        ("price = $nan", 9, "a number out of bounds in `$nan`", "a string, a finite number, `true` or `false`"),
        ("price = $object", 9, "a list or an object in `$object`", "a string, a finite number, `true` or `false`"),
    ],
)
def test_an_error_of_types_says_where_what_was_found_and_what_was_expected(items, text, position, found, expected):
    parameters = {"s": "x", "list": [1], "mixed": [1, "x"], "long": [1] * 1_001, "huge": 10**400, "nan": float("nan")}
    raised = error(items, text, parameters | {"object": {}, "null": None}, {"numbers": [1, 2]})
    assert (raised.position, raised.found, raised.expected) == (position, found, expected)


def test_types_are_checked_also_where_the_result_is_known_already(items):
    assert error(items, "id = 'nobody' and tags < 1").position == 24
    assert error(items, "tags < user.nothing").position == 6


def test_an_unknown_attribute_is_told_the_nearest_ones_first(items):
    raised = error(items, "new = true and Prices < 5")
    assert (raised.position, raised.found) == (16, "`Prices`")
    assert raised.expected.startswith("an attribute that items have: `price`, ")
    assert raised.expected.count("`") == 2 * 7


def test_an_unknown_attribute_is_told_twenty_at_most():
    attributes = Attributes(1)
    attributes.set(0, {f"size {n}": n for n in range(30)})
    expected = error(Items(attributes), "`size  17` = 1").expected
    assert expected.startswith("an attribute that items have: `size 17`, `size 1")
    assert expected.endswith(" and 13 more")
    assert expected.count("`") == 2 * 20


def test_where_there_is_no_attribute_at_all_the_error_says_so():
    assert error(Attributes(1), "price = 1").expected == "an attribute that items have: none yet"


def bound(text, parameters=None):
    return parse(text).bind(parameters or {}, {}, {})


def test_bound_filters_are_equal_when_they_ask_the_same():
    assert bound("price = $x", {"x": 5}) == bound("  price =5.0 ")
    assert hash(bound("price = $x", {"x": 5})) == hash(bound("price = 5"))
    assert bound("price = 1") != bound("price = true")  # though 1 == True in Python
    assert bound("price = $x", {"x": 5}) != bound("price = $x", {"x": 6})
    assert bound("a = 1 and b = 1") != bound("a = 1 or b = 1")


def test_a_mask_is_computed_once_until_the_attributes_change(items):
    masks = Masks(items)
    first = masks.of(bound("price > 10"))
    assert masks.of(bound("price  >  $x", {"x": 10.0})) is first
    items._attributes.set(4, {"price": 99})
    assert np.flatnonzero(masks.of(bound("price > 10"))).tolist() == [1, 4]


def test_a_mask_that_is_kept_cannot_be_written_into(items):
    with pytest.raises(ValueError, match="read-only"):
        Masks(items).of(bound("price > 10"))[0] = True


def test_an_error_is_raised_again_however_often_it_is_asked_for(items):
    masks = Masks(items)
    masks.of(bound("new = true"))
    for _ in range(2):
        with pytest.raises(FilterError):
            masks.of(bound("new = 1"))


def test_masks_are_kept_within_their_bytes_the_latest_asked_for_last():
    attributes = Attributes(10_000)
    attributes.set(0, {"price": 1})
    masks = Masks(attributes, limit_bytes=35_000)  # three
    kept = [masks.of(bound(f"price = {n}")) for n in range(3)]
    assert masks.of(bound("price = 0")) is kept[0]
    masks.of(bound("price = 3"))
    assert masks.nbytes <= 35_000
    assert masks.of(bound("price = 0")) is kept[0]
    assert masks.of(bound("price = 2")) is kept[2]
    assert masks.of(bound("price = 1")) is not kept[1]
    attributes.clear(0)
    for n in range(50):
        masks.of(bound(f"price = {n % 3}"))
    assert masks.nbytes <= 35_000


def test_a_mask_that_takes_the_place_of_an_outdated_one_takes_its_bytes_too():
    attributes = Attributes(100)
    attributes.set(0, {"price": 1})
    masks = Masks(attributes)
    masks.of(bound("price = 1"))
    before = masks.nbytes
    for _ in range(3):
        attributes.clear(0)
        masks.of(bound("price = 1"))
    assert masks.nbytes == before


def test_a_mask_counts_the_values_of_its_filter_and_one_that_is_too_large_is_not_kept():
    attributes = Attributes(10)
    attributes.set(0, {"brand": "x"})
    masks = Masks(attributes, limit_bytes=100_000)
    masks.of(bound("brand in $x", {"x": [f"{n}".ljust(200) for n in range(1_000)]}))
    assert masks.nbytes == 0
    masks.of(bound("brand = 'x'"))
    assert 0 < masks.nbytes < 1_000


PAGE = (Path(__file__).parents[3] / "docs" / "filters.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```\n(.+)\n( *)\^\n(The filter,[^`]*(?:`[^`]+`[^`]*)*?\.)\n```", PAGE)


def test_the_page_has_examples_of_errors():
    assert len(EXAMPLES) == PAGE.count("\nThe filter, ") >= 5


@pytest.mark.parametrize(("text", "indent", "detail"), EXAMPLES)
def test_an_error_on_the_page_is_what_the_filter_gets(items, text, indent, detail):
    raised = error(items, text)
    assert raised.detail == detail.replace("\n", " ")
    assert raised.position == len(indent) + 1


@pytest.mark.parametrize(
    "bound_",
    [
        f"{filter_text.MAX_LENGTH:,} characters",
        f"{filter_text.MAX_NESTING} parentheses and `not`s",
        f"{filter_text.MAX_VALUES:,} values",
        f"{bounds.MAX_ATTRIBUTES} of an item; {bounds.MAX_NAMES} different names",
        f"1 to {bounds.MAX_NAME} printable characters",
        f"| {bounds.MAX_STRING} characters",
        f"| {bounds.MAX_ENTRIES} entries",
    ],
)
def test_the_bounds_on_the_page_are_those_of_the_code(bound_):
    assert bound_ in PAGE


# A filter as text and, beside it, what it means: a function from an item (a dict) and the request's values. No code is shared.

BARE = {"price": "number", "brand": "string", "new": "boolean", "tags": "list", "größe": "number"}
QUOTED = {"in stock": "boolean", "not": "string", "item.id": "list"}
BUILT_IN = {"id": "string", "title": "string", "categories": "list"}
KINDS = BARE | QUOTED
WORDS = ["", "a", "B", "it's", 'a "b"', "back\\slash", "x\ny", "é", "and", "all", "odd", "i1", "i3", "Item 2"]
SCALARS = {
    "string": st.sampled_from(WORDS),
    "number": st.sampled_from([0, -0.0, 1, 2, 2.5, -3, 1e300, 2**53]),
    "boolean": st.booleans(),
}
SCALARS["list"] = SCALARS["string"]
VALUES = SCALARS | {"list": st.lists(SCALARS["string"], max_size=6)}
COMPARE = {"=": eq, "!=": ne, "<": lt, "<=": le, ">": gt, ">=": ge}
MISSING = object()


@st.composite
def values_of_a_row(draw):
    return {name: draw(VALUES[KINDS[name]]) for name in draw(st.lists(st.sampled_from(sorted(KINDS)), unique=True))}


class Request:
    """Grows with the filter: each reference that is drawn gets a name and a value of its own."""

    def __init__(self, draw):
        self.draw = draw
        self.sources = {"$": {}, "user.": {}, "context.": {}}

    def reference(self, value):
        source = self.draw(st.sampled_from(["$", "user.", "context."]))
        values = self.sources[source]
        name = f"v{len(values)}"
        if source != "$" and self.draw(st.integers(0, 3)) == 0:
            values[name] = None
            return f"{source}{name}", MISSING
        values[name] = value
        return f"{source}{name}", value

    def value(self, kind):
        """A text and what it stands for."""
        value = self.draw(SCALARS[kind])
        if self.draw(st.integers(0, 2)) == 0:
            return self.reference(value)
        if isinstance(value, bool):
            return self.draw(st.sampled_from([str(value), str(value).upper(), str(value).lower()])), value
        if isinstance(value, str):
            quote = self.draw(st.sampled_from("'\""))
            escaped = value.replace("\\", "\\\\").replace(quote, f"\\{quote}").replace("\n", "\\n")
            return f"{quote}{escaped}{quote}", value
        return repr(value), value

    def comparison(self):
        name = self.draw(st.sampled_from(sorted(KINDS | BUILT_IN)))
        kind = (KINDS | BUILT_IN)[name]
        text = f"`{name}`" if name in QUOTED or self.draw(st.integers(0, 5)) == 0 else name
        text = f"item.{text}" if self.draw(st.integers(0, 5)) == 0 else text
        operators = {"number": [*COMPARE, "in"], "list": ["contains", "in"]}.get(kind, ["=", "!=", "in"])
        operator = self.draw(st.sampled_from(operators))
        if operator == "in":
            if self.draw(st.integers(0, 3)) == 0:
                written, wanted = self.reference(self.draw(st.lists(SCALARS[kind], max_size=12)))
                wanted = [] if wanted is MISSING else wanted
            else:
                drawn = [self.value(kind) for _ in range(self.draw(st.integers(0, 12)))]
                ends = self.draw(st.sampled_from(["()", "[]"]))
                written = ends[0] + ", ".join(one for one, _ in drawn) + ends[1]
                wanted = [value for _, value in drawn if value is not MISSING]
            meaning = self.any_in(name, kind, wanted)
        else:
            written, wanted = self.value(kind)
            if operator == "contains":
                meaning = self.any_in(name, kind, [wanted])
            else:
                compare = COMPARE[operator]

                def meaning(item):
                    return name in item and wanted is not MISSING and compare(item[name], wanted)

        word = operator if operator in COMPARE else self.draw(st.sampled_from([operator, operator.upper()]))
        return f"{text} {word} {written}", meaning

    @staticmethod
    def any_in(name, kind, wanted):
        if kind == "list":
            return lambda item: any(entry in wanted for entry in item.get(name, []))
        return lambda item: name in item and item[name] in wanted

    def expression(self, depth, binds=0):
        """`binds` is 0 where `or` may stand, 1 where `and`, 2 where only what binds closest."""
        shape = self.draw(st.integers(0, 4)) if depth else 4
        if shape >= 3:
            return self.comparison()
        if shape == 0:
            text, part = self.expression(depth - 1, 2)
            return f"{self.draw(st.sampled_from(['not', 'NOT', 'Not']))} {text}", lambda item: not part(item)
        word, every = (("or", any), ("and", all))[shape - 1]
        parts = [self.expression(depth - 1, shape) for _ in range(self.draw(st.integers(2, 3)))]
        text = f" {self.draw(st.sampled_from([word, word.upper()]))} ".join(part for part, _ in parts)
        if binds >= shape or self.draw(st.integers(0, 5)) == 0:
            text = f"({text})"
        return text, lambda item: every(meaning(item) for _, meaning in parts)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 8), values_of_a_row() | st.just({})), min_size=1, max_size=16), st.data())
def test_a_mask_is_what_the_filter_means_item_by_item(changes, data):
    attributes = Attributes(4, KINDS)
    plain = [{}, {}, {}, {}]
    for row, values in changes:
        if values:
            attributes.set(row, values)
        else:
            attributes.grow(row + 1)
            attributes.clear(row)
        plain.extend({} for _ in range(row + 1 - len(plain)))
        plain[row] = values
    items = Items(attributes)
    masks = Masks(items, limit_bytes=2_000)
    for row, values in enumerate(plain):
        plain[row] = values | {"id": f"i{row}", "title": f"Item {row}", "categories": ["all", "odd" if row % 2 else "even"]}
    request = Request(data.draw)
    for _ in range(3):
        text, meaning = request.expression(3)
        filter_ = parse(text)
        assert filter_.parameters <= request.sources["$"].keys()
        bound_filter = filter_.bind(request.sources["$"], request.sources["user."], request.sources["context."])
        expected = [meaning(item) for item in plain]
        assert bound_filter.mask(items).tolist() == expected, text
        assert masks.of(bound_filter).tolist() == masks.of(bound_filter).tolist() == expected
