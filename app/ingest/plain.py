"""Events without anything unusual, read in a fifth of the time that the schema takes: nearly all are.

What is read here is what the schema reads (a test compares). Of everything else, bad or only rare, it is the schema that tells.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from pydantic_core import PydanticCustomError

from app.ingest.schema import MAX_ID_LENGTH, MAX_NUMBER, MAX_TEXT_LENGTH, RESERVED_SUFFIXES, check_context, parse_time

_Id = Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_ID_LENGTH)]
_Number = Annotated[float, msgspec.Meta(ge=-MAX_NUMBER, le=MAX_NUMBER)]
_Text = Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_TEXT_LENGTH)]


class PlainEvent(msgspec.Struct, forbid_unknown_fields=True):
    """The fields of `Event`."""

    user_id: _Id
    type: _Id
    event_id: _Id | None = None
    item_id: _Id | None = None
    timestamp: int | None = None
    value: _Number | None = None
    quantity: _Number | None = None
    price: _Number | None = None
    platform: _Id | None = None
    session_id: _Id | None = None
    basket_id: _Id | None = None
    text: _Text | None = None
    context: dict[str, Any] | None = None
    recommendation_id: _Id | None = None


def plain_event(raw: dict[str, Any]) -> PlainEvent | None:
    """An event as parsed from JSON; None if the schema must be asked."""
    try:
        time = raw.get("timestamp")
        event = msgspec.convert(raw | {"timestamp": parse_time(time)} if isinstance(time, str) else raw, PlainEvent)
        if event.context is not None:
            check_context(event.context)
    except (msgspec.ValidationError, PydanticCustomError, UnicodeEncodeError):
        return None
    named = event.user_id + event.type + (event.event_id or "") + (event.item_id or "") + (event.basket_id or "")
    seldom = (event.platform or "") + (event.session_id or "") + (event.recommendation_id or "") + (event.text or "")
    # What is printable is no control character, and no half of a surrogate pair.
    if not named.isprintable() or not seldom.isprintable() or event.user_id.endswith(RESERVED_SUFFIXES):
        return None
    return event
