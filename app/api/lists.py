"""POST /v1/recommendations: requests that do not fit into an address, and lists for nobody in particular."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from app.api.body import MOST_ERRORS, read_model
from app.api.openapi import answers, list_body
from app.api.parameters import ACCOUNTS, Moment, new_seed, now_ms
from app.api.service import TENANT, Service, hook_of, json_response, models_of, service_of
from app.api.trial import either, for_a_user, posed
from app.errors import InvalidRequestError, StorageError
from app.ingest.schema import Id, UserId
from app.recommend.answer import Query, Recommendations
from app.recommend.ruleset import RuleSet, rules_of
from app.state.events import StoredEvent
from app.telemetry import Stages

router = APIRouter(tags=["recommendations"])

_NOBODY = "-"  # what stands for a user where an event is checked that has none


class ListRequest(BaseModel):
    """A user, or events."""

    model_config = ConfigDict(extra="forbid", strict=True)

    user_id: UserId | None = None
    events: list[Any] | None = None
    k: Annotated[int, Field(ge=1, le=1_000)] = 20
    as_of: Moment | None = None
    platform: Id | None = None
    exclude: Annotated[list[Id], Field(max_length=1_000)] = []
    scenario: Id | None = None
    experiment: Id | None = None
    rules: RuleSet | None = None
    parameters: Annotated[dict[str, Any], Field(max_length=100)] = {}
    context: Annotated[dict[str, Any], Field(max_length=100)] = {}
    seed: Annotated[int, Field(ge=0, lt=2**53)] | None = None
    debug: Annotated[list[Id], Field(max_length=100)] = []
    explain: bool | Literal["exact"] = False

    @model_validator(mode="after")
    def _one_of_them(self) -> ListRequest:
        if (self.user_id is None) == (self.events is None):
            raise PydanticCustomError("whose", "either user_id or events must be given, and not both")
        return self


@router.post(
    "/v1/recommendations",
    summary="What a user, or somebody who did just this, would want next",
    responses=answers(Recommendations, 404, 413, 422, 503),
    openapi_extra={"requestBody": list_body()},
    operation_id="post_recommendations",
)
async def post_recommendations(request: Request) -> Response:
    """With a `user_id` the same as `GET /v1/users/{user_id}/recommendations`.

    `rules` say what the list must be like; those of a `scenario` hold together with them. Rules that cannot be kept give way, and
    `gave_way` names them. Filters may read `$name` from `parameters`, `context.name`, and `user.name` from the user's attributes.

    Under an `experiment` the arm that the user is in decides: the rules of its scenario, and which model makes the list. The
    answer says which one it is, and so does the id of the list.

    With `events` the list is for somebody who did these, in this order, and nothing else: nothing is stored and nobody is looked
    up. So a visitor without an id, or without consent, gets a list of their own from the first click on. If one event is bad, the
    request is a 422.
    """
    hook = hook_of(request)
    asked = await read_model(request, ListRequest, hook.settings.max_body_bytes, hook.bounds)
    either(asked.scenario, asked.experiment)
    for_a_user(asked.user_id, asked.experiment)
    stages, now = Stages(), now_ms()
    query = Query(
        TENANT,
        asked.user_id or "",
        asked.k,
        now if asked.as_of is None else asked.as_of,
        asked.platform,
        exclude=asked.exclude,
        rules=rules_of(asked.rules),
        parameters=asked.parameters,
        context=asked.context,
        debug=asked.debug,
        seed=new_seed() if asked.seed is None else asked.seed,
        explain=ACCOUNTS[asked.explain],
    )
    try:
        service, ruled = await posed(request, await service_of(request), query, asked.scenario, asked.experiment)
        if asked.events is None:
            answer = await service.recommender.recommend(ruled, stages)
        else:
            answer = await service.recommender.recommend_from(checked_events(service, asked.events, now), ruled, stages)
    except StorageError as error:
        # As in GET: without storage nobody can tell which model may answer.
        service, ruled = await posed(request, models_of(request).hall.service, query, asked.scenario, asked.experiment, True)
        answer = service.recommender.degraded(ruled, stages, error)
    hook.metrics.stages(stages)
    return json_response(answer, headers={"Server-Timing": stages.server_timing()})


def checked_events(service: Service, raw_events: list[Any], arrival_ms: int) -> list[StoredEvent]:
    """The events of a request. Raises InvalidRequestError, TooLargeError."""
    named = [index for index, raw in enumerate(raw_events) if isinstance(raw, dict) and "user_id" in raw]
    if named:
        field = f"events.{named[0]}.user_id"
        message = "must not be given: these events are nobody's; name a user instead of events"
        raise InvalidRequestError(f"{field}: {message}", [{"field": field, "message": message}])
    with_user = [raw | {"user_id": _NOBODY} if isinstance(raw, dict) else raw for raw in raw_events]
    valid, wrong = service.ingest.check(with_user, arrival_ms)
    if wrong:
        errors = [
            {"field": ".".join(word for word in ("events", str(one.index), one.field) if word), "message": one.message}
            for one in wrong[:MOST_ERRORS]
        ]
        raise InvalidRequestError(f"{errors[0]['field']}: {errors[0]['message']}", errors)
    return [each.event for each in valid]
