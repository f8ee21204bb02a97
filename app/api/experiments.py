"""Experiments: GET of /v1/experiments, GET, PUT and DELETE of /v1/experiments/{name}, and in which arm a user is"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Final

import msgspec
from fastapi import APIRouter, Path, Query, Request, Response
from msgspec import UNSET, Meta, UnsetType
from pydantic import AfterValidator
from pydantic_core import PydanticCustomError

from app.api.body import read_model
from app.api.damaged import DamagedEntry, told
from app.api.openapi import answers, model_body
from app.api.parameters import KnownUserId
from app.api.service import hook_of, json_response, models_of, service_of
from app.api.trial import experiment_of
from app.errors import ConflictError, InvalidRequestError, NotFoundError
from app.ingest.schema import Id
from app.recommend.experiment import HOLDOUT, ExperimentSettings, models_named
from app.recommend.experiment import Experiment as Settled
from app.settings import variable
from app.state.versioned import MOST, MOST_VERSIONS, Stored

router = APIRouter(tags=["experiments"])

_EXAMPLE: Final = {
    "description": "Do more of the new candles sell more of them?",
    "arms": [{"name": "as before", "share": 1}, {"name": "new ones", "share": 1, "scenario": "new-candles"}],
    "holdout": 0.05,
}


def _without_slash(name: str) -> str:
    if "/" in name:
        raise PydanticCustomError("name", "must hold no slash: the addresses of its users would be unclear")
    return name


ExperimentId = Annotated[
    Id, AfterValidator(_without_slash), Path(description="The experiment's name, without a slash.", examples=["new-candles"])
]


class ExperimentPart(msgspec.Struct, frozen=True):
    """What a part of the users gets; the first one is the control."""

    name: str
    share: Annotated[float, Meta(description="Of those who are not held out, relative to the other arms.")]
    scenario: str | UnsetType = UNSET
    model_id: str | UnsetType = UNSET


class Experiment(msgspec.Struct, frozen=True):
    """An experiment, as of one of its versions."""

    name: str
    version: Annotated[int, Meta(description="Grows with each change; none is given twice under a name.")]
    arms: list[ExperimentPart]
    holdout: float
    salt: str
    stopped: bool
    description: str | UnsetType = UNSET


class ExperimentList(msgspec.Struct, frozen=True):
    """All experiments, by name."""

    experiments: list[Experiment]
    damaged: Annotated[list[DamagedEntry] | UnsetType, Meta(description="Those that cannot be read, if there are any.")] = UNSET


class ExperimentGone(msgspec.Struct, frozen=True):
    """An experiment that is not there any more."""

    name: str


class UserArm(msgspec.Struct, frozen=True):
    """In which arm of an experiment a user is."""

    user_id: str
    name: Annotated[str, Meta(description="Of the experiment.")]
    version: int
    arm: Annotated[str, Meta(description="`holdout` for who is held out; the first one for everybody if it is stopped.")]
    place: Annotated[float, Meta(description="Where the user stands, 0 to 1: the holdout comes first, then the arms in order.")]
    stopped: bool


@router.get(
    "/v1/experiments", summary="All experiments", responses=answers(ExperimentList, 422, 503), operation_id="get_experiments"
)
async def get_experiments(request: Request) -> Response:
    """The latest version of each, also of those that are stopped."""
    found, damaged = await models_of(request).experiments.every()
    return json_response(ExperimentList([_answer(one) for one in found], told("experiment", damaged)))


@router.get(
    "/v1/experiments/{name}/users/{user_id:path}",
    summary="In which arm a user is",
    responses=answers(UserArm, 404, 422, 503),
    operation_id="get_user_arm",
)
async def get_user_arm(request: Request, name: ExperimentId, user_id: KnownUserId) -> Response:
    """What a list for this user would be made by, whether the user is known or not: nothing but the id decides."""
    found = await experiment_of(request, name)
    arm = found.arm_of(user_id)
    named = HOLDOUT if arm is None else arm.name
    return json_response(UserArm(user_id, name, found.version, named, found.place_of(user_id), found.settings.stopped))


@router.put(
    "/v1/experiments/{name:path}",
    summary="Begin or change an experiment",
    responses=answers(Experiment, 409, 422, 503),
    openapi_extra={"requestBody": model_body(ExperimentSettings, _EXAMPLE)},
    operation_id="put_experiment",
)
async def put_experiment(request: Request, name: ExperimentId) -> Response:
    """A new version of the experiment; it holds everywhere within `LONGWAVE_CATALOGUE_POLL_MS`. The same again is no new version.

    Users stay where they are while the salt stays; other shares or another holdout move as few as the order of the arms allows.
    Scenarios and models of the arms must be there, but models that it has already while it runs; of an experiment that is
    `stopped`, only the scenario of the first one. All experiments that run may name `LONGWAVE_MODELS_BESIDE` models beside the
    active one (409).
    """
    hook = hook_of(request)
    settings = await read_model(request, ExperimentSettings, hook.settings.max_body_bytes, hook.bounds)
    experiments = models_of(request).experiments
    running = await experiments.running()
    await _check(request, settings, running.get(name, ()))
    _check_models(request, running, running | {name: models_named(settings)})
    if settings.salt is None:  # said outright, so that it is found wherever the experiment is read or copied
        settings = settings.model_copy(update={"salt": name})
    said = settings.model_dump(mode="json", exclude_none=True)
    version = await experiments.store.put(name, msgspec.json.encode(said, order="deterministic"))
    if version is None:
        raise ConflictError(f"there are {MOST['experiment']} experiments already, which is the most")
    experiments.forget(name)
    return json_response(_answer(Settled(name, version, settings)))


@router.get(
    "/v1/experiments/{name:path}",
    summary="An experiment",
    responses=answers(Experiment, 404, 422, 503),
    operation_id="get_experiment",
)
async def get_experiment(
    request: Request,
    name: ExperimentId,
    version: Annotated[
        int | None, Query(ge=1, description=f"One of the last {MOST_VERSIONS} versions; the latest if not given.")
    ] = None,
) -> Response:
    """As it was stored, with what it left out."""
    experiments = models_of(request).experiments
    found: Stored | None = await experiments.store.get(name, version)
    if found is None:
        raise NotFoundError(f"there is no experiment {name!r}" + (f" of version {version}" if version is not None else ""))
    return json_response(_answer(experiments.read(found)))


@router.delete(
    "/v1/experiments/{name:path}",
    summary="Forget an experiment",
    responses=answers(ExperimentGone, 404, 422, 503),
    operation_id="delete_experiment",
)
async def delete_experiment(request: Request, name: ExperimentId) -> Response:
    """With all its versions. Requests that name it are answered 404 from then on: where applications still do, set `stopped`.
    What its lists led to goes on being counted as theirs."""
    experiments = models_of(request).experiments
    if not await experiments.store.delete(name):
        raise NotFoundError(f"there is no experiment {name!r}")
    experiments.forget(name)
    return json_response(ExperimentGone(name))


async def _check(request: Request, settings: ExperimentSettings, had: Sequence[str]) -> None:
    """Raises InvalidRequestError if what the arms need is not there. Of a stopped one only the first arm needs anything: it must
    be possible to stop one whose scenarios and models have gone. Models that it had while it ran may answer on without their
    bundles, and whatever else is changed does not depend on them."""
    arms = settings.arms[:1] if settings.stopped else settings.arms
    scenarios = {arm.scenario for arm in arms if arm.scenario is not None}
    missing = await (await service_of(request)).scenarios.store.missing(scenarios) if scenarios else set()
    bundles = {name for name, found in models_of(request).hall.look().items() if found.manifest is not None} | {*had}
    errors = []
    for place, arm in enumerate(arms):
        if arm.scenario in missing:
            errors.append({"field": f"arms.{place}.scenario", "message": f"there is no scenario {arm.scenario!r}"})
        if arm.model_id is not None and arm.model_id not in bundles and not settings.stopped:
            errors.append({"field": f"arms.{place}.model_id", "message": f"no bundle here has the model {arm.model_id!r}"})
    if errors:
        raise InvalidRequestError(f"{errors[0]['field']}: {errors[0]['message']}", errors)


def _check_models(request: Request, before: Mapping[str, Sequence[str]], after: Mapping[str, Sequence[str]]) -> None:
    """Raises ConflictError if the models of running experiments, by the experiments' names, become too many to stand beside the
    active one; where they are too many already, no more may come."""
    most, active = hook_of(request).settings.models_beside, models_of(request).hall.model_id
    models = {model_id for named in after.values() for model_id in named} - {active}
    if len(models) > most and not models.issubset(model_id for named in before.values() for model_id in named):
        raise ConflictError(
            f"with it the arms of running experiments would name {len(models)} models beside the active one "
            f"({', '.join(sorted(models))}); {variable('models_beside')} allows {most}"
        )


def _answer(found: Settled) -> Experiment:
    settings = found.settings
    arms = [
        ExperimentPart(
            arm.name,
            arm.share,
            UNSET if arm.scenario is None else arm.scenario,
            UNSET if arm.model_id is None else arm.model_id,
        )
        for arm in settings.arms
    ]
    description = UNSET if settings.description is None else settings.description
    return Experiment(
        found.name, found.version, arms, settings.holdout, settings.salt or found.name, settings.stopped, description
    )
