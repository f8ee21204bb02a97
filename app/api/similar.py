"""GET /v1/items/{item_id}/similar"""

from __future__ import annotations

import asyncio
from typing import Annotated, Final

from fastapi import APIRouter, Path, Request, Response

from app.api.openapi import answers
from app.api.parameters import K, now_ms
from app.api.service import json_response, service_of
from app.errors import NotFoundError
from app.ingest.schema import Id
from app.recommend.answer import Similar, SimilarItem

router = APIRouter(tags=["items"])

_INLINE_ITEMS: Final = 50_000
"""With more items than this the search would hold up every other request of the event loop: it goes to a thread."""


@router.get(
    "/v1/items/{item_id:path}/similar",
    summary="Items that are like an item",
    responses=answers(Similar, 404, 422, 503),
    operation_id="get_similar_items",
)
async def get_similar_items(
    request: Request, item_id: Annotated[Id, Path(description="Your id of the item.", examples=["85123A"])], k: K = 20
) -> Response:
    """The items that are wanted by the same users, most alike first; the item itself is not among them."""
    service = await service_of(request)
    catalogue = service.catalogue
    row = catalogue.row(item_id)
    if row is None:
        raise NotFoundError(f"item {item_id!r} is not known to model {service.runtime.bundle.manifest.model_id}")
    bias = catalogue.bias_at(now_ms())
    if len(catalogue) <= _INLINE_ITEMS:
        rows, cosines = service.similar.of(row, k, bias)
    else:
        rows, cosines = await asyncio.to_thread(service.similar.of, row, k, bias)
    items = [SimilarItem(catalogue.ids[near], cosine, catalogue.titles[near]) for near, cosine in zip(rows, cosines, strict=True)]
    return json_response(Similar(item_id, catalogue.titles[row], service.runtime.bundle.manifest.model_id, items))
