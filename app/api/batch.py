"""POST /v1/recommendations/batch: lists for many users, line by line."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import replace
from typing import Annotated, Any, Final

import msgspec
from fastapi import APIRouter, Request, Response
from msgspec import Meta
from pydantic import BaseModel, ConfigDict, Field

from app.api import problems
from app.api.body import read_model
from app.api.openapi import lines, model_body
from app.api.parameters import Moment, new_seed, now_ms
from app.api.problems import Problem
from app.api.service import TENANT, Hook, Service, hook_of, service_of, under
from app.api.stream import Lines
from app.api.trial import either, experiment_of, turns_of
from app.errors import NotReadyError
from app.ingest.schema import Id, UserId
from app.recommend.answer import Query, Recommendations
from app.recommend.experiment import HOLDOUT
from app.recommend.ruleset import RuleSet, rules_of
from app.telemetry import Stages

router = APIRouter(tags=["recommendations"])

Ask = Callable[[str], tuple[Service, Query]]
"""Who answers for a user, and what is asked."""

MOST_USERS: Final = 10_000
_EXAMPLE: Final = {"user_ids": ["17850", "13047", "12583"], "k": 5, "scenario": "newsletter"}


class BatchRequest(BaseModel):
    """Users, and the question that is asked for each of them."""

    model_config = ConfigDict(extra="forbid", strict=True)

    user_ids: Annotated[list[UserId], Field(min_length=1, max_length=MOST_USERS)]
    k: Annotated[int, Field(ge=1, le=1_000)] = 20
    as_of: Annotated[Moment | None, Field(description="The clock of all lists; the moment of the request if not given.")] = None
    platform: Id | None = None
    exclude: Annotated[list[Id], Field(max_length=1_000)] = []
    scenario: Annotated[Id | None, Field(description="Rules that are stored under a name.")] = None
    experiment: Annotated[
        Id | None, Field(description="The arm that each user is in decides about their list; not together with `scenario`.")
    ] = None
    rules: RuleSet | None = None
    parameters: Annotated[dict[str, Any], Field(max_length=100, description="For `$name` in filters.")] = {}
    context: Annotated[dict[str, Any], Field(max_length=100, description="For `context.name` in filters.")] = {}


class NoList(msgspec.Struct, frozen=True):
    """A line instead of a list."""

    user_id: Annotated[str | None, Meta(description="Whose list could not be made; null where the batch ends before its end.")]
    problem: Problem


@router.post(
    "/v1/recommendations/batch",
    summary="Lists for many users",
    responses=lines(Recommendations, NoList, 404, 413, 422, 503),
    openapi_extra={"requestBody": model_body(BatchRequest, _EXAMPLE)},
    operation_id="post_recommendation_batch",
)
async def post_recommendation_batch(request: Request) -> Response:
    """The same question for up to 10,000 users, answered while the lists are made: one JSON document a line (NDJSON), in the
    order of `user_ids`. Each is what `POST /v1/recommendations` answers, or `{"user_id": ..., "problem": {...}}` where that
    user's list could not be made.

    Users are asked for a few at a time, and no faster than the lines are read, so that other requests are answered as if there
    were little else to do; hanging up ends the work. All lists come from the model that was active at the beginning, or, under an
    `experiment`, from those of its arms, as it was then. If the service stops meanwhile, the last line is a `problem` without a
    user. Without storage nothing is begun (503); where it goes away later, lists say `degraded`.
    """
    hook = hook_of(request)
    asked = await read_model(request, BatchRequest, hook.settings.max_body_bytes, hook.bounds)
    either(asked.scenario, asked.experiment)
    service = await service_of(request)
    question = Query(
        TENANT,
        "",
        asked.k,
        now_ms() if asked.as_of is None else asked.as_of,
        asked.platform,
        exclude=asked.exclude,
        rules=rules_of(asked.rules),
        parameters=asked.parameters,
        context=asked.context,
    )
    ask = await _asking(request, service, asked, question)
    hook.batches.begin()
    return Lines(_lines(hook, ask, asked.user_ids), hook.batches.end)


async def _asking(request: Request, service: Service, asked: BatchRequest, question: Query) -> Ask:
    """Who answers for each user. Raises InvalidRequestError, NotFoundError, StorageError where that fails for all, or an arm."""
    if asked.experiment is None:
        query = await under(service, asked.scenario, question)
        service.recommender.check(query)  # what is wrong for everyone is said once
        return lambda user_id: (service, replace(query, user_id=user_id, seed=new_seed()))
    service.recommender.check(question)
    experiment = await experiment_of(request, asked.experiment)
    turns = await turns_of(request, service, experiment, question)
    queries = {name: turn.question(question) for name, turn in turns.items()}

    def ask(user_id: str) -> tuple[Service, Query]:
        arm = experiment.arm_of(user_id)
        name = HOLDOUT if arm is None else arm.name
        return turns[name].service, replace(queries[name], user_id=user_id, seed=new_seed())

    return ask


async def _lines(hook: Hook, ask: Ask, user_ids: list[str]) -> AsyncGenerator[bytes]:
    async def make(user_id: str) -> Recommendations:
        stages = Stages()
        service, query = ask(user_id)
        answer = await service.recommender.recommend(query, stages)
        hook.metrics.stages(stages)
        return answer

    async with aclosing(hook.batches.each(user_ids, make)) as made:
        for user_id in user_ids:
            if hook.bounds.stopping.is_set():
                stops = NotReadyError("the service stops; lists of this and all further users were not made")
                yield _line(NoList(None, problems.described(stops)))
                return
            found = await anext(made)
            yield _line(NoList(user_id, problems.described(found)) if isinstance(found, Exception) else found)


def _line(content: Recommendations | NoList) -> bytes:
    return _encode(content) + b"\n"


_encode = msgspec.json.Encoder().encode
