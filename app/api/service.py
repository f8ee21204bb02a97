"""What the routes use. `app.main` wires it and hangs it on the application."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import msgspec
from fastapi import Request, Response

from app.api.connection import Bounds
from app.errors import NotReadyError
from app.models.activate import Activation
from app.models.hall import Hall
from app.models.served import TENANT, Service
from app.recommend.answer import Query
from app.recommend.batch import Batches
from app.recommend.experiments import Experiments
from app.settings import Settings
from app.telemetry import Metrics

__all__ = ["TENANT", "Hook", "Models", "Service", "hook_of", "json_response", "service_of"]


@dataclass(frozen=True)
class Models:
    """The models that this worker has, the way to change them, and who is to get which."""

    hall: Hall
    activation: Activation
    experiments: Experiments


@dataclass
class Hook:
    """Hangs on `app.state`: there from the first request on, the models only when one is ready; `problem` says why it is not."""

    settings: Settings
    metrics: Metrics
    bounds: Bounds
    models: Models | None = None
    problem: str = "starting"
    batches: Batches = field(default_factory=Batches)


def hook_of(request: Request) -> Hook:
    hook: Hook = request.app.state.hook
    return hook


def models_of(request: Request) -> Models:
    """The models behind a request. Raises NotReadyError while there are none, and says why."""
    hook = hook_of(request)
    if hook.models is None:
        raise NotReadyError(f"not ready: {hook.problem}")
    return hook.models


async def service_of(request: Request) -> Service:
    """The model that serves at this moment: a request takes it once and stays with it. Raises NotReadyError."""
    return await models_of(request).hall.current()


async def under(service: Service, scenario: str | None, query: Query, away: bool = False) -> Query:
    """A question with the rules of a scenario beside its own; `away` as of `Remembered.get`. Raises NotFoundError and
    StorageError."""
    if scenario is None:
        return query
    named, rules = await service.scenarios.get(scenario, away)
    return replace(query, rules=query.rules.under(rules), scenario=named)


_encode = msgspec.json.Encoder().encode


def json_response(content: object, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """Anything that msgspec encodes, without a detour through FastAPI's serialiser."""
    return Response(_encode(content), status, headers, "application/json")
