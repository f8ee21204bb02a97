"""Everything that belongs to one model, wired: two of them can stand side by side, and a request lives with one of them."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from time import monotonic
from typing import Any, Final

import structlog

from app.catalogue.catalogue import Catalogue
from app.catalogue.popularity import LivePopularity
from app.errors import StorageError
from app.fold import Commits, Fold, StateCache, Users
from app.fold.tensors import EventTensors
from app.ingest.advance import Advance
from app.ingest.append import Increment, UserEvents, popularity_increments
from app.ingest.contexts import ContextCounter, context_increments
from app.ingest.count import PopularityCounter
from app.ingest.impressions import Impressions
from app.ingest.pipeline import Ingest
from app.ingest.trend import TrendCounter
from app.recommend.contexts import ContextPopularity
from app.recommend.explain import Explainer
from app.recommend.follow import PopularityFollower
from app.recommend.indexed import keep_index
from app.recommend.interests import Portraits, Shares
from app.recommend.live import LiveItems
from app.recommend.pipeline import Recommender
from app.recommend.scenarios import Scenarios
from app.recommend.score import Scorer
from app.recommend.similar import SimilarItems
from app.recommend.some import SomeScores
from app.recommend.trending import TrendingItems
from app.runtime.batcher import Patience
from app.runtime.bundle import Bundle
from app.runtime.session import Runtime
from app.runtime.text import TextEncoder
from app.settings import Settings
from app.state.codec import StateCodec
from app.state.contexts import Contexts
from app.state.impressions import ImpressionStore
from app.state.items import ItemStore
from app.state.lists import ListOrigin, read_list_id
from app.state.redis import RedisStore
from app.state.store import Decayed
from app.state.trends import Trends
from app.state.versioned import VersionedStore
from app.telemetry import Metrics, Origin

TENANT: Final = "default"  # keys and more tenants come with authentication

_COUNT_DELAY_S: Final = 0.05  # popularity on its way to Redis; other workers read it every few seconds
_TREND_DELAY_S: Final = 0.2  # trends, likewise; other workers look at most so often:
_TREND_FRESH_S: Final = 1.0
_DEVICE_S: Final = 1.0  # between looks at it for the metrics
_STOP_AGAIN_S: Final = 0.05

log = structlog.get_logger()


@dataclass(frozen=True)
class Service:
    """What the routes use of one model. A request takes one of these once, and stays with it."""

    runtime: Runtime
    catalogue: Catalogue
    store: RedisStore
    ingest: Ingest
    impressions: Impressions
    recommender: Recommender
    users: Users
    portraits: Portraits
    similar: SimilarItems
    items: ItemStore
    live: LiveItems
    scenarios: Scenarios
    scorer: Scorer
    trending: TrendingItems


def _labels(origin: ListOrigin) -> Origin:
    return origin.model_id, origin.scenario, origin.experiment, origin.arm


def _has(models: Sequence[ServedModel], item_id: str) -> bool:
    """Whether an item is in the catalogue of one of these."""
    return any(model.service.catalogue.row(item_id) is not None for model in models)


def _patience(settings: Settings, store: RedisStore) -> tuple[Patience, Patience]:
    """How long reads and writes wait for their turn. A read has the fallback, which is better than waiting; a write has none."""
    read_s = write_s = settings.redis_timeout_ms / 1000
    if settings.redis_wait_replicas or settings.redis_wait_fsync:
        write_s += settings.redis_wait_ms / 1000

    def answered_s() -> float:
        return store.answered_s

    reads = Patience(2 * read_s, read_s, answered_s)
    return reads, Patience(max(settings.write_wait_ms / 1000, write_s), write_s, answered_s)


def catalogue_of(bundle: Bundle) -> Catalogue:
    """The items of a bundle. Raises BundleError if two share an id or a key."""
    items = bundle.items
    return Catalogue(items.ids, items.titles, items.categories, bundle.vectors, bundle.bias)


def text_of(runtime: Runtime, settings: Settings) -> TextEncoder | None:
    """What a model reads texts with, if it does. Raises BundleError."""
    bundle = runtime.bundle
    return TextEncoder(bundle, runtime.device, settings.intra_op_threads) if bundle.manifest.text is not None else None


async def fold_of(runtime: Runtime, settings: Settings, store: RedisStore) -> Fold:
    """The fold of a model with the live items as they are now, for whoever needs nothing else of it. Raises BundleError,
    StorageError."""
    catalogue, text = catalogue_of(runtime.bundle), text_of(runtime, settings)
    await LiveItems(ItemStore(store, TENANT), catalogue, runtime, text, 0.0, Metrics()).complete()
    return Fold(
        runtime, catalogue, StateCodec(runtime.bundle.manifest.state), EventTensors(runtime.bundle.manifest, catalogue, text)
    )


class ServedModel:
    """One model on one store. Raises BundleError if the bundle's parts do not fit together."""

    def __init__(self, settings: Settings, store: RedisStore, metrics: Metrics, runtime: Runtime) -> None:
        bundle, manifest = runtime.bundle, runtime.bundle.manifest
        self.model_id = manifest.model_id
        self.half_lives_s = tuple(manifest.popularity.half_lives_s)
        self._beside: list[ServedModel] = []
        # Who count in the same table before this one, where it only hears of events; likewise, by context.
        self._counted_by: Sequence[ServedModel] = ()
        self._contexts_by: Sequence[ServedModel] = ()
        self._weights = weights = {t.name: t.weight for t in manifest.event_types if t.polarity == "positive"}
        self._settings = settings
        self._metrics = metrics
        self._tasks: list[asyncio.Task[None]] = []
        self._said: str | None = None  # the device that the metrics name
        self._failed = False  # whether they say that it failed
        catalogue = catalogue_of(bundle)
        self._popularity = popularity = LivePopularity(
            catalogue,
            self.half_lives_s,
            bundle.popularity,
            manifest.popularity.as_of_ms,
            in_flight_s=_COUNT_DELAY_S + settings.redis_timeout_ms / 1000,
        )
        text = text_of(runtime, settings)
        tensors = EventTensors(manifest, catalogue, text)
        self.live = LiveItems(ItemStore(store, TENANT), catalogue, runtime, text, settings.catalogue_poll_ms / 1000, metrics)
        fold = Fold(runtime, catalogue, StateCodec(manifest.state), tensors)
        cache = StateCache(settings.state_cache_mb * 2**20)
        # Before what it lacks leaves the sequence.
        self.commit_events = min(settings.commit_events, max(1, settings.max_sequence // 2))
        self._commits = commits = Commits(
            store,
            cache,
            self.model_id,
            metrics,
            every=self.commit_events,
            delay_s=settings.commit_delay_ms / 1000,
            ttl_s=settings.state_ttl_s,
        )
        reads, writes = _patience(settings, store)
        known = Users(store, fold, cache, commits, self.model_id, metrics, reads)
        self._advance = advance = Advance(
            known,
            fold,
            cache,
            metrics,
            delay_s=settings.fold_delay_ms / 1000,
            batch_users=settings.fold_batch_users,
            batch_events=settings.fold_batch_events,
            most_events=settings.max_unfolded_events,
        )

        def begins(item_id: str) -> Decayed | None:
            row = catalogue.row(item_id)
            if row is None or row >= len(bundle.popularity):
                return None
            return manifest.popularity.as_of_ms, bundle.popularity[row].tolist()

        def knows(item_id: str) -> bool:
            return catalogue.row(item_id) is not None

        self._counter = counter = PopularityCounter(store, self.half_lives_s, _COUNT_DELAY_S, knows, begins)
        trends = Trends(store)
        self._trend = trend = TrendCounter(trends, _TREND_DELAY_S, knows)
        contexts = Contexts(store, max(self.half_lives_s))
        self._context = context = ContextCounter(contexts, _TREND_DELAY_S, knows)
        self._contexts = ContextPopularity(contexts, TENANT, catalogue, popularity, settings.context_fallback)
        self._following = PopularityFollower(store, popularity, TENANT, lambda: counter.others_counted(TENANT))

        beside = self._beside

        # Without `self`: a model must not be part of a cycle, as the first one is nothing that the garbage collector looks at.
        def on_stored(tenant: str, users: Sequence[UserEvents], increments: Sequence[Increment]) -> None:
            popularity.add(increments, monotonic())
            counter.add(tenant, increments)
            trend.add(tenant, increments)
            if settings.context_fallback:
                context.add(tenant, context_increments(users, weights))
            for model in beside:
                model.hear(tenant, users)
            for event in (event for user in users for event in user.events):
                if event.recommendation_id is not None and (origin := read_list_id(event.recommendation_id)) is not None:
                    metrics.led_to(_labels(origin), event.type)
            if settings.background_fold:
                for user in users:
                    to = user.appended
                    advance.mark(tenant, to.user_id, to.epoch, to.attributes, to.total, user.events, to.generation)

        async def room() -> None:
            await advance.room(settings.write_wait_ms / 1000)

        self._scorer = scorer = Scorer(runtime, catalogue, popularity, fold, settings.retrieval, settings.segment_rows)
        impressions = ImpressionStore(store, TENANT, settings.log_bound)
        scores, shares = SomeScores(runtime, catalogue, popularity, fold), Shares(runtime, catalogue, popularity)
        explainer = Explainer(manifest, catalogue, fold, tensors, scores, shares, store)
        self.service = Service(
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
                patience=writes,
            ),
            impressions=Impressions(
                impressions,
                lambda origin, items: metrics.shown(_labels(origin), items),
                settings.max_future_s,
            ),
            recommender=Recommender(
                bundle,
                catalogue,
                popularity,
                scorer,
                fold,
                tensors,
                store,
                known,
                impressions.shown,
                explainer,
                self._contexts,
                metrics,
                reads,
            ),
            users=known,
            portraits=Portraits(runtime, catalogue, popularity, fold),
            similar=SimilarItems(catalogue),
            items=ItemStore(store, TENANT),
            live=self.live,
            scorer=scorer,
            scenarios=Scenarios(VersionedStore(store, TENANT, "scenario"), settings.catalogue_poll_ms / 1000),
            trending=TrendingItems(trends, TENANT, catalogue, popularity, _TREND_FRESH_S),
        )

    async def start(self) -> None:
        """Begin what runs beside the requests. Storage that is away is waited for.

        Raises LayoutError if the store is laid out for another version.
        """
        if self._tasks:
            return
        try:
            await self._following.refresh()
            await self.live.refresh()
            await self._contexts.refresh()
        except StorageError as error:
            log.warning("storage is away at the start", error=error.detail)
        self._run(self.live.follow())
        self._run(self.live.encode())
        if self._scorer.retriever is not None:
            folder = self._settings.storage_dir / "indexes"
            self._run(keep_index(self._scorer.retriever, folder, self.model_id, self._scorer.source))
        self._run(self._following.follow(self._settings.popularity_refresh_ms / 1000))
        self._run(self._contexts.follow(self._settings.popularity_refresh_ms / 1000))
        if self._settings.background_fold:
            self._run(self._advance.run())
        self._say_device(1)
        if self.service.runtime.device.name != "cpu" or self.service.runtime.placement.failures:
            self._run(self._watch_device())

    async def stop(self) -> None:
        """End what runs beside the requests and store what waits. Requests that are under way end undisturbed, and `start` begins
        again."""
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            # Again and again: redis-py 8.1 swallows a cancellation that reaches one of its calls at the wrong moment.
            while not task.done():
                task.cancel()
                await asyncio.wait([task], timeout=_STOP_AGAIN_S)
        await self._counter.close()
        await self._trend.close()
        await self._context.close()
        await self._commits.close()
        self._say_device(0)
        self._say_failed(False)

    def tell(self, beside: Sequence[ServedModel]) -> None:
        """Have these models hear of the events that this one takes, from now on."""
        # One table in the store for all models with the same half-lives: whoever counts an item second would count it twice.
        self._counted_by = self._contexts_by = ()
        told = [self]
        for model in beside:
            model._counted_by = [one for one in told if one.half_lives_s == model.half_lives_s]
            model._contexts_by = [one for one in told if max(one.half_lives_s) == max(model.half_lives_s)]
            told.append(model)
        self._beside[:] = beside

    def part(self) -> None:
        """Know of no other model any more, so that none of them keeps this one, or is kept by it."""
        self._counted_by = self._contexts_by = ()
        self._beside.clear()

    def hear(self, tenant: str, users: Sequence[UserEvents]) -> None:
        """Events were stored that another model took. Their users are folded with this one when it is asked for them."""
        increments = popularity_increments(users, self._weights)
        self._popularity.add(increments, monotonic())
        self._counter.add(tenant, [one for one in increments if not _has(self._counted_by, one[0])])
        if self._settings.context_fallback:
            found = context_increments(users, self._weights)
            self._context.add(tenant, [one for one in found if not _has(self._contexts_by, one[0])])

    async def flush(self) -> None:
        """Store the states that wait for it."""
        await self._commits.flush()

    async def _watch_device(self) -> None:
        """Say in the metrics how the device is, until it fails or this is cancelled."""
        runtime, scan = self.service.runtime, self._scorer.device
        while not runtime.placement.failures:  # nobody says so: it comes about
            if scan is not None:
                self._metrics.delta_rows.set(scan.layout.delta_rows)
            await asyncio.sleep(_DEVICE_S)
        self._say_failed(True)
        self._say_device(1)

    def _say_failed(self, failed: bool) -> None:
        """As long as this model is served; another one has a device of its own, that may be well."""
        if failed != self._failed:
            self._failed = failed
            self._metrics.device_failed.inc(1 if failed else -1)

    def _say_device(self, serves: int) -> None:
        """One device at a time, also where the first has failed."""
        runtime = self.service.runtime
        data, name = runtime.bundle.manifest.data_name, runtime.device.name
        if self._said not in (None, name):
            self._metrics.model.labels(self.model_id, data, self._said).set(0)
        self._said = name
        self._metrics.model.labels(self.model_id, data, name).set(serves)

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        self._tasks.append(asyncio.create_task(work))
