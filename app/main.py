"""The application: the only place that wires the parts together. `python -m app.main` writes schema/openapi.json."""

from __future__ import annotations

import asyncio
import gc
import json
import multiprocessing
import os
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from importlib.metadata import version
from pathlib import Path
from time import monotonic
from typing import Any

import structlog
from fastapi import FastAPI
from fastapi.routing import APIRoute

from app.api import events, health, history, identities, openapi, problems, recommendations, users
from app.api.hot import HotPaths, HotRoute
from app.api.measure import Measure
from app.api.service import TENANT, Hook, Service
from app.catalogue.catalogue import Catalogue
from app.catalogue.popularity import LivePopularity
from app.errors import BundleError, DeviceError, LayoutError, StorageAddressError, StorageError
from app.fold import Commits, Fold, StateCache, Users
from app.fold.tensors import EventTensors
from app.ingest.advance import Advance
from app.ingest.append import Increment, UserEvents
from app.ingest.count import PopularityCounter
from app.ingest.pipeline import Ingest
from app.recommend.follow import PopularityFollower
from app.recommend.pipeline import Recommender
from app.recommend.score import Scorer
from app.runtime.bundle import read_bundle
from app.runtime.golden import replay_golden
from app.runtime.session import Runtime, open_runtime
from app.runtime.text import TextEncoder
from app.settings import Settings, load_settings
from app.state.codec import StateCodec
from app.state.embedded import EMBEDDED_URL, EmbeddedRedis, die_with_parent
from app.state.redis import RedisStore
from app.state.transport import Confirm
from app.telemetry import Metrics, configure_logs

_DESCRIPTION = "Tell what users do; ask what each of them would want next."

_STOP_AGAIN_S = 0.05
_COUNT_DELAY_S = 0.05  # popularity on its way to Redis; other workers read it every few seconds

log = structlog.get_logger()


def create_app(settings: Settings | None = None) -> FastAPI:
    """The ASGI application. Nothing is opened before it starts; without `settings` they come from the environment."""
    settings = settings or load_settings()
    hook = Hook(settings, Metrics())

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        configure_logs(settings.log_level, settings.log_format)
        parent = multiprocessing.parent_process()
        if parent is not None and parent.pid is not None:
            # One of several workers: without the process that started it, it would go on holding the port.
            die_with_parent(parent.pid)
        async with AsyncExitStack() as stack:
            try:
                hook.service = await _start(settings, hook.metrics, load_model(settings), stack)
                # What is there now stays: the collector need not walk through it again and again.
                gc.collect()
                gc.freeze()
            except (BundleError, DeviceError, LayoutError, StorageAddressError) as error:
                # Stay up and unready: a probe can then read why, where a dead process would only be restarted.
                hook.problem = error.detail
                log.error("not ready", reason=error.detail)
            yield
            hook.service, hook.problem = None, "shutting down"

    app = FastAPI(title="Longwave", version=version("longwave"), description=_DESCRIPTION, lifespan=lifespan)
    app.state.hook = hook
    app.add_middleware(Measure, metrics=hook.metrics)
    app.add_middleware(HotPaths, routes=[HotRoute(route) for route in _hot_routes()], metrics=hook.metrics)
    problems.install(app)
    openapi.install(app)
    # The more special paths first: a user id may hold slashes, so `/v1/users/{user_id}` would take them all.
    for router in (
        events.router,
        recommendations.router,
        history.router,
        identities.router,
        users.router,
        health.router,
    ):
        app.include_router(router)
    return app


def _hot_routes() -> list[APIRoute]:
    """POST of events, and GET of recommendations."""
    routes = [*events.router.routes, *recommendations.router.routes]
    return [route for route in routes if isinstance(route, APIRoute)]


def load_model(settings: Settings) -> Runtime:
    """Read, verify and open the bundle, and replay its golden vectors.

    Raises:
        BundleError: it is missing, damaged, of another format, or computes something else here than where it was made.
        DeviceError: the demanded device is not there.
    """
    runtime = open_runtime(read_bundle(settings.bundle_dir), settings.device, settings.intra_op_threads)
    replay_golden(runtime)
    return runtime


