"""An event as clients send it: field names, bounds, and what each bound is for."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Final

import msgspec
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PlainValidator
from pydantic_core import PydanticCustomError

MAX_ID_LENGTH: Final = 256
MAX_TEXT_LENGTH: Final = 4_096
MAX_CONTEXT_BYTES: Final = 4_096
RESERVED_SUFFIXES: Final = ("/recommendations", "/events", "/merge")  # `/v1/users/{id}/recommendations` is a route
MAX_NUMBER: Final = 1e15  # far above any price, far below where the model's float32 overflows

_RFC3339: Final = re.compile(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(\.\d{1,9})?([Zz]|[+-]\d\d:\d\d)", re.ASCII)
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND: Final = timedelta(milliseconds=1)


def parse_time(value: object) -> int:
    """Unix milliseconds of an RFC 3339 string (its offset is required; digits past milliseconds are cut) or of an integer."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, str) and len(value) <= 40 and _RFC3339.fullmatch(value):
        try:
            return (datetime.fromisoformat(value.upper()) - _EPOCH) // _MILLISECOND
        except (ValueError, OverflowError):
            pass  # a 13th month, a 61st second
    raise PydanticCustomError("time", "must be an RFC 3339 time with offset (2011-12-09T12:50:00Z) or integer unix milliseconds")


def check_context(context: dict[str, Any]) -> Mapping[str, Any]:
    for name, value in context.items():
        if value is not None and not isinstance(value, str | int | float):
            raise PydanticCustomError("context", "must be shallow: each value a string, number, boolean or null")
        if isinstance(value, float) and not math.isfinite(value):
            raise PydanticCustomError("context", "numbers must be finite")
        if isinstance(value, int) and not -(2**63) <= value < 2**63:
            raise PydanticCustomError("context", "integers must fit in 64 bits")
        if len(name) > MAX_ID_LENGTH:
            raise PydanticCustomError("context", "names must have at most 256 characters")
    try:
        size = len(msgspec.msgpack.encode(context))
    except UnicodeEncodeError:
        raise PydanticCustomError("context", "strings must be valid Unicode") from None
    if size > MAX_CONTEXT_BYTES:
        raise PydanticCustomError("context", "must take at most 4096 bytes")
    return context


Id = Annotated[
    str, Field(min_length=1, max_length=MAX_ID_LENGTH, pattern=r"^[^\x00-\x1f\x7f-\x9f]+$", description="no control characters")
]


def check_user_id(user_id: str) -> str:
    """Refuse a user whose profile no address could name."""
    for suffix in RESERVED_SUFFIXES:
        if user_id.endswith(suffix):
            raise PydanticCustomError("user_id", f"must not end in {suffix}: its address would be that of another user")
    return user_id


UserId = Annotated[Id, AfterValidator(check_user_id)]
Number = Annotated[float, Field(allow_inf_nan=False, ge=-MAX_NUMBER, le=MAX_NUMBER)]
Time = Annotated[int, PlainValidator(parse_time, json_schema_input_type=int | str)]
Context = Annotated[dict[str, Any], AfterValidator(check_context)]


class Event(BaseModel):
    """What a user did. It has an item, a text (a query, a comment), or both; everything unknown is left out or null."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    event_id: Id | None = Field(default=None, description="yours; the same id again is a retry and is stored once")
    user_id: UserId
    item_id: Id | None = None
    type: Id = Field(description="one of the model's event types")
    timestamp: Time | None = Field(default=None, description="RFC 3339 or unix milliseconds; default: the time of arrival")
    value: Number | None = Field(default=None, description="a rating, a dwell time")
    quantity: Number | None = None
    price: Number | None = None
    platform: Id | None = None
    session_id: Id | None = None
    basket_id: Id | None = Field(default=None, description="events of one invoice or order share it")
    text: Annotated[str, Field(min_length=1, max_length=MAX_TEXT_LENGTH)] | None = None
    context: Context | None = Field(default=None, description="anything else, shallow, at most 4 KiB; kept, not understood")
    recommendation_id: Id | None = Field(default=None, description="the list that this event came from")
