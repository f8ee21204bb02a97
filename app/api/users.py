"""GET and PUT /v1/users/{user_id}"""

from __future__ import annotations

import time
from datetime import datetime
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Request, Response
from msgspec import Meta

from app.api.body import read_json
from app.api.openapi import answers, attributes_body
from app.api.parameters import KnownUserId
from app.api.service import TENANT, Service, hook_of, json_response, service_of
from app.errors import InvalidRequestError, NotFoundError, OverloadedError
from app.recommend.answer import moment
from app.recommend.interests import Interest, Portrait

router = APIRouter(tags=["users"])

_RECENT_EVENTS = 20
_MAX_VALUE_LENGTH = 256


class ProfileEvent(msgspec.Struct, frozen=True):
    """One event of the user."""

    type: str
    time: datetime
    item_id: str | None
    title: Annotated[str | None, Meta(description="Title of the item, if this model knows it.")]
    text: str | None


class Profile(msgspec.Struct, frozen=True):
    """What is known of a user."""

    user_id: str
    events: Annotated[int, Meta(description="Events the user has had so far.")]
    stored_events: Annotated[int, Meta(description="How many of them are still in the stored sequence.")]
    folded_events: Annotated[int, Meta(description="How many the state holds that is at hand; a list reflects the rest as well.")]
    first_event_time: datetime | None
    last_event_time: datetime | None
    attributes: dict[str, str]
    interests: Annotated[list[Interest], Meta(description="What their next items are expected to be about, strongest first.")]
    drift: Annotated[
        float | None,
        Meta(description="How far what the user takes of late is from what it was for long: 0 is not at all, 1 unrelated."),
    ]
    recent_events: Annotated[list[ProfileEvent], Meta(description=f"The last {_RECENT_EVENTS}, latest arrival first.")]
    model_id: str


@router.get(
    "/v1/users/{user_id:path}",
    summary="What is known of a user",
    responses=answers(Profile, 404, 422, 503),
    operation_id="get_user",
)
async def get_user(request: Request, user_id: KnownUserId) -> Response:
    """Counts, times, attributes, interests and the latest events of a user."""
    return json_response(await _profile(await service_of(request), user_id))


@router.put(
    "/v1/users/{user_id:path}",
    summary="Set a user's attributes",
    responses=answers(Profile, 413, 422, 503),
    openapi_extra={"requestBody": attributes_body()},
    operation_id="put_user",
)
async def put_user(request: Request, user_id: KnownUserId) -> Response:
    """Replace the attributes of a user, known or new. They set where the user's interest starts from, so a change of them has
    the whole stored sequence folded again."""
    service = await service_of(request)
    hook = hook_of(request)
    body = await read_json(request, hook.settings.max_body_bytes, hook.bounds)
    attributes = _attributes_of(body, [attribute.name for attribute in service.runtime.bundle.manifest.user_attributes])
    await service.store.set_attributes(TENANT, user_id, attributes)
    return json_response(await _profile(service, user_id))


async def _profile(service: Service, user_id: str) -> Profile:
    model_id = service.runtime.bundle.manifest.model_id
    loaded = await service.users.peek(TENANT, user_id)
    recent = await service.store.recent(TENANT, loaded.user_id, _RECENT_EVENTS)
    meta = loaded.meta
    if meta is None:
        raise NotFoundError(f"no event or attribute of user {user_id!r} is known")
    portrait = await _portrait(service, user_id) if meta.appended else None
    return Profile(
        user_id=user_id,
        events=meta.appended,
        stored_events=meta.stored,
        folded_events=loaded.tail_start if loaded.held or loaded.state is not None else 0,
        first_event_time=moment(meta.first_time_ms) if meta.appended else None,
        last_event_time=moment(meta.last_time_ms) if meta.appended else None,
        attributes=dict(meta.attributes),
        interests=portrait.interests if portrait else [],
        drift=portrait.drift if portrait else None,
        recent_events=[
            ProfileEvent(event.type, moment(event.time_ms), event.item_id, service.catalogue.title(event.item_id), event.text)
            for event in reversed(recent)
        ],
        model_id=model_id,
    )


async def _portrait(service: Service, user_id: str) -> Portrait | None:
    try:
        user = await service.users.current(TENANT, user_id)
    except OverloadedError:
        return None  # the rest of the profile is known, and what a PUT has done is done
    return service.portraits.of(user, int(time.time() * 1000)) if user else None


def _attributes_of(body: Any, known: list[str]) -> dict[str, str]:
    if not isinstance(body, dict) or body.keys() != {"attributes"} or not isinstance(body["attributes"], dict):
        raise InvalidRequestError('expected {"attributes": {name: value}} and nothing else')
    errors = []
    for name, value in body["attributes"].items():
        field = f"attributes.{name[:64]}"
        if name not in known:
            says = f"this model knows {', '.join(known)}" if known else "this model knows no user attributes"
            errors.append({"field": field, "message": f"unknown attribute; {says}"})
        elif not isinstance(value, str) or not 0 < len(value) <= _MAX_VALUE_LENGTH:
            errors.append({"field": field, "message": f"must be a string of 1 to {_MAX_VALUE_LENGTH} characters"})
    if errors:
        raise InvalidRequestError(f"{errors[0]['field']}: {errors[0]['message']}", errors[:20])
    attributes: dict[str, str] = body["attributes"]
    return attributes
