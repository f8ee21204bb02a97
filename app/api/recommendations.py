"""GET /v1/users/{user_id}/recommendations"""

from __future__ import annotations

from dataclasses import replace

from fastapi import APIRouter, Request, Response

from app.api.openapi import answers
from app.api.parameters import (
    ACCOUNTS,
    AsOf,
    Country,
    Exclude,
    ExperimentParameter,
    ExplainParameter,
    FilterParameter,
    K,
    KnownUserId,
    Platform,
    ScenarioParameter,
    new_seed,
    now_ms,
)
from app.api.service import TENANT, hook_of, json_response, models_of, service_of
from app.api.trial import either, posed
from app.errors import StorageError
from app.recommend.answer import Query, Recommendations
from app.recommend.ruleset import filtered_by
from app.telemetry import Stages

router = APIRouter(tags=["recommendations"])


@router.get(
    "/v1/users/{user_id:path}/recommendations",
    summary="What the user would want next",
    responses=answers(Recommendations, 404, 422, 503),
    operation_id="get_recommendations",
)
async def get_recommendations(
    request: Request,
    user_id: KnownUserId,
    k: K = 20,
    as_of: AsOf = None,
    platform: Platform = None,
    country: Country = None,
    exclude: Exclude = [],  # noqa: B006  # never written to, and a literal is what the schema can show
    scenario: ScenarioParameter = None,
    experiment: ExperimentParameter = None,
    filter: FilterParameter = None,
    explain: ExplainParameter = "false",
) -> Response:
    """The best items for the user, best first, reflecting every event that was acknowledged before the request.

    A user without events gets the items that are popular now, where `platform` and `country` say if that is known (`source` is
    `fallback`, and `fallback_context` says which); who is held out of the `experiment` gets those that are popular with
    everyone. `Server-Timing` tells what each stage
    took, and their sum `service`, in milliseconds.
    """
    either(scenario, experiment, "query.")
    stages = Stages()
    query = Query(TENANT, user_id, k, now_ms() if as_of is None else as_of, platform, exclude=exclude, seed=new_seed())
    if explain != "false":
        query = replace(query, explain=ACCOUNTS[explain])
    if country is not None:
        query = replace(query, context={"country": country})
    if filter is not None:
        query = replace(query, rules=filtered_by(filter))
    try:
        service, ruled = await posed(request, await service_of(request), query, scenario, experiment)
        answer = await service.recommender.recommend(ruled, stages)
    except StorageError as error:
        # Nobody can tell now which model may answer: none does, not even the one that served until now. But the rules hold.
        service, ruled = await posed(request, models_of(request).hall.service, query, scenario, experiment, True)
        answer = service.recommender.degraded(ruled, stages, error)
    hook_of(request).metrics.stages(stages)
    return json_response(answer, headers={"Server-Timing": stages.server_timing()})
