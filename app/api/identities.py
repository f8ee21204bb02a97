"""DELETE /v1/users/{user_id} and POST /v1/users/{user_id}/merge"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

import msgspec
from fastapi import APIRouter, Request, Response
from msgspec import Meta
from pydantic import TypeAdapter, ValidationError

from app.api.body import read_json
from app.api.openapi import answers, merge_body
from app.api.parameters import KnownUserId, now_ms
from app.api.service import TENANT, hook_of, json_response, service_of
from app.errors import InvalidRequestError
from app.ingest.schema import UserId
from app.recommend.answer import moment

router = APIRouter(tags=["users"])

_user_id: TypeAdapter[str] = TypeAdapter(UserId)


class Erasure(msgspec.Struct, frozen=True):
    """The receipt of an erasure."""

    user_id: str
    erased_at: Annotated[
        datetime,
        Meta(
            description="Events of up to this time are refused from now on: that of the request, or later, where the user "
            "had an event that was dated later, was shown a list later, or was erased up to a later time before."
        ),
    ]
    events: Annotated[int, Meta(description="Events that the user had had; 0 if nothing was known of them any more.")]
    identities: Annotated[int, Meta(description="Identities that were erased: this one and those that were merged with it.")]
    archive_clean_by: Annotated[datetime, Meta(description="When the archive's files, too, hold nothing of the user any more.")]


class Merge(msgspec.Struct, frozen=True):
    """Two identities that are one now."""

    user_id: Annotated[str, Meta(description="Who has the events of both: the user that was named, or where that one went.")]
    merged: Annotated[str, Meta(description="The identity that leads there from now on.")]
    events: Annotated[int, Meta(description="Events of both so far.")]


@router.delete(
    "/v1/users/{user_id:path}",
    summary="Forget a user",
    responses=answers(Erasure, 409, 422, 503),
    operation_id="delete_user",
)
async def delete_user(request: Request, user_id: KnownUserId) -> Response:
    """Remove everything that is known of a user, at once, with every identity that was merged with it.

    A tombstone refuses events that happened before, so that no late retry brings the user back; training leaves the user out at
    once, and the archive's files are rewritten by `archive_clean_by`. Also for users that are not known; repeat it safely.
    """
    service, at_ms = await service_of(request), now_ms()
    erased = await service.store.erase(TENANT, user_id, at_ms)
    for identity in erased.identities:
        service.users.forget(TENANT, identity)
    within_ms = hook_of(request).settings.archive_erase_within_s * 1000
    receipt = Erasure(user_id, moment(erased.refused_to), erased.events, len(erased.identities), moment(at_ms + within_ms))
    return json_response(receipt)


@router.post(
    "/v1/users/{user_id:path}/merge",
    summary="Join another identity into a user",
    responses=answers(Merge, 409, 413, 422, 503),
    openapi_extra={"requestBody": merge_body()},
    operation_id="merge_user",
)
async def merge_user(request: Request, user_id: KnownUserId) -> Response:
    """Sort the events of an anonymous or other-platform identity into the user's, by time, and lead that identity here from now
    on: what is asked or told of it is asked or told of this user. Events on their way meanwhile are kept. The same merge again
    changes nothing. An identity that nothing is known of is joined, too. 409 if both are one already the other way round, if
    the identity belongs to a third user, or if Redis has lost that they were joined and what came since cannot be told any more.
    """
    service = await service_of(request)
    hook = hook_of(request)
    body = await read_json(request, hook.settings.max_body_bytes, hook.bounds)
    holder = await service.store.merge(TENANT, user_id, source := _source_of(body))
    service.users.forget(TENANT, source)
    loaded = await service.users.peek(TENANT, holder)
    return json_response(Merge(loaded.user_id, source, loaded.meta.appended if loaded.meta is not None else 0))


def _source_of(body: object) -> str:
    if not isinstance(body, dict) or body.keys() != {"from"}:
        raise InvalidRequestError('expected {"from": "the id to be joined into this user"} and nothing else')
    try:
        return _user_id.validate_python(body["from"], strict=True)
    except ValidationError as error:
        message = error.errors(include_url=False)[0]["msg"]
        raise InvalidRequestError(f"from: {message}", [{"field": "from", "message": message}]) from None
