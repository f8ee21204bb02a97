"""The live catalogue: GET, PUT, PATCH and DELETE of /v1/items/{item_id}, POST of /v1/items"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Container, Sequence
from datetime import datetime
from typing import Annotated, Any, Final, cast

import msgspec
from fastapi import APIRouter, Path, Request, Response
from msgspec import Meta
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, GetCoreSchemaHandler, model_validator
from pydantic_core import CoreSchema, PydanticCustomError

from app.api.body import MOST_ERRORS, checked, read_json
from app.api.openapi import answers, model_body
from app.api.parameters import Moment, now_ms
from app.api.service import Service, hook_of, json_response, service_of
from app.catalogue.attributes import kinds_of
from app.errors import ConflictError, InvalidRequestError, NotFoundError, StorageError, TooLargeError
from app.ingest.schema import Id, Number
from app.recommend.answer import moment
from app.recommend.dense import pack, unpack
from app.state.items import Change, Item, Said

router = APIRouter(tags=["items"])

MOST_ITEMS: Final = 1_000
_RESERVED: Final = "/similar"  # `/v1/items/{id}/similar` is a route
_TRIES: Final = 8
_TOGETHER: Final = 100  # items that are read, or looked at, before other requests have their turn: some 2 ms
_EXAMPLE: Final = {
    "title": "White hanging heart T-light holder",
    "categories": ["candles"],
    "attributes": {"price": 2.55, "colour": "white", "in_stock": True, "materials": ["metal", "glass"]},
    "available_from": "2011-12-01T00:00:00Z",
}

Title = Annotated[str, Field(max_length=512)]
Vector = Annotated[list[Number], Field(min_length=1, max_length=4_096)]


class _OneError:
    """Has one error for a value that is none of a union, where pydantic has one for each member of it."""

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        schema = handler(source)
        assert schema["type"] == "union"
        said = "must be true, false, a number, a string of up to 256 characters, or a list of up to 64 strings of 1 to 256"
        return cast(CoreSchema, {**schema, "custom_error_type": "attribute", "custom_error_message": said})


Value = Annotated[
    bool | int | float | Annotated[str, Field(max_length=256)] | Annotated[list[Id], Field(max_length=64)], _OneError
]


def _check_item_id(item_id: str) -> str:
    if item_id.endswith(_RESERVED):
        raise PydanticCustomError(
            "item_id", f"must not end in {_RESERVED}: its address would be that of another item's neighbours"
        )
    return item_id


ItemId = Annotated[Id, AfterValidator(_check_item_id), Path(description="Your id of the item.", examples=["85123A"])]


class ItemBody(BaseModel):
    """What there is to say of an item. What is left out of an item that the model was trained with is as the trainer knew it."""

    model_config = ConfigDict(extra="forbid", strict=True)

    title: Title | None = Field(None, description="A model that reads texts understands a new item by its title.")
    description: Annotated[str, Field(max_length=4_096)] | None = None
    categories: Annotated[list[Id], Field(max_length=32)] | None = None
    attributes: Annotated[dict[Id, Value], Field(max_length=64)] = Field(
        {}, description="For filters: strings, numbers, booleans, lists."
    )
    available_from: Moment | None = Field(None, description="RFC 3339 or unix milliseconds; before it the item is in no list.")
    available_to: Moment | None = Field(None, description="From this moment on the item is in no list.")
    hidden: bool = Field(False, description="In no list, until this is taken back.")
    features: Annotated[dict[Id, Number], Field(max_length=4_096)] = Field(
        {},
        description="Dense features (of an image, a sound), by the names that the model was trained with; others change nothing.",
    )
    vectors: Annotated[dict[Id, Vector], Field(max_length=8)] = Field(
        {},
        description="Dense vectors (of an image, a sound), kept as float32, by the names and as long as the model takes them "
        "(`GET /v1/models`); others change nothing.",
    )

    @model_validator(mode="after")
    def _in_order(self) -> ItemBody:
        if self.available_from is not None and self.available_to is not None and self.available_from >= self.available_to:
            raise PydanticCustomError("available", "available_from must be before available_to")
        return self

    def item(self) -> Item:
        """As it is stored."""
        said = {name: getattr(self, name) for name in ItemBody.model_fields}
        attributes = {name: tuple(value) if isinstance(value, list) else value for name, value in self.attributes.items()}
        categories = None if self.categories is None else tuple(self.categories)
        vectors = {name: pack(numbers) for name, numbers in self.vectors.items()}
        return Item(**said | {"attributes": attributes, "categories": categories, "vectors": vectors})


class NamedItemBody(ItemBody):
    """An item among several."""

    item_id: Annotated[Id, AfterValidator(_check_item_id)]


class ItemsBody(BaseModel):
    """Several items."""

    model_config = ConfigDict(extra="forbid", strict=True)

    items: Annotated[list[NamedItemBody], Field(min_length=1)]


class ItemChange(msgspec.Struct, frozen=True):
    """A change that is stored, and holds for every list from now on, those of other workers within a second."""

    item_id: str
    version: Annotated[int, Meta(description="Of the catalogue; it grows with each change.")]


class ItemChanges(msgspec.Struct, frozen=True):
    """Changes that are stored."""

    items: Annotated[int, Meta(description="How many.")]
    version: Annotated[int, Meta(description="Of the catalogue after the last of them.")]


class CatalogueItem(msgspec.Struct, frozen=True):
    """An item as it is now."""

    item_id: str
    title: str | None
    description: str | None
    categories: list[str]
    attributes: dict[str, Any]
    available_from: datetime | None
    available_to: datetime | None
    hidden: bool
    features: dict[str, float]
    vectors: dict[str, list[float]]
    version: Annotated[int | None, Meta(description="Of the last change; null if nothing was said since the model was trained.")]
    trained: Annotated[bool, Meta(description="Whether the model was trained with it; other items it knows by their content.")]
    known: Annotated[bool, Meta(description="Whether it can be in lists of the model: a new item can a moment after it came.")]
    available: Annotated[bool, Meta(description="Whether it may be in lists now.")]


@router.put(
    "/v1/items/{item_id:path}",
    summary="Say what an item is",
    responses=answers(ItemChange, 409, 413, 422, 503),
    openapi_extra={"requestBody": model_body(ItemBody, _EXAMPLE)},
    operation_id="put_item",
)
async def put_item(request: Request, item_id: ItemId) -> Response:
    """Add an item, or replace what was said of it before.

    A new item can be recommended as soon as its vector is made from its title (features, vectors), if the model understands
    such; what users did with it before takes effect then. An item that the model was trained with keeps what it learned.
    """
    body = checked(await _json(request), ItemBody)
    return await _one(await service_of(request), Change(item_id, body.item()))


@router.patch(
    "/v1/items/{item_id:path}",
    summary="Change something of an item",
    responses=answers(ItemChange, 404, 409, 413, 422, 503),
    openapi_extra={"requestBody": model_body(ItemBody, _EXAMPLE)},
    operation_id="patch_item",
)
async def patch_item(request: Request, item_id: ItemId) -> Response:
    """Change the fields that are given and leave the others; null takes a field back, or one attribute (RFC 7396)."""
    patch = await _json(request)
    if not isinstance(patch, dict):
        raise InvalidRequestError("the body must be an object with the fields to be changed")
    service = await service_of(request)
    for _ in range(_TRIES):
        said = await service.items.get(item_id)
        if (said is None or said.item is None) and (said is not None or service.catalogue.row(item_id) is None):
            raise NotFoundError(f"there is no item {item_id!r}")
        before = _as_given(said.item) if said is not None and said.item is not None else {}
        body = checked(_merged(before, patch), ItemBody)
        change = Change(item_id, body.item(), said.version if said is not None else 0)
        versions = await _store(service, [change], vectors=patch.get("vectors") or ())
        if versions is not None:
            return json_response(ItemChange(item_id, versions[0]))
    raise ConflictError(f"item {item_id!r} is being changed by others all the time")


@router.delete(
    "/v1/items/{item_id:path}",
    summary="Take an item out",
    responses=answers(ItemChange, 404, 422, 503),
    operation_id="delete_item",
)
async def delete_item(request: Request, item_id: ItemId) -> Response:
    """The item is in no list any more; what users did with it stays in their histories. It comes back by PUT."""
    service = await service_of(request)
    said = await service.items.get(item_id)
    if said is None and service.catalogue.row(item_id) is None:
        raise NotFoundError(f"there is no item {item_id!r}")
    if said is not None and said.item is None:
        return json_response(ItemChange(item_id, said.version))  # a second time
    return await _one(service, Change(item_id, None))


@router.get(
    "/v1/items/{item_id:path}",
    summary="What is known of an item",
    responses=answers(CatalogueItem, 404, 422, 503),
    operation_id="get_item",
)
async def get_item(request: Request, item_id: ItemId) -> Response:
    """What was said of the item, and what the model makes of it."""
    service = await service_of(request)
    said = await service.items.get(item_id)
    row = service.catalogue.row(item_id)
    if (said is None and row is None) or (said is not None and said.item is None):
        raise NotFoundError(f"there is no item {item_id!r}")
    return json_response(_shown(service, item_id, row, said))


@router.post(
    "/v1/items",
    summary="Say what several items are",
    responses=answers(ItemChanges, 409, 413, 422, 503),
    openapi_extra={"requestBody": model_body(ItemsBody, {"items": [{"item_id": "85123A", **_EXAMPLE}]})},
    operation_id="post_items",
)
async def post_items(request: Request) -> Response:
    """PUT for up to 1,000 items: all of them, or, if one is bad, none."""
    changes = await _changes(await _json(request))
    versions = await _store(await service_of(request), changes, many=True) or (0,)
    return json_response(ItemChanges(len(changes), versions[-1]))


async def _json(request: Request) -> Any:
    hook = hook_of(request)
    return await read_json(request, hook.settings.max_body_bytes, hook.bounds)


async def _changes(raw: Any) -> list[Change]:
    """What a body with several items asks for. Raises InvalidRequestError, TooLargeError."""
    whole = {"items": raw} if isinstance(raw, list) else raw
    given = whole.get("items") if isinstance(whole, dict) else None
    if not isinstance(given, list) or not given:
        return [Change(one.item_id, one.item()) for one in checked(whole, ItemsBody).items]  # which raises
    if len(given) > MOST_ITEMS:
        raise TooLargeError(f"{len(given)} items; at most {MOST_ITEMS} are taken at once")
    changes: list[Change] = []
    errors: list[dict[str, str]] = []
    for start in range(0, len(given), _TOGETHER):
        if len(errors) >= MOST_ERRORS:
            break
        try:
            body = checked(whole | {"items": given[start : start + _TOGETHER]}, ItemsBody)
        except InvalidRequestError as error:
            errors += [moved for one in error.errors if (moved := _moved(one, start)) is not None]
        else:
            changes += [Change(one.item_id, one.item()) for one in body.items]
        await asyncio.sleep(0)
    if errors:
        raise InvalidRequestError(f"{errors[0]['field']}: {errors[0]['message']}", errors[:MOST_ERRORS])
    return changes


def _moved(error: dict[str, str], start: int) -> dict[str, str] | None:
    """What is wrong with one of the items from `start` on, as of the whole body; None if it was said of the items before."""
    items, _, place = error["field"].partition(".")
    if items != "items" or not place:
        return error if start == 0 else None
    number, *rest = place.split(".", 1)
    return error | {"field": ".".join([items, str(int(number) + start), *rest])}


async def _store(
    service: Service, changes: Sequence[Change], many: bool = False, vectors: Container[str] | None = None
) -> list[int] | None:
    """Store changes and take them over here; None if one did not meet what it expected.

    Args:
        vectors: names of those that are new; None: all are. Others may be of a model with another length, and stay as they are.

    Raises ConflictError, InvalidRequestError, StorageError.
    """
    kinds: dict[str, str] = {}
    for index, one in enumerate(changes):
        if index and index % _TOGETHER == 0:
            await asyncio.sleep(0)
        if one.item is None:
            continue
        service.catalogue.check(one.item_id)
        try:
            service.live.check({name: each for name, each in one.item.vectors.items() if vectors is None or name in vectors})
            service.catalogue.attributes.check(one.item.attributes)
            for name, kind in kinds_of(one.item.attributes).items():
                if kinds.setdefault(name, kind) != kind:
                    message = f"is of type {kinds[name]} in an item before; this value is of type {kind}"
                    raise InvalidRequestError(
                        f"attributes.{name}: {message}", [{"field": f"attributes.{name}", "message": message}]
                    )
        except InvalidRequestError as error:
            raise _among(error, index) if many else error from None
    versions = await service.items.change(changes, kinds, now_ms())
    with contextlib.suppress(StorageError):  # stored they are: this worker, too, takes them over with its next look
        await service.live.refresh()
    return versions


def _among(error: InvalidRequestError, index: int) -> InvalidRequestError:
    """What is wrong with one of several items."""
    errors = [one | {"field": f"items.{index}.{one['field']}"} for one in error.errors]
    return InvalidRequestError(f"items.{index}: {error.detail}", errors)


async def _one(service: Service, change: Change) -> Response:
    (version,) = await _store(service, [change]) or (0,)
    return json_response(ItemChange(change.item_id, version))


def _as_given(item: Item) -> dict[str, Any]:
    """An item as the JSON that says it."""
    return {
        **msgspec.json.decode(msgspec.json.encode(item)),
        "vectors": {name: unpack(vector) for name, vector in item.vectors.items()},
    }


def _merged(before: Any, patch: Any) -> Any:
    """RFC 7396."""
    if not isinstance(patch, dict):
        return patch
    merged = dict(before) if isinstance(before, dict) else {}
    for name, value in patch.items():
        if value is None:
            merged.pop(name, None)
        else:
            merged[name] = _merged(merged.get(name), value)
    return merged


def _shown(service: Service, item_id: str, row: int | None, said: Said | None) -> CatalogueItem:
    catalogue = service.catalogue
    item = said.item if said is not None and said.item is not None else Item()
    return CatalogueItem(
        item_id=item_id,
        title=item.title if row is None else catalogue.titles[row],
        description=item.description,
        categories=list((item.categories or ()) if row is None else catalogue.categories[row]),
        attributes=dict(item.attributes),
        available_from=None if item.available_from is None else moment(item.available_from),
        available_to=None if item.available_to is None else moment(item.available_to),
        hidden=item.hidden,
        features=dict(item.features),
        vectors={name: unpack(vector) for name, vector in item.vectors.items()},
        version=None if said is None else said.version,
        trained=row is not None and row < catalogue.bundle_rows,
        known=row is not None and bool(catalogue.known[row]),
        available=row is not None and bool(catalogue.open_at(now_ms())[row]),
    )
