"""Errors as RFC 9457 problem documents. Every error that leaves the service is rendered here."""

from __future__ import annotations

from http import HTTPStatus
from typing import Annotated, Any

import msgspec
import structlog
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from msgspec import Meta
from starlette.exceptions import HTTPException

from app.errors import InvalidRequestError, LongwaveError, UnavailableError

MEDIA_TYPE = "application/problem+json"
_TYPES = "urn:longwave:problem:"

log = structlog.get_logger()


class FieldProblem(msgspec.Struct, frozen=True):
    """One thing that is wrong, and where."""

    field: Annotated[str, Meta(description="Such as `events[3].type` or `query.k`; empty for the whole body.")]
    message: str


class Problem(msgspec.Struct, frozen=True, omit_defaults=True):
    """What went wrong (RFC 9457)."""

    type: Annotated[str, Meta(description=f"`{_TYPES}<name>`, or `about:blank` where the status says it all.")]
    title: str
    status: int
    detail: str
    errors: Annotated[list[FieldProblem], Meta(description="Each wrong field, where the request was at fault.")] = []


_FAULT = Problem("about:blank", "Internal Server Error", 500, "Something went wrong in the service; its log says what.")


def install(app: FastAPI) -> None:
    """Render every error of this application as a problem document."""
    app.add_exception_handler(LongwaveError, _longwave)
    app.add_exception_handler(RequestValidationError, _validation)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(Exception, _unexpected)


async def render(request: Request, error: Exception) -> Response:
    """Any error as a problem document, for what does not go through FastAPI's handlers."""
    if isinstance(error, LongwaveError):
        return await _longwave(request, error)
    if isinstance(error, RequestValidationError):
        return await _validation(request, error)
    if isinstance(error, HTTPException):
        return await _http(request, error)
    return await _unexpected(request, error)


def _render(problem: Problem, headers: dict[str, str] | None = None) -> Response:
    return Response(msgspec.json.encode(problem), problem.status, headers, MEDIA_TYPE)


def of_status(status: HTTPStatus, detail: str) -> Response:
    """A problem that the status says."""
    return _render(Problem("about:blank", status.phrase, status, detail))


def of_error(error: LongwaveError) -> Response:
    """An error that is not a fault of ours."""
    headers = {"Retry-After": str(error.retry_after_s)} if isinstance(error, UnavailableError) else None
    return _render(_problem(error), headers)


def described(error: Exception) -> Problem:
    """Any error as the document alone, for an answer of which it is one part."""
    if isinstance(error, LongwaveError) and error.status != 500:
        return _problem(error)
    log.error("a part of an answer failed", exc_info=error)
    return _FAULT


def _problem(error: LongwaveError) -> Problem:
    errors: list[FieldProblem] = []
    if isinstance(error, InvalidRequestError):
        errors = [FieldProblem(entry["field"], entry["message"]) for entry in error.errors]
    return Problem(_TYPES + error.type, error.title, error.status, error.detail, errors)


async def _longwave(request: Request, error: Exception) -> Response:
    assert isinstance(error, LongwaveError)
    if error.status == 500:  # a fault of ours; its words may name files
        return await _unexpected(request, error)
    return of_error(error)


async def _validation(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    errors = [FieldProblem(".".join(map(str, entry["loc"])), _words(entry)) for entry in error.errors()]
    detail = "; ".join(f"{entry.field}: {entry.message}" for entry in errors[:3])
    kind = InvalidRequestError
    return _render(Problem(_TYPES + kind.type, kind.title, kind.status, detail, errors))


def _words(entry: dict[str, Any]) -> str:
    if entry["type"] == "string_pattern_mismatch":  # pydantic would print the regular expression
        return "must hold no control characters"
    message: str = entry["msg"]
    return message[0].lower() + message[1:]


async def _http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    title = HTTPStatus(error.status_code).phrase
    detail = {
        404: f"There is nothing at {request.url.path[:200]}; the API is described at /docs.",
        405: f"{request.method[:20]} is not allowed here.",
    }.get(error.status_code, str(error.detail))
    return _render(Problem("about:blank", title, error.status_code, detail), dict(error.headers or {}))


async def _unexpected(request: Request, error: Exception) -> Response:
    log.error("request failed", method=request.method, path=request.url.path, exc_info=error)
    return _render(_FAULT)
