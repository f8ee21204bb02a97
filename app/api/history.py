"""GET /v1/users/{user_id}/events: the stored history, page by page"""

from __future__ import annotations

import re
from datetime import datetime
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Query, Request, Response
from msgspec import Meta

from app.api.openapi import answers
from app.api.parameters import KnownUserId
from app.api.service import TENANT, json_response, service_of
from app.errors import ConflictError, InvalidRequestError, NotFoundError
from app.recommend.answer import moment
from app.state.events import StoredEvent
from app.state.store import Held

router = APIRouter(tags=["users"])

_CURSOR = re.compile(r"([0-9a-f]{16})\.([0-9]{1,16})", re.ASCII)
_NO_MODEL = "-"  # no state is wanted


class HistoryEvent(msgspec.Struct, frozen=True, omit_defaults=True):
    """One event as it was sent; what was left out is left out. Event ids are not kept with a history."""

    index: Annotated[int, Meta(description="Its number in the order of arrival, from 0; it stays, whatever is dropped or added.")]
    type: str
    timestamp: datetime
    item_id: str | None = None
    value: float | None = None
    quantity: float | None = None
    price: float | None = None
    platform: str | None = None
    session_id: str | None = None
    basket_id: str | None = None
    text: str | None = None
    recommendation_id: str | None = None
    context: dict[str, Any] | None = None


class HistoryPage(msgspec.Struct, frozen=True):
    """Some of a user's events, in the order of arrival."""

    user_id: Annotated[str, Meta(description="Who has them: another user than was asked for where that one has been merged.")]
    events: list[HistoryEvent]
    total: Annotated[int, Meta(description="Events of the user so far; the oldest may have left the stored sequence.")]
    first_index: Annotated[int, Meta(description="Index of the oldest event that is still stored.")]
    next: Annotated[str | None, Meta(description="`cursor` of the next page; null when this one holds the latest event.")]


Limit = Annotated[int, Query(ge=1, le=1000, description="Most events on the page.")]
Cursor = Annotated[str | None, Query(max_length=40, description="`next` of the page before; default: from the oldest on.")]


@router.get(
    "/v1/users/{user_id:path}/events",
    summary="What the user did, page by page",
    responses=answers(HistoryPage, 404, 409, 422, 503),
    operation_id="get_user_events",
)
async def get_user_events(request: Request, user_id: KnownUserId, limit: Limit = 100, cursor: Cursor = None) -> Response:
    """The stored events of a user, oldest first.

    Pages do not shift while events arrive or old ones are dropped. 409 if the history was rewritten since the cursor was given (a
    merge, an import, other attributes): start again without one.
    """
    held = _held(cursor)
    (loaded,) = await (await service_of(request)).store.load(TENANT, _NO_MODEL, [user_id], [held], limit)
    meta = loaded.meta
    if meta is None:
        raise NotFoundError(f"no event or attribute of user {user_id!r} is known")
    if held is not None and held.epoch != meta.epoch:
        raise ConflictError("the history was rewritten since this cursor was given: start again without it")
    end = loaded.tail_start + len(loaded.tail)
    return json_response(
        HistoryPage(
            user_id=loaded.user_id,
            events=[_event(index, event) for index, event in enumerate(loaded.tail, start=loaded.tail_start)],
            total=meta.appended,
            first_index=meta.appended - meta.stored,
            next=f"{meta.epoch.hex()}.{end}" if end < meta.appended else None,
        )
    )


def _held(cursor: str | None) -> Held | None:
    if cursor is None:
        return None
    match = _CURSOR.fullmatch(cursor)
    if match is None:
        raise InvalidRequestError(
            "query.cursor: is no cursor of this API", [{"field": "query.cursor", "message": "is no cursor"}]
        )
    return Held(bytes.fromhex(match[1]), int(match[2]))


def _event(index: int, event: StoredEvent) -> HistoryEvent:
    return HistoryEvent(
        index=index,
        type=event.type,
        timestamp=moment(event.time_ms),
        item_id=event.item_id,
        value=event.value,
        quantity=event.quantity,
        price=event.price,
        platform=event.platform,
        session_id=event.session_id,
        basket_id=event.basket_id,
        text=event.text,
        recommendation_id=event.recommendation_id,
        context=event.context,
    )
