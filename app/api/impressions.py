"""POST /v1/impressions"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from fastapi import APIRouter, Request, Response
from msgspec import Meta

from app.api.body import read_json
from app.api.openapi import answers, impressions_body
from app.api.parameters import now_ms
from app.api.problems import FieldProblem
from app.api.service import hook_of, json_response, service_of
from app.errors import InvalidRequestError
from app.ingest.impressions import ImpressionResult

router = APIRouter(tags=["impressions"])

_MOST_ERRORS = 1_000  # in one problem document


class ImpressionReceipt(msgspec.Struct, frozen=True, omit_defaults=True):
    """What became of one impression."""

    index: Annotated[int, Meta(description="Its place in the request.")]
    status: Annotated[
        Literal["stored", "duplicate", "rejected"],
        Meta(description="`duplicate`: it is known that this list was shown to this user, nothing was stored again."),
    ]
    errors: list[FieldProblem] = []


class ImpressionReceipts(msgspec.Struct, frozen=True):
    """What became of the impressions of one request."""

    stored: int
    duplicate: int
    rejected: int
    results: Annotated[list[ImpressionReceipt], Meta(description="One per impression, in the order of the request.")]


@router.post(
    "/v1/impressions",
    summary="Tell which lists were shown",
    responses=answers(ImpressionReceipts, 413, 422, 503),
    openapi_extra={"requestBody": impressions_body()},
    operation_id="post_impressions",
)
async def post_impressions(request: Request) -> Response:
    """Store one impression, a list of them, or `{"impressions": [...]}`, up to 1,000: which items of a list somebody has seen.

    A list is counted as shown once: the same `recommendation_id` for the same user is a `duplicate`, within the user's last 64
    lists, so a request can be repeated (and has at most 64 impressions of one user). Good impressions are stored even if others
    are bad; each bad one is reported by its index. 422 if none was good. Events that carry the same `recommendation_id` are what
    the list has led to; `/metrics` counts both by model, scenario, and arm of an experiment. `propensities`, copied from what the
    list says in `explored`, are kept for whoever weighs what came of exploration.
    """
    service, hook = await service_of(request), hook_of(request)
    raw, single = _impressions_of(await read_json(request, hook.settings.max_body_bytes, hook.bounds))
    results = await service.impressions.accept(raw, now_ms())
    counts = {status: sum(result.status == status for result in results) for status in ("stored", "duplicate", "rejected")}
    if counts["rejected"] == len(results):
        raise _all_bad(results, single)
    receipts = [
        ImpressionReceipt(index, result.status, [FieldProblem(error.field, error.message) for error in result.errors])
        for index, result in enumerate(results)
    ]
    return json_response(ImpressionReceipts(counts["stored"], counts["duplicate"], counts["rejected"], receipts))


def _impressions_of(body: Any) -> tuple[list[object], bool]:
    """The impressions of a body, and whether it was one bare impression."""
    if isinstance(body, dict) and body.keys() == {"impressions"}:
        body = body["impressions"]
    elif isinstance(body, dict):
        return [body], True
    if not isinstance(body, list):
        raise InvalidRequestError("expected an impression (a JSON object), a list of them, or an object with `impressions`")
    if not body:
        message = "must not be empty"
        raise InvalidRequestError("there are no impressions in the request", [{"field": "impressions", "message": message}])
    return body, False


def _all_bad(results: list[ImpressionResult], single: bool) -> InvalidRequestError:
    errors = []
    for error in [error for result in results for error in result.errors][:_MOST_ERRORS]:
        place = "" if single else f"impressions[{error.index}]"
        errors.append({"field": ".".join(part for part in (place, error.field) if part), "message": error.message})
    first = f"{errors[0]['field']}: {errors[0]['message']}".removeprefix(": ")
    return InvalidRequestError(f"nothing was stored; {first}", errors)
