"""Request bodies: read within a bound, whatever their headers claim, and parsed once."""

from __future__ import annotations

from typing import Any, Final, TypeVar

import msgspec
from fastapi import Request
from pydantic import BaseModel, ValidationError
from starlette.requests import ClientDisconnect

from app.api.connection import UNCOUNTED_BODY_BYTES, Bounds
from app.errors import ClientGoneError, FilterError, InvalidRequestError, TooLargeError
from app.recommend.ruleset import UNREADABLE

MOST_ERRORS: Final = 100
"""In one problem document."""

Read = TypeVar("Read", bound=BaseModel)

_decode = msgspec.json.Decoder().decode


async def read_json(request: Request, max_bytes: int, bounds: Bounds) -> Any:
    """The body as parsed JSON (RFC 8259: no NaN, UTF-8 only).

    Raises:
        TooLargeError: longer than `max_bytes`, by its header or as it arrives.
        OverloadedError: other long bodies are being read, and there is no room for this one.
        InvalidRequestError: not JSON; says where.
        ClientGoneError: the client hung up before the end.
    """
    length = request.headers.get("content-length", "")
    if length.isascii() and length.isdigit() and int(length[:20]) > max_bytes:
        raise TooLargeError(f"the body has {length[:20]} bytes; at most {max_bytes} are taken")
    chunks: list[bytes] = []
    size = held = 0
    try:
        async for chunk in request.stream():
            size += len(chunk)
            if size > max_bytes:
                raise TooLargeError(f"the body has more than {max_bytes} bytes")
            if size > UNCOUNTED_BODY_BYTES:
                bounds.hold(size - held)
                held = size
            chunks.append(chunk)
        return _parsed(b"".join(chunks))
    except ClientDisconnect:
        raise ClientGoneError(f"the client hung up after {size} bytes of the body") from None
    finally:
        bounds.release(held)


async def read_model(request: Request, model: type[Read], max_bytes: int, bounds: Bounds) -> Read:
    """The body as `model`. Raises like `read_json`, InvalidRequestError also for each field that is not what it should be."""
    return checked(await read_json(request, max_bytes, bounds), model)


def checked(body: object, model: type[Read]) -> Read:
    """A parsed body as `model`. Raises InvalidRequestError with each field that is not what it should be, FilterError if the
    first of them is a filter that cannot be read.
    """
    try:
        return model.model_validate(body)
    except ValidationError as error:
        found = error.errors(include_url=False, include_input=False)[:MOST_ERRORS]
        errors = [{"field": ".".join(map(str, one["loc"])), "message": one["msg"]} for one in found]
        if found[0]["type"] == UNREADABLE:
            said = found[0]["ctx"]
            unreadable = FilterError(said["position"], said["found"], said["expected"], errors[0]["field"])
            unreadable.errors = errors
            raise unreadable from None
        raise InvalidRequestError(": ".join(word for word in errors[0].values() if word), errors) from None


def _parsed(body: bytes) -> Any:
    try:
        return _decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidRequestError(f"the body is not JSON: {error}") from None
    except RecursionError:
        raise InvalidRequestError("the body is nested too deeply") from None
