"""POST /v1/events"""

from __future__ import annotations

import json
import math
from typing import Annotated, Any, Literal, NoReturn

import msgspec
from fastapi import APIRouter, Request, Response
from msgspec import Meta
from starlette.types import Message

from app.api.body import read_json
from app.api.connection import Bounds
from app.api.openapi import answers, events_body
from app.api.parameters import now_ms
from app.api.problems import FieldProblem
from app.api.service import TENANT, hook_of, json_response, service_of
from app.errors import InvalidRequestError
from app.ingest.pipeline import EventResult
from app.ingest.validate import FieldError

router = APIRouter(tags=["events"])

_MOST_ERRORS = 1_000  # in one problem document
_MOST_KEY_CHARACTERS = 256
_MOST_DIGITS = 308  # of an integer that a float can hold


class Receipt(msgspec.Struct, frozen=True, omit_defaults=True):
    """What became of one event."""

    index: Annotated[int, Meta(description="Its place in the request.")]
    status: Annotated[
        Literal["stored", "duplicate", "rejected"],
        Meta(description="`duplicate`: its event_id is known, nothing was stored again."),
    ]
    errors: list[FieldProblem] = []


class Receipts(msgspec.Struct, frozen=True):
    """What became of the events of one request."""

    stored: int
    duplicate: int
    rejected: int
    totals: Annotated[dict[str, int], Meta(description="Events that each user of this request has had so far.")]
    results: Annotated[list[Receipt], Meta(description="One per event, in the order of the request.")]


_IDEMPOTENCY_KEY = {
    "name": "Idempotency-Key",
    "in": "header",
    "required": False,
    "schema": {"type": "string", "minLength": 1, "maxLength": _MOST_KEY_CHARACTERS},
    "description": "The same request with the same key is stored once, also where its events have no ids.",
}


@router.post(
    "/v1/events",
    summary="Tell what users did",
    responses=answers(Receipts, 413, 422, 503),
    openapi_extra={"requestBody": events_body(), "parameters": [_IDEMPOTENCY_KEY]},
    operation_id="post_events",
)
async def post_events(request: Request) -> Response:
    """Store one event, a list of events, or `{"events": [...]}`.

    Good events are stored even if others are bad; each bad one is reported by its index. With an `event_id` a request can be
    repeated safely; with an `Idempotency-Key` header the same request can, whatever ids its events have. After a 200, every list
    of that user reflects the stored events. 422 if no event was good.
    """
    service, hook = await service_of(request), hook_of(request)
    raw_events, single = _events_of(await _read(request, hook.settings.max_body_bytes, hook.bounds))
    key = _idempotency_key(request, hook.settings.dedupe_window)
    accepted = await service.ingest.accept(TENANT, raw_events, now_ms(), key)
    results = accepted.events
    counts = {status: sum(result.status == status for result in results) for status in ("stored", "duplicate", "rejected")}
    for status, count in counts.items():
        if count:
            hook.metrics.events.labels(status).inc(count)
    if counts["rejected"] == len(results):
        raise _all_bad(results, single)
    receipts = [
        Receipt(index, result.status, [FieldProblem(error.field, error.message) for error in result.errors])
        for index, result in enumerate(results)
    ]
    return json_response(Receipts(counts["stored"], counts["duplicate"], counts["rejected"], accepted.totals, receipts))


def _idempotency_key(request: Request, window: int) -> str | None:
    key = request.headers.get("idempotency-key")
    message = None
    if key is not None and not 0 < len(key) <= _MOST_KEY_CHARACTERS:
        message = f"must have 1 to {_MOST_KEY_CHARACTERS} characters"
    elif key is not None and not window:
        message = "has no effect here: this service remembers no event ids (LONGWAVE_DEDUPE_WINDOW is 0)"
    if message is not None:
        raise InvalidRequestError(f"header.Idempotency-Key: {message}", [{"field": "header.Idempotency-Key", "message": message}])
    return key


async def _read(request: Request, max_bytes: int, bounds: Bounds) -> Any:
    """`read_json`, but a number that no double can hold is read as infinite: an error of its field and not of the whole body."""
    chunks: list[bytes] = []

    async def receive() -> Message:
        message = await request.receive()
        chunks.append(message.get("body", b""))
        return message

    try:
        return await read_json(Request(request.scope, receive), max_bytes, bounds)
    except InvalidRequestError:
        try:
            return json.loads(b"".join(chunks).decode(), parse_int=_integer, parse_constant=_refuse_constant)
        except (ValueError, RecursionError):
            pass
        raise  # the first parser's words: they say where


def _integer(digits: str) -> int | float:
    # Python itself refuses to convert a few thousand digits.
    return int(digits) if len(digits) <= _MOST_DIGITS else math.copysign(math.inf, -1 if digits[0] == "-" else 1)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


def _events_of(body: Any) -> tuple[list[object], bool]:
    """The events of a body, and whether it was one bare event."""
    if isinstance(body, dict) and "events" in body:
        others = sorted(body.keys() - {"events"})
        if others:
            raise InvalidRequestError(f"beside `events` there must be no other field, but there is {others[0][:64]!r}")
        body = body["events"]
        if not isinstance(body, list):
            raise InvalidRequestError("`events` must be a list", [{"field": "events", "message": "must be a list"}])
    if isinstance(body, dict):
        return [body], True
    if not isinstance(body, list):
        raise InvalidRequestError("expected an event (a JSON object), a list of events, or an object with `events`")
    if not body:
        raise InvalidRequestError("there are no events in the request", [{"field": "events", "message": "must not be empty"}])
    return body, False


def _all_bad(results: list[EventResult], single: bool) -> InvalidRequestError:
    found: list[FieldError] = [error for result in results for error in result.errors][:_MOST_ERRORS]
    errors = []
    for error in found:
        place = "" if single else f"events[{error.index}]"
        errors.append({"field": ".".join(part for part in (place, error.field) if part), "message": error.message})
    first = f"{errors[0]['field']}: {errors[0]['message']}".removeprefix(": ")
    return InvalidRequestError(
        f"nothing was stored; {first}" if single else f"nothing was stored; no event is good: {first}", errors
    )
