from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.ingest.schema import Event, parse_time
from app.ingest.validate import FieldError, validate
from app.state.events import StoredEvent, decode_event, encode_event

NOW = 1_700_000_000_000
DAY_S = 86_400
GOOD: dict[str, Any] = {"user_id": "alice", "type": "purchase", "item_id": "a"}


def check(*raw: object, max_future_s: float = DAY_S):
    return validate(raw, {"purchase", "cancel"}, NOW, max_future_s)


def only_error(**changes: Any) -> FieldError:
    """The one error of a good event with these fields changed."""
    valid, errors = check(GOOD | changes)
    assert valid == []
    assert len(errors) == 1, errors
    return errors[0]


def test_every_field_of_the_wire_reaches_the_stored_event():
    raw = {
        "event_id": "e",
        "user_id": "alice",
        "item_id": "a",
        "type": "purchase",
        "timestamp": "2011-12-09T12:50:00.250Z",
        "value": 5,
        "quantity": 2.5,
        "price": -1.25,
        "platform": "web",
        "session_id": "s",
        "basket_id": "b",
        "text": "line one\nline two",
        "context": {"page": 3, "ok": True, "none": None, "share": 0.5, "name": "é"},
        "recommendation_id": "r",
    }
    assert set(raw) == set(Event.model_fields)
    ((valid,), errors) = check(raw)
    assert errors == []
    assert valid.user_id == "alice"
    assert valid.event == StoredEvent(
        "purchase", 1_323_435_000_250, "a", 5.0, 2.5, -1.25, "web", "s", "b", "line one\nline two", "r", raw["context"]
    )
    assert valid.event_id == "e"


def test_absent_and_null_are_the_same():
    nulls = dict.fromkeys(set(Event.model_fields) - set(GOOD)) | GOOD
    assert check(nulls)[0][0].event == check(GOOD)[0][0].event == StoredEvent("purchase", NOW, "a")


def test_an_event_without_a_time_happened_when_it_arrived():
    assert check(GOOD)[0][0].event.time_ms == NOW


def test_bad_events_are_reported_by_index_and_harm_no_other():
    valid, errors = check(GOOD, 7, GOOD | {"type": "buy"}, GOOD, None, {}, GOOD)
    assert [v.index for v in valid] == [0, 3, 6]
    assert [(e.index, e.field) for e in errors] == [(1, ""), (2, "type"), (4, ""), (5, "user_id"), (5, "type")]


@pytest.mark.parametrize("raw", [None, 1, 1.5, "purchase", True, [], [GOOD], [["user_id", "a"]]])
def test_what_is_not_an_object_is_an_error_of_its_index(raw: object):
    assert check(raw) == ([], [FieldError(0, "", "an event must be a JSON object")])


def test_an_unknown_type_names_the_field_and_the_known_types():
    error = only_error(type="buy")
    assert error.field == "type"
    assert "'buy'" in error.message
    assert "cancel, purchase" in error.message


def test_the_future_is_allowed_up_to_its_bound():
    assert check(GOOD | {"timestamp": NOW + DAY_S * 1000})[1] == []
    error = only_error(timestamp=NOW + DAY_S * 1000 + 1)
    assert error.field == "timestamp"
    assert "86400 s in the future" in error.message


def test_times_before_1970_are_refused():
    assert check(GOOD | {"timestamp": 0})[1] == []
    assert only_error(timestamp=-1) == FieldError(0, "timestamp", "is before 1970")
    assert only_error(timestamp="1969-12-31T23:59:59.999Z").field == "timestamp"


@pytest.mark.parametrize(
    ("text", "time_ms"),
    [
        ("1970-01-01T00:00:00Z", 0),
        ("1970-01-01t00:00:00.0019z", 1),
        ("2011-12-09T12:50:00+00:00", 1_323_435_000_000),
        ("2011-12-09 14:50:00.123456789+02:00", 1_323_435_000_123),
        ("1969-12-31T19:00:00-05:00", 0),
    ],
)
def test_rfc_3339_times_become_unix_milliseconds(text: str, time_ms: int):
    assert parse_time(text) == time_ms


