"""Wire events -> stored events. A bad event is reported by its index and harms no other.

Events come here as parsed JSON: the API parses the body once and cuts out the list, whatever shape it came in, and one event
that breaks a rule must not refuse the whole body, as it would if a list were validated in one go.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Final

import msgspec
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from app.ingest.plain import PlainEvent, plain_event
from app.ingest.schema import Event
from app.state.events import StoredEvent, compact_number

_MAX_ERRORS: Final = 10  # of one event: an object with a thousand unknown fields needs no thousand errors
_MAX_ECHO: Final = 64  # characters of the client's own words that an error repeats

# pydantic's own words would print a regular expression, or not say which fields there are.
_MESSAGES: Final = {
    "missing": "is required",
    "string_pattern_mismatch": "must hold no control characters",
    "string_unicode": "must be valid Unicode",
}
_NAMES: Final = {"Event": "an event", "ShownList": "an impression"}


@dataclass(frozen=True, slots=True)
class FieldError:
    """What is wrong with the event at `index` of the request. `field` is empty where the event as a whole is meant."""

    index: int
    field: str
    message: str


class ValidEvent(msgspec.Struct, frozen=True):
    """An event that may be stored; `index` is its place in the request, `event_id` the client's, if it gave one."""

    index: int
    user_id: str
    event: StoredEvent
    event_id: str | None


def validate(
    raw_events: Sequence[object], known_types: Collection[str], arrival_ms: int, max_future_s: float
) -> tuple[list[ValidEvent], list[FieldError]]:
    """Check parsed JSON values against the schema, the model's event types and the clock.

    Args:
        raw_events: anything; what is not an object is an error of that index.
        arrival_ms: unix ms, the time of events that carry none, and the present for `max_future_s`.

    Returns:
        The good events and the errors of the others, both in the order of the request.
    """
    latest_ms = arrival_ms + int(max_future_s * 1000)
    valid: list[ValidEvent] = []
    errors: list[FieldError] = []
    for index, raw in enumerate(raw_events):
        if not isinstance(raw, dict):
            errors.append(FieldError(index, "", "an event must be a JSON object"))
            continue
        try:
            event: Event | PlainEvent = plain_event(raw) or Event.model_validate(raw)
        except ValidationError as error:
            errors.extend(field_errors(index, error, Event))
            continue
        time_ms = arrival_ms if event.timestamp is None else event.timestamp
        wrong = _broken_rules(index, event, time_ms, known_types, latest_ms, max_future_s)
        if wrong:
            errors.extend(wrong)
        else:
            valid.append(ValidEvent(index, event.user_id, _stored(event, time_ms), event.event_id))
    return valid, errors


def _broken_rules(
    index: int, event: Event | PlainEvent, time_ms: int, known_types: Collection[str], latest_ms: int, max_future_s: float
) -> list[FieldError]:
    wrong = []
    if event.type not in known_types:
        known = ", ".join(sorted(known_types))
        wrong.append(FieldError(index, "type", f"unknown event type {event.type[:_MAX_ECHO]!r}; the model knows {known}"))
    if time_ms < 0:
        wrong.append(FieldError(index, "timestamp", "is before 1970"))
    if time_ms > latest_ms:
        wrong.append(FieldError(index, "timestamp", f"is more than {max_future_s:g} s in the future; milliseconds are expected"))
    if event.item_id is None and event.text is None:
        wrong.append(FieldError(index, "item_id", "is required where there is no text"))
    return wrong


def field_errors(index: int, error: ValidationError, model: type[BaseModel]) -> list[FieldError]:
    """What is wrong with the value at `index`, which should have been such a model."""
    found = error.errors(include_url=False, include_context=False, include_input=False)
    return [_field_error(index, detail, model) for detail in found[:_MAX_ERRORS]]


def _field_error(index: int, detail: ErrorDetails, model: type[BaseModel]) -> FieldError:
    # A name may hold half a surrogate pair, which no answer can be encoded with.
    field = ".".join(str(part) for part in detail["loc"])[:_MAX_ECHO].encode(errors="replace").decode()
    message = _MESSAGES.get(detail["type"], detail["msg"])
    if detail["type"] == "extra_forbidden":
        message = f"is not a field of {_NAMES[model.__name__]}; there are {', '.join(model.model_fields)}"
    return FieldError(index, field, message[0].lower() + message[1:])


def _stored(event: Event | PlainEvent, time_ms: int) -> StoredEvent:
    return StoredEvent(
        type=event.type,
        time_ms=time_ms,
        item_id=event.item_id,
        value=compact_number(event.value),
        quantity=compact_number(event.quantity),
        price=compact_number(event.price),
        platform=event.platform,
        session_id=event.session_id,
        basket_id=event.basket_id,
        text=event.text,
        recommendation_id=event.recommendation_id,
        context=event.context,
    )
