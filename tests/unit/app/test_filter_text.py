"""The filter language as text: what is read, and what is said of the rest."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.errors import FilterError, InvalidRequestError
from app.recommend.filters import parse

A_CONDITION = "the name of an attribute (in backticks if it is a keyword or holds other characters), `not` or `(`"
AN_OPERATOR = "`=`, `!=`, `<`, `<=`, `>`, `>=`, `in` or `contains`"
A_VALUE = "a string in quotes, a number, `true`, `false`, `$parameter`, `user.field` or `context.field`"


def error(text):
    with pytest.raises(FilterError) as raised:
        parse(text)
    return raised.value


@pytest.mark.parametrize(
    ("text", "position", "found", "expected"),
    [
        ("", 1, "the end", A_CONDITION),
        (" \n ", 4, "the end", A_CONDITION),
        ("price", 6, "the end", AN_OPERATOR),
        ("price <", 8, "the end", A_VALUE),
        ("price < 5 and", 14, "the end", A_CONDITION),
        ("price == 5", 8, "`=`", A_VALUE),
        ("colour = red", 10, "`red`", A_VALUE),
        ("colour = \n red", 12, "`red`", A_VALUE),  # a character is counted, a line is not
        ("a = €", 5, "`€`", A_VALUE),
        ("a = +5", 5, "`+`", A_VALUE),
        ("in = 3", 1, "`in`", A_CONDITION),
        ("$x = 1", 1, "`$`", A_CONDITION),
        ("a = 1 b = 2", 7, "`b`", "`and`, `or` or the end"),
        ("a = 1)", 6, "`)`", "`and`, `or` or the end"),
        ("(a = 1", 7, "the end", "`and`, `or` or `)`"),
        ("a in 5", 6, "`5`", "a list, as `(1, 2)` or `['a', 'b']`, `$parameter`, `user.field` or `context.field`"),
        ("a in (1 2)", 9, "`2`", "`,` or `)`"),
        ("a in [1)", 8, "`)`", "`,` or `]`"),
        ("a in (1, )", 10, "`)`", A_VALUE),
        ("a in (1, 'x')", 10, "'x'", "a number, as the values before: a list has values of one type"),
        ("a in (true, 1)", 13, "`1`", "`true` or `false`, as the values before: a list has values of one type"),
        ("a = 'x", 5, "a string without an end", "a closing ' behind it"),
        ('a = "x\\"', 5, "a string without an end", 'a closing " behind it'),
        ("a = $", 6, "the end", "the name of a parameter, right behind `$`"),
        ("a = $ x", 7, "`x`", "the name of a parameter, right behind `$`"),
        ("a = user", 9, "the end", "`.` and the name of a field of user"),
        ("a = 1e999", 5, "`1e999`", "a number below 1.8e308"),
    ],
)
def test_an_error_says_where_what_was_found_and_what_was_expected(text, position, found, expected):
    raised = error(text)
    assert (raised.position, raised.found, raised.expected) == (position, found, expected)
    assert raised.detail == f"The filter, at character {position}: found {found}, expected {expected}."


@pytest.mark.parametrize(
    ("text", "position", "hint"),
    [
        ("size not in (1)", 6, "`not size in (...)`"),
        ("user.age > 5", 1, "the fields of user stand on the right"),
        ("brand.name = 'x'", 6, "a name with a dot in it stands in backticks"),
        ("`` = 1", 1, "the name of an attribute"),
        ("a = context. = 1", 14, "the name of a field of context"),
        (r"a = 'xy\q'", 8, r"`\n`"),
        (r"a = '\ud83d'", 6, "four hexadecimal digits of a character"),
    ],
)
def test_what_other_languages_would_take_gets_a_hint(text, position, hint):
    raised = error(text)
    assert raised.position == position
    assert hint in raised.expected


def test_a_filter_error_is_a_request_error_of_its_own_type():
    raised = error("?")
    assert isinstance(raised, InvalidRequestError)
    assert (raised.status, raised.type) == (422, "invalid-filter")


def test_what_an_error_repeats_is_short_and_can_be_sent():
    assert len(error("a = " + "x" * 4_000).found) < 50
    error("a = 1 \ud800").detail.encode()


@pytest.mark.parametrize(
    "same",
    [
        "price<5and(brand='x'or not new=true)",
        '  item.price < 5.0 AND (item.`brand` = "x" Or NOT `new` = True) ',
        "(((price < 5))) and ((brand = '\\u0078') or (not (new = true)))",
        "price < 0.5e1 and\n(brand = 'x' or not new\t= TRUE)",
    ],
)
def test_spelling_makes_no_difference(same):
    assert parse(same).root == parse("price < 5 and (brand = 'x' or not new = true)").root


def test_not_binds_closer_than_and_and_and_closer_than_or():
    assert parse("not a=1 and b=2 or c=3").root == parse("((not (a=1)) and b=2) or c=3").root
    assert parse("a=1 or b=2 and c=3").root == parse("a=1 or (b=2 and c=3)").root
    assert parse("a=1 or b=2 and c=3").root != parse("(a=1 or b=2) and c=3").root


def test_strings_take_escapes_and_the_other_quotes():
    bound = parse(r"""a in ('it\'s', "it's", '"', "\"", '\\', '\n\t', 'é', '\u00e9', '', '``')""").bind({}, {}, {})
    assert bound.root.values == ("it's", '"', "\\", "\n\t", "é", "", "``")


def test_keywords_and_other_characters_are_names_in_backticks():
    names = parse(
        "`not` = 1 and `true`=1 and `in stock` = true and `a.b` < 2 and item.`or` = 1 and item.item = 1 and user = 1"
    ).names
    assert names == {"not", "true", "in stock", "a.b", "or", "item", "user"}


def test_what_a_filter_reads_is_known_before_it_is_bound():
    read = parse("price < $max and tags contains user.taste or size in ($size, context.`shoe size`, 3) and x in $in")
    assert read.names == {"price", "tags", "size", "x"}
    assert read.parameters == {"max", "size", "in"}
    assert read.fields == {"user.taste", "context.shoe size"}


def test_everything_at_its_bound_is_read_and_one_more_is_not():
    parse("a in (" + ",".join(["1"] * 1_000) + ")")
    assert "1,000 values" in error("a in (" + ",".join(["1"] * 1_001) + ")").expected
    parse("a = 1".ljust(4_096))
    assert error("a = 1".ljust(4_097)).position == 4_097
    for nested, times in (("({})", 32), ("not {}", 32), ("not ({})", 16)):
        text = "a = 1"
        for _ in range(times):
            text = nested.format(text)
        parse(text)
        assert "at most 32" in error(nested.format(text)).expected


def test_nesting_is_counted_within_one_another_not_in_all():
    parse(" and ".join(["not (a = 1)"] * 100))


PIECES = ["(", ")", "[", "]", ",", ".", "$", "'", '"', "`", "\\", "=", "!=", "!", "<", "<=", ">", "and", "or", "NOT", "in"]
PIECES += ["contains", "true", "a", "price", "item", "user", "context", "1", "-2.5", "1e9", "'x'", "\\u12", " ", "\n", "é", "٣"]
PIECES += ["\ud800", "\x00"]
texts = st.lists(st.sampled_from(PIECES), max_size=30).map("".join) | st.lists(st.sampled_from(PIECES), max_size=30).map(" ".join)


@settings(max_examples=1_000, deadline=None)
@given(texts)
def test_any_text_is_a_filter_or_a_filter_error_within_it(text):
    position, detail = 1, ""
    try:
        parse(text)
    except FilterError as raised:
        position, detail = raised.position, raised.detail
    assert 1 <= position <= len(text) + 1
    json.dumps(detail, ensure_ascii=False).encode()


@pytest.mark.parametrize("piece", [*PIECES, "not ", "((a=1)or ", "not(", "a=1 or ", "'\\", "a in (", "user."])
def test_a_text_at_its_bound_ends_in_a_filter_or_a_filter_error(piece):
    for start in ("", "a = ", "a in (", "a = '"):
        try:
            parse((start + piece * 4_096)[:4_096])
        except FilterError:
            continue
