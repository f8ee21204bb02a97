"""/healthz, /readyz, /metrics and /"""

from __future__ import annotations

from dataclasses import asdict
from importlib.metadata import version
from typing import Annotated

import msgspec
from fastapi import APIRouter, Request, Response
from msgspec import Meta

from app.api.openapi import answers
from app.api.service import hook_of, json_response, models_of
from app.errors import StorageError
from app.telemetry import METRICS_CONTENT_TYPE

router = APIRouter(tags=["health"])


class Segments(msgspec.Struct, frozen=True):
    """The items on a device. A delta holds those that came or changed since all were laid out last."""

    segments: int
    segment_rows: Annotated[int, Meta(description="Items of the largest.")]
    delta_rows: int
    compactions: Annotated[int, Meta(description="How often the delta was laid out with the rest.")]


class Readiness(msgspec.Struct, frozen=True):
    """The model being served, and on what."""

    ready: bool
    model_id: str
    data: Annotated[str, Meta(description="Name of the data set that the model learned from.")]
    items: int
    device: Annotated[str, Meta(description="`cpu` or `cuda`.")]
    device_reason: str
    retrieval: Annotated[
        str, Meta(description="`exact`, `index`, or `index is being made`: lists are searched exactly meanwhile.")
    ]
    retrieval_reason: str
    segments: Annotated[
        Segments | None, Meta(description="Where the items lie on a device; null where they lie in one piece, as on a CPU.")
    ]
    storage: Annotated[str, Meta(description="`up`, or why not. Without storage, lists come from the fallback.")]


@router.get("/healthz", summary="Is the process alive", operation_id="healthz")
async def healthz() -> Response:
    """200 as long as the process answers."""
    return json_response({"status": "ok"})


@router.get("/readyz", summary="Can it serve", responses=answers(Readiness, 503), operation_id="readyz")
async def readyz(request: Request) -> Response:
    """200 once the bundle is verified and its golden vectors have been replayed on this device; 503 says what is missing.

    Storage that is away does not make it unready: lists are still answered, from the fallback, and say so.
    """
    hall, storage = models_of(request).hall, "up"
    try:
        service = await hall.current()
        await service.store.ping()
    except StorageError as error:
        service, storage = hall.service, error.detail
    manifest, device, scorer = service.runtime.bundle.manifest, service.runtime.device, service.scorer
    waits = scorer.retriever is not None and scorer.retriever.index is None
    return json_response(
        Readiness(
            ready=True,
            model_id=manifest.model_id,
            data=manifest.data_name,
            items=len(service.catalogue),
            device=device.name,
            device_reason=device.why,
            retrieval="index is being made" if waits else scorer.mode,
            retrieval_reason=scorer.why,
            segments=None if scorer.device is None else msgspec.convert(asdict(scorer.device.layout), Segments),
            storage=storage,
        )
    )


@router.get("/metrics", summary="Prometheus metrics", operation_id="metrics")
async def metrics(request: Request) -> Response:
    """In Prometheus' text format, over all workers."""
    return Response(hook_of(request).metrics.render(), media_type=METRICS_CONTENT_TYPE)


@router.get("/", include_in_schema=False)
async def root() -> Response:
    return json_response({"name": "longwave", "version": version("longwave"), "docs": "/docs", "ready": "/readyz"})