async def _start(settings: Settings, metrics: Metrics, runtime: Runtime, stack: AsyncExitStack) -> Service:
    """Wire one model; what must be stopped goes on the stack.

    Raises:
        StorageAddressError, LayoutError: the store cannot be used, now or later. One that is only away is waited for.
    """
    bundle, manifest = runtime.bundle, runtime.bundle.manifest
    url = settings.redis_url or stack.enter_context(EmbeddedRedis(settings.storage_dir)).url
    store = open_store(settings, url)
    stack.push_async_callback(store.close)
    catalogue = Catalogue(
        [item.id for item in bundle.items],
        [item.title for item in bundle.items],
        [item.categories for item in bundle.items],
        bundle.vectors,
        bundle.bias,
    )
    popularity = LivePopularity(
        catalogue,
        manifest.popularity.half_lives_s,
        bundle.popularity,
        manifest.popularity.as_of_ms,
        in_flight_s=_COUNT_DELAY_S + settings.redis_timeout_ms / 1000,
    )
    text = TextEncoder(bundle, runtime.device, settings.intra_op_threads) if manifest.text is not None else None
    tensors = EventTensors(manifest, catalogue, text)
    fold = Fold(runtime, catalogue, StateCodec(manifest.state), tensors)
    cache = StateCache(settings.state_cache_mb * 2**20)
    commits = Commits(
        store, cache, manifest.model_id, metrics, every=settings.commit_events, delay_s=settings.commit_delay_ms / 1000
    )
    stack.push_async_callback(commits.close)
    known = Users(store, fold, cache, commits, manifest.model_id, metrics)
    advance = Advance(
        known,
        fold,
        cache,
        metrics,
        delay_s=settings.fold_delay_ms / 1000,
        batch_users=settings.fold_batch_users,
        batch_events=settings.fold_batch_events,
        most_events=settings.max_unfolded_events,
    )
    counter = PopularityCounter(store, manifest.popularity.half_lives_s, _COUNT_DELAY_S)
    stack.push_async_callback(counter.close)

    def on_stored(tenant: str, users: Sequence[UserEvents], increments: Sequence[Increment]) -> None:
        popularity.add(increments, monotonic())
        counter.add(tenant, increments)
        if settings.background_fold:
            for user in users:
                appended = user.appended
                advance.mark(tenant, appended.user_id, appended.epoch, appended.attributes, appended.total, user.events)

    async def room() -> None:
        await advance.room(settings.write_wait_ms / 1000)

    service = Service(
        runtime=runtime,
        catalogue=catalogue,
        store=store,
        ingest=Ingest(
            store,
            manifest.event_types,
            on_stored,
            room=room,
            max_future_s=settings.max_future_s,
            max_events=settings.max_batch_events,
        ),
        recommender=Recommender(
            bundle,
            catalogue,
            popularity,
            Scorer(runtime, catalogue, popularity, fold),
            tensors,
            store,
            known,
            metrics,
        ),
        users=known,
    )
    following = PopularityFollower(store, popularity, catalogue, bundle, TENANT, lambda: counter.counted[TENANT])
    try:
        await following.refresh()
    except StorageError as error:
        log.warning("storage is away at the start", error=error.detail)
    _run(following.follow(settings.popularity_refresh_ms / 1000), stack)
    if settings.background_fold:
        _run(advance.run(), stack)
    metrics.model.labels(manifest.model_id, manifest.data_name, runtime.device.name).set(1)
    log.info(
        "ready",
        model=manifest.model_id,
        data=manifest.data_name,
        items=len(catalogue),
        device=runtime.device.name,
        why=runtime.device.why,
        redis="embedded" if settings.redis_url in (None, os.environ.get(EMBEDDED_URL)) else "external",
    )
    return service


def open_store(settings: Settings, url: str) -> RedisStore:
    """The store as the settings want it. Raises StorageAddressError if `url` is no address."""
    return RedisStore(
        url,
        cluster=settings.redis_cluster,
        timeout_ms=settings.redis_timeout_ms,
        max_sequence=settings.max_sequence,
        dedupe_window=settings.dedupe_window,
        log_max_length=settings.log_max_length,
        state_ttl_s=settings.state_ttl_s,
        tombstone_ttl_s=settings.tombstone_ttl_s,
        confirm=Confirm(settings.redis_wait_replicas, settings.redis_wait_fsync, settings.redis_wait_ms),
    )


def _run(work: Coroutine[Any, Any, None], stack: AsyncExitStack) -> None:
    """Run something beside the requests; the stack ends it."""
    task = asyncio.create_task(work)

    async def stop() -> None:
        # Again and again: redis-py 8.1 swallows a cancellation that reaches one of its calls at the wrong moment.
        while not task.done():
            task.cancel()
            await asyncio.wait([task], timeout=_STOP_AGAIN_S)

    stack.push_async_callback(stop)


def openapi_document() -> str:
    """The OpenAPI document as schema/openapi.json holds it."""
    return json.dumps(create_app(load_settings()).openapi(), indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    (Path(__file__).parents[1] / "schema" / "openapi.json").write_text(openapi_document(), encoding="utf-8")
