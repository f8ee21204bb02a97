"""The application: the only place that wires the parts together. `python -m app.main` writes schema/openapi.json."""

from __future__ import annotations

import asyncio
import gc
import json
import multiprocessing
import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import structlog
from fastapi import Depends, FastAPI
from fastapi.routing import APIRoute

from app.api import (
    batch,
    events,
    experiments,
    health,
    history,
    identities,
    impressions,
    items,
    lists,
    models,
    openapi,
    problems,
    rankings,
    recommendations,
    scenarios,
    several,
    similar,
    trending,
    users,
)
from app.api.connection import Bounds, ended
from app.api.hot import Application, HotRoute
from app.api.measure import Measure
from app.api.parameters import only_known
from app.api.service import Hook, Models
from app.errors import BundleError, DeviceError, LayoutError, StorageAddressError
from app.models.activate import Activation
from app.models.hall import Hall
from app.models.served import TENANT, ServedModel
from app.models.shelf import Shelf, load_model
from app.models.watch import Watch
from app.recommend.experiments import Experiments
from app.runtime.session import Runtime
from app.settings import Settings, load_settings
from app.state.embedded import EMBEDDED_URL, die_with_parent
from app.state.opening import embedded_redis, open_store
from app.state.versioned import VersionedStore
from app.telemetry import Metrics, configure_logs

_DESCRIPTION = "Tell what users do; ask what each of them would want next."

_YOUNG = 10_000  # objects more than were freed
_GENERATIONS = 50

log = structlog.get_logger()


def create_app(settings: Settings | None = None) -> FastAPI:
    """The ASGI application. Nothing is opened before it starts; without `settings` they come from the environment."""
    settings = settings or load_settings()
    metrics = Metrics()
    hook = Hook(settings, metrics, Bounds(settings, metrics))

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[dict[str, Any]]:
        configure_logs(settings.log_level, settings.log_format)
        parent = multiprocessing.parent_process()
        if parent is not None and parent.pid is not None:
            # One of several workers: without the process that started it, it would go on holding the port.
            die_with_parent(parent.pid)
        async with AsyncExitStack() as stack:
            stack.push_async_callback(ended, asyncio.create_task(hook.bounds.sweep()))
            try:
                hook.models = await _start(settings, hook.metrics, load_first(settings), stack)
                _collect_rarely()
            except (BundleError, DeviceError, LayoutError, StorageAddressError) as error:
                # Stay up and unready: a probe can then read why, where a dead process would only be restarted.
                hook.problem = error.detail
                log.error("not ready", reason=error.detail)
            yield {"bounds": hook.bounds}  # for the connections, which uvicorn gives this state
            hook.models, hook.problem = None, "shutting down"

    app = Application(
        title="Longwave",
        version=version("longwave"),
        description=_DESCRIPTION,
        lifespan=lifespan,
        redirect_slashes=False,  # it would send clients to whatever the Host header says
    )
    app.state.hook = hook
    app.add_middleware(Measure, metrics=hook.metrics)
    app.answer_early([HotRoute(route) for route in _hot_routes()], hook.metrics)
    problems.install(app)
    openapi.install(app)
    # The more special paths first: a user id may hold slashes, so `/v1/users/{user_id}` would take them all.
    for router in (
        events.router,
        impressions.router,
        recommendations.router,
        lists.router,
        several.router,
        batch.router,
        rankings.router,
        similar.router,
        items.router,
        scenarios.router,
        experiments.router,
        trending.router,
        history.router,
        identities.router,
        users.router,
        models.router,
    ):
        app.include_router(router, dependencies=[Depends(only_known)])
    app.include_router(health.router)  # asked by others' tools, which may add parameters of their own
    return app


def _collect_rarely() -> None:
    """Have the garbage collector stop the requests less often: what it frees here are the few cycles that errors leave."""
    gc.collect()
    gc.freeze()  # what is there now stays, and need not be walked through again and again
    gc.set_threshold(_YOUNG, _GENERATIONS, _GENERATIONS)


def _hot_routes() -> list[APIRoute]:
    """POST of events, and GET of recommendations."""
    routes = [*events.router.routes, *recommendations.router.routes]
    return [route for route in routes if isinstance(route, APIRoute)]


def load_first(settings: Settings) -> Runtime:
    """The model to start with. Raises BundleError, DeviceError."""
    return load_model(settings.bundle_dir, settings.device, settings.intra_op_threads)


async def _start(settings: Settings, metrics: Metrics, runtime: Runtime, stack: AsyncExitStack) -> Models:
    """Wire store and models; what must be stopped goes on the stack.

    Raises:
        StorageAddressError, LayoutError: the store cannot be used, now or later. One that is only away is waited for.
    """
    url = settings.redis_url or stack.enter_context(embedded_redis(settings)).url
    store = open_store(settings, url)
    stack.push_async_callback(store.close)
    first = ServedModel(settings, store, metrics, runtime)
    experiments = Experiments(VersionedStore(store, TENANT, "experiment"), settings.catalogue_poll_ms / 1000)
    hall = Hall(settings, store, metrics, first, Shelf(settings.bundle_dir, settings.bundles_dir), experiments.models)
    stack.push_async_callback(hall.stop)
    activation = Activation(settings, hall, metrics)
    stack.push_async_callback(activation.stop)
    await hall.start()
    if settings.auto_activate:
        watch = Watch(hall, activation, Shelf(settings.bundle_dir, settings.bundles_dir), metrics)
        stack.push_async_callback(watch.stop)
        watch.start()
    manifest = runtime.bundle.manifest
    log.info(
        "ready",
        model=manifest.model_id,
        data=manifest.data_name,
        items=manifest.items.count,
        device=runtime.device.name,
        why=runtime.device.why,
        redis="embedded" if settings.redis_url in (None, os.environ.get(EMBEDDED_URL)) else "external",
    )
    return Models(hall, activation, experiments)


def openapi_document() -> str:
    """The OpenAPI document as schema/openapi.json holds it."""
    return json.dumps(create_app(load_settings()).openapi(), indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    (Path(__file__).parents[1] / "schema" / "openapi.json").write_text(openapi_document(), encoding="utf-8")
