"""POST /v1/recommendations/lists: several lists for one user, such as the rows of a page."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from app.api.body import read_model
from app.api.lists import checked_events
from app.api.openapi import answers, model_body
from app.api.parameters import ACCOUNTS, Moment, new_seed, now_ms
from app.api.service import TENANT, Service, hook_of, json_response, models_of, service_of, under
from app.api.trial import either, for_a_user, posed_together
from app.errors import NotFoundError, StorageError
from app.ingest.schema import Id, UserId
from app.recommend.answer import Query, SeveralLists
from app.recommend.ruleset import RuleSet, check_length, rules_of
from app.recommend.several import together
from app.telemetry import Stages

router = APIRouter(tags=["recommendations"])

MOST_LISTS: Final = 20
_EXAMPLE: Final = {
    "user_id": "17850",
    "lists": [
        {"name": "for you", "k": 10},
        {"name": "candles", "k": 10, "rules": {"filters": ["categories contains 'candles'"]}},
        {"name": "bargains", "k": 10, "scenario": "bargains", "parameters": {"most": 5}},
    ],
}


class OneList(BaseModel):
    """One of the lists."""

    model_config = ConfigDict(extra="forbid", strict=True)

    name: Annotated[Id, Field(description="By which the answer names it.")]
    k: Annotated[int, Field(ge=1, le=1_000)] = 20
    exclude: Annotated[list[Id], Field(max_length=1_000, description="Beside those of all lists.")] = []
    scenario: Annotated[Id | None, Field(description="Rules that are stored under a name.")] = None
    rules: RuleSet | None = None
    parameters: Annotated[dict[str, Any], Field(max_length=100, description="Beside those of all lists, and before them.")] = {}
    seed: Annotated[int | None, Field(ge=0, lt=2**53, description="Of exploration.")] = None
    debug: Annotated[list[Id], Field(max_length=100)] = []


class ListsRequest(BaseModel):
    """A user, or events; and lists."""

    model_config = ConfigDict(extra="forbid", strict=True)

    user_id: UserId | None = None
    events: Annotated[
        list[Any] | None, Field(description="Events as of POST /v1/events, but without user_id; at most 1,000.")
    ] = None
    lists: Annotated[list[OneList], Field(min_length=1, max_length=MOST_LISTS)]
    as_of: Moment | None = None
    platform: Id | None = None
    experiment: Annotated[
        Id | None,
        Field(description="The arm that the user is in decides about all lists; none of them can have a scenario of its own."),
    ] = None
    exclude: Annotated[list[Id], Field(max_length=1_000, description="In none of the lists.")] = []
    parameters: Annotated[dict[str, Any], Field(max_length=100, description="For `$name` in filters of all lists.")] = {}
    context: Annotated[dict[str, Any], Field(max_length=100, description="For `context.name` in filters.")] = {}
    explain: Annotated[bool | Literal["exact"], Field(description="What brought each item, of all lists.")] = False

    @model_validator(mode="before")
    @classmethod
    def _not_too_long(cls, raw: Any) -> Any:
        lists = raw.get("lists") if isinstance(raw, dict) else None
        check_length([one.get("rules") for one in lists if isinstance(one, dict)] if isinstance(lists, list) else [])
        return raw

    @model_validator(mode="after")
    def _one_of_each(self) -> ListsRequest:
        if (self.user_id is None) == (self.events is None):
            raise PydanticCustomError("whose", "either user_id or events must be given, and not both")
        names = [one.name for one in self.lists]
        for place, name in enumerate(names):
            if name in names[:place]:
                raise PydanticCustomError(
                    "names", "lists.{place}: there is a list {name} before it", {"place": place, "name": name}
                )
        return self

    def queries(self, now: int) -> list[Query]:
        """A question for each list, without what its scenario says."""
        return [
            Query(
                TENANT,
                self.user_id or "",
                one.k,
                now if self.as_of is None else self.as_of,
                self.platform,
                exclude=[*self.exclude, *one.exclude],
                rules=rules_of(one.rules),
                parameters=self.parameters | one.parameters,
                context=self.context,
                debug=one.debug,
                seed=new_seed() if one.seed is None else one.seed,
                explain=ACCOUNTS[self.explain],
            )
            for one in self.lists
        ]


@router.post(
    "/v1/recommendations/lists",
    summary="Several lists for a user, none of which repeats an item of another",
    responses=answers(SeveralLists, 404, 413, 422, 503),
    openapi_extra={"requestBody": model_body(ListsRequest, _EXAMPLE)},
    operation_id="post_recommendation_lists",
)
async def post_recommendation_lists(request: Request) -> Response:
    """The rows of a page in one call: each list is what `POST /v1/recommendations` gives, without the items of the lists before
    it. They are left out inside retrieval, so a list has k items wherever k are left that its rules allow.

    The user is loaded once: all lists reflect the same events, and come from the same model. An item that a later list pins may
    stand in an earlier one; then the pin gives way. If the rules of one list cannot be followed, the request is a 422.
    """
    hook = hook_of(request)
    asked = await read_model(request, ListsRequest, hook.settings.max_body_bytes, hook.bounds)
    for place, one in enumerate(asked.lists):
        either(one.scenario, asked.experiment, scenario_field=f"lists.{place}.scenario")
    for_a_user(asked.user_id, asked.experiment)
    stages, now = Stages(), now_ms()
    names = [one.name for one in asked.lists]
    try:
        service, queries = await _posed(request, await service_of(request), asked, now)
        if asked.events is None:
            lists = await service.recommender.recommend_several(queries, stages)
        else:
            events = checked_events(service, asked.events, now)
            lists = await service.recommender.recommend_several_from(events, queries, stages)
    except StorageError as error:
        # As in GET: without storage nobody can tell which model may answer.
        service, queries = await _posed(request, models_of(request).hall.service, asked, now, True)
        lists = await service.recommender.degraded_several(queries, stages, error)
    hook.metrics.stages(stages)
    return json_response(together(names, lists), headers={"Server-Timing": stages.server_timing()})


async def _posed(
    request: Request, service: Service, asked: ListsRequest, now: int, away: bool = False
) -> tuple[Service, list[Query]]:
    """Who answers, and the questions, each with the rules of its scenario or of the arm that the user is in. Raises
    NotFoundError, StorageError."""
    if asked.experiment is not None:
        return await posed_together(request, service, asked.queries(now), asked.experiment, away)
    queries = []
    for place, (one, query) in enumerate(zip(asked.lists, asked.queries(now), strict=True)):
        try:
            queries.append(await under(service, one.scenario, query, away))
        except NotFoundError as error:
            error.detail = f"lists.{place}: {error.detail}"
            raise
    return service, queries
