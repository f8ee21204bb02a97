"""GET /v1/models and POST /v1/models/{model_id}/activate"""

from __future__ import annotations

import asyncio
from datetime import datetime
from typing import Annotated, Literal

import msgspec
from fastapi import APIRouter, Path, Query, Request, Response
from msgspec import Meta

from app.api.openapi import answers
from app.api.service import hook_of, json_response, models_of
from app.errors import UnavailableError
from app.ingest.schema import Id
from app.recommend.answer import moment

router = APIRouter(tags=["models"])


class Model(msgspec.Struct, frozen=True):
    """A bundle that this worker can see."""

    model_id: str
    status: Annotated[
        Literal["active", "preparing", "backfilling", "beside", "previous", "available", "unusable"],
        Meta(
            description="`beside`: an experiment names it, and it answers here; `previous` is kept open for a way back; "
            "`unusable`: see `problem`."
        ),
    ]
    problem: str | None
    data: str | None
    items: int | None
    vectors: Annotated[
        dict[str, int] | None, Meta(description="Dense vectors of items that it reads, and how many numbers each has.")
    ]
    created_at: str | None
    backfilled_users: Annotated[int | None, Meta(description="While it is `backfilling`.")]


class LastActivation(msgspec.Struct, frozen=True):
    """How the last activation ended, whoever asked for it."""

    model_id: str
    at: datetime
    result: Annotated[
        Literal["active", "refused", "failed"],
        Meta(description="`refused`: it could not be verified. Unless it is `active`, what served before goes on serving."),
    ]
    reason: Annotated[str | None, Meta(description="Why it does not serve, or not everywhere yet.")]


class Models(msgspec.Struct, frozen=True):
    """The models, and which one serves."""

    active: str | None
    generation: Annotated[int, Meta(description="Grows with each change of the active model.")]
    models: list[Model]
    last_activation: LastActivation | None


class Activated(msgspec.Struct, frozen=True):
    """A model that serves, or is on its way."""

    model_id: str
    status: Literal["active", "activating"]


@router.get("/v1/models", summary="The models", responses=answers(Models, 422, 503), operation_id="get_models")
async def get_models(request: Request) -> Response:
    """Every bundle that this worker can see, the active one and one that is being activated with its progress, and how the last
    activation ended."""
    return json_response(await _models(request))


@router.post(
    "/v1/models/{model_id}/activate",
    summary="Serve another model",
    responses=answers(Activated, 404, 409, 422, 503),
    operation_id="activate_model",
)
async def activate_model(
    request: Request,
    model_id: Annotated[Id, Path(description="Of a bundle in the bundles folder.")],
    wait: Annotated[bool, Query(description="Answer when it serves everywhere; otherwise at once, with 202.")] = True,
) -> Response:
    """Have every worker open and verify the bundle, fold the active users with it, and switch.

    After the 200 no worker answers from the old model any more, which stays open for a way back: activating it again folds
    nobody beforehand, and so takes moments however many users there are. A bundle that cannot be verified never serves; 409 says
    why, and the running model keeps serving.
    """
    task = await models_of(request).activation.begin(model_id)
    if task is not None:
        if not wait:
            task.add_done_callback(lambda done: done.cancelled() or done.exception())  # the board tells how it ended
            return json_response(Activated(model_id, "activating"), 202)
        await _ended(request, task, model_id)
    return json_response(Activated(model_id, "active"))


async def _ended(request: Request, task: asyncio.Task[None], model_id: str) -> None:
    """Wait for an activation, which a client that hangs up does not end. Raises what it raises, and UnavailableError as soon as
    the service stops: it would wait for this answer."""
    stopping = asyncio.create_task(hook_of(request).bounds.stopping.wait())
    try:
        await asyncio.wait([task, stopping], return_when=asyncio.FIRST_COMPLETED)
    finally:
        stopping.cancel()
        task.add_done_callback(lambda done: done.cancelled() or done.exception())  # should nobody ask any more
    if task.done() and not task.cancelled():
        return task.result()
    await models_of(request).activation.stop()  # before it is looked what became of it: else it may end otherwise than is said
    if (await models_of(request).hall.board.serving()).active == model_id:
        raise UnavailableError("shutting down; the model is active, but not every worker may have followed")
    raise UnavailableError("shutting down; the running model keeps serving")


async def _models(request: Request) -> Models:
    hall = models_of(request).hall
    serving = await hall.board.serving()
    models = []
    for model_id, found in hall.look().items():
        manifest = found.manifest
        problem = found.problem or hall.failed(model_id)
        status: Literal["active", "preparing", "backfilling", "beside", "previous", "available", "unusable"]
        if problem is not None:
            status = "unusable"
        elif model_id == serving.active:
            status = "active"
        elif model_id == serving.candidate:
            status = "backfilling" if serving.phase == "backfill" else "preparing"
        elif hall.beside(model_id) is not None:
            status = "beside"
        else:
            status = "previous" if model_id == serving.previous else "available"
        models.append(
            Model(
                model_id,
                status,
                problem,
                manifest.data_name if manifest is not None else None,
                manifest.items.count if manifest is not None else None,
                {one.name: one.width for one in manifest.item_vectors} if manifest is not None else None,
                manifest.created_at if manifest is not None else None,
                serving.done if status == "backfilling" else None,
            )
        )
    last = serving.last
    ended = LastActivation(last.model_id, moment(last.at_ms), last.result, last.reason) if last is not None else None
    return Models(serving.active, serving.generation, models, ended)