@pytest.mark.parametrize(
    "time",
    [
        "2011-12-09",
        "2011-12-09T12:50:00",  # no offset: whose clock?
        "20111209T125000Z",
        "2011-12-09T12:50Z",
        "2011-13-09T12:50:00Z",
        "2011-12-09T12:50:61Z",
        "0000-01-01T00:00:00Z",
        "٢٠١١-12-09T12:50:00Z",
        "1323435000000",
        "",
        "2011-12-09T12:50:00Z" + " " * 1000,
        1.5,
        True,
        {},
        [],
    ],
)
def test_other_times_are_refused_and_both_forms_named(time: object):
    error = only_error(timestamp=time)
    assert error.field == "timestamp"
    assert "RFC 3339" in error.message
    assert "milliseconds" in error.message


@pytest.mark.parametrize("field", ["user_id", "item_id", "event_id", "platform", "session_id", "basket_id", "recommendation_id"])
@pytest.mark.parametrize("bad", ["", "x" * 257, "a\nb", "a\x00", "\x7f", "a\x9f", "\ud800", 5, True, ["a"], {}])
def test_ids_are_bounded_strings_without_control_characters(field: str, bad: object):
    assert only_error(**{field: bad}).field == field


def test_ids_may_be_as_long_as_their_bound_and_hold_any_script():
    for good in ("x" * 256, "é" * 256, "用户 1:{}%", " "):
        assert check(GOOD | {"user_id": good, "item_id": good})[1] == []


@pytest.mark.parametrize("field", ["value", "quantity", "price"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), 1.1e15, 10**400, "5", True, []])
def test_numbers_are_finite_and_bounded(field: str, bad: object):
    assert only_error(**{field: bad}).field == field


def test_an_event_needs_an_item_or_a_text():
    assert check({"user_id": "a", "type": "purchase", "text": "red shoes"})[1] == []
    assert only_error(item_id=None) == FieldError(0, "item_id", "is required where there is no text")


def test_text_is_bounded():
    assert check(GOOD | {"text": "x" * 4_096})[1] == []
    assert only_error(text="x" * 4_097).field == "text"
    assert only_error(text="").field == "text"
    assert only_error(text="\ud800").field == "text"


@pytest.mark.parametrize(
    ("context", "word"),
    [
        ({"a": {}}, "shallow"),
        ({"a": [1]}, "shallow"),
        ({"a": float("nan")}, "finite"),
        ({"a": float("inf")}, "finite"),
        ({"a": 2**63}, "64 bits"),
        ({"a": 10**400}, "64 bits"),
        ({"a": "\ud800"}, "Unicode"),
        ({"\ud800": 1}, "Unicode"),
        ({"a" * 257: 1}, "256"),
        ({"a": "x" * 4_096}, "4096 bytes"),
        ({str(n): n for n in range(2_000)}, "4096 bytes"),
        ([], "dictionary"),
        ("{}", "dictionary"),
    ],
)
def test_context_is_shallow_finite_and_small(context: object, word: str):
    error = only_error(context=context)
    assert error.field == "context"
    assert word in error.message


def test_a_misspelt_field_is_named_with_those_that_exist():
    error = only_error(itemid="a")
    assert error.field == "itemid"
    assert "item_id" in error.message


def test_a_hostile_event_makes_no_long_answer():
    valid, errors = check({"x" * 100_000 + str(n): 1 for n in range(1_000)})
    assert valid == []
    assert len(errors) == 10
    assert max(len(error.field) + len(error.message) for error in errors) < 400


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
almost_events = st.dictionaries(st.sampled_from(sorted(Event.model_fields)), json_values).map(lambda noise: GOOD | noise)


@given(st.lists(json_values | almost_events, max_size=5))
def test_whatever_is_sent_each_index_is_either_valid_or_has_errors(raw: list[object]):
    valid, errors = check(*raw)
    good, bad = {v.index for v in valid}, {e.index for e in errors}
    assert good | bad == set(range(len(raw)))
    assert not good & bad
    json.dumps([(e.field, e.message) for e in errors]).encode()
    assert all(decode_event(encode_event(v.event)) == v.event for v in valid)  # what is accepted can be stored
