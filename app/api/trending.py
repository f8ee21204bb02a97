"""GET /v1/trending"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

import msgspec
from fastapi import APIRouter, Query, Request, Response
from msgspec import Meta

from app.api.openapi import answers
from app.api.parameters import AsOf, K, now_ms
from app.api.service import json_response, models_of, service_of
from app.errors import StorageError
from app.ingest.schema import Id
from app.recommend.answer import moment
from app.recommend.trending import TrendingItem, WindowName

router = APIRouter(tags=["items"])


class Trending(msgspec.Struct, frozen=True):
    """The items that are used unusually much, most unusual first."""

    window: str
    category: str | None
    model_id: str
    degraded: Annotated[bool, Meta(description="True while storage is away: the list is what this worker knew last.")]
    as_of: datetime
    items: list[TrendingItem]


@router.get(
    "/v1/trending",
    summary="What is used unusually much of late",
    responses=answers(Trending, 422, 503),
    operation_id="get_trending_items",
)
async def get_trending_items(
    request: Request,
    window: Annotated[WindowName, Query(description="How far back: half an hour, an hour or a day.")] = "1h",
    category: Annotated[Id | None, Query(description="Only items of this category.", examples=["Kitchen"])] = None,
    k: K = 20,
    as_of: AsOf = None,
) -> Response:
    """Items that are used more than they usually are, measured by their share of all use; the same for everybody.

    An item that always sells well is not trending. Fewer than `k` come back where fewer rise. Past moments are known for as
    long as their buckets are kept: about an hour (`30m`, `1h`) or a day (`1d`) back from the latest event.
    """
    at_ms, away = now_ms() if as_of is None else as_of, False
    try:
        service = await service_of(request)
    except StorageError:
        service, away = models_of(request).hall.service, True
    rising = await service.trending.top(window, k, at_ms, category)
    catalogue = service.catalogue
    items = [
        TrendingItem(catalogue.ids[row], score, weight, catalogue.titles[row])
        for row, score, weight in zip(rising.rows, rising.scores, rising.weights, strict=True)
    ]
    model_id = service.runtime.bundle.manifest.model_id
    return json_response(Trending(window, category, model_id, away or rising.degraded, moment(at_ms), items))
