"""What is read without the schema is what the schema reads."""

from __future__ import annotations

import math
import random

import pytest
from pydantic import ValidationError

from app.ingest.plain import PlainEvent, plain_event
from app.ingest.schema import MAX_CONTEXT_BYTES, MAX_ID_LENGTH, MAX_NUMBER, MAX_TEXT_LENGTH, Event

WHOLE = {
    "event_id": "0c1f7f2e-7a34-4d5c-9a64-1d1f5a3f0b11",
    "user_id": "17850",
    "item_id": "85123A",
    "type": "purchase",
    "timestamp": 1_323_435_000_123,
    "value": 4,
    "quantity": 6,
    "price": 2.55,
    "platform": "web",
    "session_id": "s",
    "basket_id": "536365",
    "text": "white metal lantern",
    "context": {"country": "France", "page": 2, "new": True, "from": None},
    "recommendation_id": "r",
}
VALUES = [
    None, "", "x", "é", "\x00", "\x7f", "\x85", "\u00a0", "\ud800", "a\nb", "\U000f0000", "x/events",
    "x/recommendations", "/merge", "x" * MAX_ID_LENGTH, "x" * (MAX_ID_LENGTH + 1), "x" * MAX_TEXT_LENGTH,
    "x" * (MAX_TEXT_LENGTH + 1),
    "2011-12-09T12:50:00Z", "2011-12-09T12:50:00.123456+01:00", "2011-13-09T12:50:00Z", "2011-12-09", "1323435000123",
    0, -1, 1, True, False, 2**53 + 1, 2**63, 10**30, 10**400, -(10**400), 0.5, -0.0, MAX_NUMBER, -MAX_NUMBER, MAX_NUMBER + 1,
    1e300, math.inf, -math.inf, math.nan,
    [], ["x"], {}, {"a": {}}, {"a": [1]}, {"a": math.inf}, {"a": 2**63}, {"a": "\ud800"}, {"\ud800": 1},
    {"a": "x" * MAX_CONTEXT_BYTES}, {"x" * (MAX_ID_LENGTH + 1): 1},
]  # fmt: skip
FIELDS = [*WHOLE, "user", ""]


def assert_alike(raw: dict[str, object]) -> None:
    plain = plain_event(raw)
    if plain is None:
        return
    event = Event.model_validate(raw)  # raises what was not to be accepted
    for field in Event.model_fields:
        mine, theirs = getattr(plain, field), getattr(event, field)
        assert (mine, type(mine)) == (theirs, type(theirs)), field


@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize("value", VALUES, ids=lambda value: repr(value)[:20])
def test_each_field_is_read_as_the_schema_reads_it_or_not_at_all(field, value):
    assert_alike(WHOLE | {field: value})


def test_several_fields_are_read_as_the_schema_reads_them_or_none_is():
    rng = random.Random(1)
    read = 0
    for _ in range(5_000):
        raw = {
            field: rng.choice([VALUES[rng.randrange(len(VALUES))], value]) for field, value in WHOLE.items() if rng.random() < 0.7
        }
        assert_alike(raw)
        read += plain_event(raw) is not None
    assert read > 20


def test_what_shops_send_is_read():
    for raw in (WHOLE, WHOLE | {"timestamp": "2011-12-09T12:50:00Z"}, {"user_id": "u", "type": "view", "item_id": "i"}):
        assert isinstance(plain_event(raw), PlainEvent)


def test_plain_events_have_the_fields_of_the_schema():
    assert sorted(PlainEvent.__struct_fields__) == sorted(Event.model_fields)
    assert {name for name, field in Event.model_fields.items() if field.is_required()} == {"user_id", "type"}
    with pytest.raises(ValidationError):
        Event.model_validate({"user_id": "u"})
    assert plain_event({"user_id": "u"}) is None
