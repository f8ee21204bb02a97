"""Named rules: GET of /v1/scenarios, GET, PUT and DELETE of /v1/scenarios/{name}"""

from __future__ import annotations

from typing import Annotated, Any, Final

import msgspec
from fastapi import APIRouter, Path, Query, Request, Response
from msgspec import UNSET, Meta, UnsetType

from app.api.body import read_model
from app.api.damaged import DamagedEntry, told
from app.api.openapi import answers, model_body
from app.api.service import hook_of, json_response, service_of
from app.errors import ConflictError, DamagedError, NotFoundError, TooLargeError
from app.ingest.schema import Id
from app.recommend.ruleset import RuleSet
from app.state.versioned import MOST, MOST_BYTES, MOST_VERSIONS, Damaged, Stored

router = APIRouter(tags=["scenarios"])

ScenarioId = Annotated[Id, Path(description="The scenario's name.", examples=["cart-page"])]
_EXAMPLE: Final = {
    "filters": ["price < 20 and in_stock = true"],
    "exclude_had": [{"types": ["purchase"], "within_s": 2_592_000}],
    "boosts": [{"filter": "categories contains 'candles'", "factor": 2.0}],
    "caps": [{"attribute": "categories", "most": 3}],
    "diversity": 0.2,
}


class Scenario(msgspec.Struct, frozen=True):
    """Rules that requests can name."""

    name: str
    version: Annotated[int, Meta(description="Grows with each change of the rules; none is given twice under a name.")]
    rules: dict[str, Any]


class ScenarioList(msgspec.Struct, frozen=True):
    """All scenarios, by name."""

    scenarios: list[Scenario]
    damaged: Annotated[list[DamagedEntry] | UnsetType, Meta(description="Those that cannot be read, if there are any.")] = UNSET


class ScenarioGone(msgspec.Struct, frozen=True):
    """A scenario that is not there any more."""

    name: str


@router.get("/v1/scenarios", summary="All scenarios", responses=answers(ScenarioList, 422, 503), operation_id="get_scenarios")
async def get_scenarios(request: Request) -> Response:
    """The latest version of each."""
    stored, damaged = await (await service_of(request)).scenarios.store.readable()
    found = []
    for one in stored:
        try:
            found.append(_scenario(one))
        except DamagedError as error:
            damaged.append(Damaged(one.name, error.detail))
    return json_response(ScenarioList(found, told("scenario", damaged)))


@router.put(
    "/v1/scenarios/{name:path}",
    summary="Store rules under a name",
    responses=answers(Scenario, 409, 413, 422, 503),
    openapi_extra={"requestBody": model_body(RuleSet, _EXAMPLE)},
    operation_id="put_scenario",
)
async def put_scenario(request: Request, name: ScenarioId) -> Response:
    """A new version of the rules of that name; it holds everywhere within `LONGWAVE_CATALOGUE_POLL_MS`. The same rules again are
    no new version."""
    hook = hook_of(request)
    rules = await read_model(request, RuleSet, hook.settings.max_body_bytes, hook.bounds)
    scenarios = (await service_of(request)).scenarios
    said = rules.model_dump(mode="json", exclude_unset=True)
    packed = msgspec.json.encode(said, order="deterministic")
    if len(packed) > MOST_BYTES:
        raise TooLargeError(f"the rules have {len(packed)} bytes; at most {MOST_BYTES} are stored under one name")
    version = await scenarios.store.put(name, packed)
    if version is None:
        raise ConflictError(f"there are {MOST['scenario']} scenarios already, which is the most")
    scenarios.forget(name)
    return json_response(Scenario(name, version, said))


@router.get(
    "/v1/scenarios/{name:path}",
    summary="The rules of a scenario",
    responses=answers(Scenario, 404, 422, 503),
    operation_id="get_scenario",
)
async def get_scenario(
    request: Request,
    name: ScenarioId,
    version: Annotated[
        int | None, Query(ge=1, description=f"One of the last {MOST_VERSIONS} versions; the latest if not given.")
    ] = None,
) -> Response:
    """The rules as they were stored."""
    found = await (await service_of(request)).scenarios.store.get(name, version)
    if found is None:
        raise NotFoundError(f"there is no scenario {name!r}" + (f" of version {version}" if version is not None else ""))
    return json_response(_scenario(found))


@router.delete(
    "/v1/scenarios/{name:path}",
    summary="Forget a scenario",
    responses=answers(ScenarioGone, 404, 422, 503),
    operation_id="delete_scenario",
)
async def delete_scenario(request: Request, name: ScenarioId) -> Response:
    """With all its versions. Requests that name it are answered 404 from then on."""
    scenarios = (await service_of(request)).scenarios
    if not await scenarios.store.delete(name):
        raise NotFoundError(f"there is no scenario {name!r}")
    scenarios.forget(name)
    return json_response(ScenarioGone(name))


def _scenario(found: Stored) -> Scenario:
    """Raises DamagedError if what is stored has no rules."""
    try:
        return Scenario(found.name, found.version, msgspec.json.decode(found.body, type=dict[str, Any]))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise DamagedError(f"what is stored of scenario {found.name!r} is damaged; store it again") from None
