"""POST /v1/rankings"""

from __future__ import annotations

from typing import Annotated, Final

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from app.api.body import read_model
from app.api.openapi import answers, ranking_body
from app.api.parameters import Moment, now_ms
from app.api.service import TENANT, hook_of, json_response, models_of, service_of
from app.errors import StorageError
from app.ingest.schema import Id, UserId
from app.recommend.answer import Query, Ranking
from app.telemetry import Stages

router = APIRouter(tags=["recommendations"])

MOST_ITEMS: Final = 1_000


class RankingRequest(BaseModel):
    """Items to be put into order for a user."""

    model_config = ConfigDict(extra="forbid", strict=True)

    user_id: UserId
    items: Annotated[list[Id], Field(min_length=1, max_length=MOST_ITEMS)]
    as_of: Moment | None = None
    platform: Id | None = None


@router.post(
    "/v1/rankings",
    summary="Put your own items into the order in which a user would want them",
    responses=answers(Ranking, 413, 422, 503),
    openapi_extra={"requestBody": ranking_body(MOST_ITEMS)},
    operation_id="post_rankings",
)
async def post_rankings(request: Request) -> Response:
    """All of the given items that the model knows, best first, also those that the user had already; each of them once.

    Ids that the model does not know, or that are not available, are named in `unknown_items`. A user without events gets them by
    what is popular now. In all other respects as recommendations are.
    """
    hook = hook_of(request)
    asked = await read_model(request, RankingRequest, hook.settings.max_body_bytes, hook.bounds)
    stages = Stages()
    query = Query(TENANT, asked.user_id, len(asked.items), now_ms() if asked.as_of is None else asked.as_of, asked.platform)
    try:
        answer = await (await service_of(request)).recommender.rank(query, asked.items, stages)
    except StorageError:
        answer = models_of(request).hall.service.recommender.rank_degraded(query, asked.items, stages)
    hook.metrics.stages(stages)
    return json_response(answer, headers={"Server-Timing": stages.server_timing()})
