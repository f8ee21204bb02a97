"""What the routes use. `app.main` wires one and hangs it on the application."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec
from fastapi import Request, Response

from app.catalogue.catalogue import Catalogue
from app.errors import UnavailableError
from app.fold import Users
from app.ingest.pipeline import Ingest
from app.recommend.pipeline import Recommender
from app.runtime.session import Runtime
from app.settings import Settings
from app.state.store import StateStore
from app.telemetry import Metrics

TENANT = "default"  # keys and more tenants come with authentication


@dataclass(frozen=True)
class Service:
    """The parts behind the routes, for one model."""

    runtime: Runtime
    catalogue: Catalogue
    store: StateStore
    ingest: Ingest
    recommender: Recommender
    users: Users


@dataclass
class Hook:
    """Hangs on `app.state`: there from the first request on, the service only when it is ready; `problem` says why it is not."""

    settings: Settings
    metrics: Metrics
    service: Service | None = None
    problem: str = "starting"


def hook_of(request: Request) -> Hook:
    hook: Hook = request.app.state.hook
    return hook


def service_of(request: Request) -> Service:
    """The service behind a request. Raises UnavailableError while it is not ready, and says why."""
    hook = hook_of(request)
    if hook.service is None:
        raise UnavailableError(f"not ready: {hook.problem}")
    return hook.service


_encode = msgspec.json.Encoder().encode


def json_response(content: object, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """Anything that msgspec encodes, without a detour through FastAPI's serialiser."""
    return Response(_encode(content), status, headers, "application/json")
