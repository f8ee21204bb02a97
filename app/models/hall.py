"""The models that this worker has open, and which one it serves: follows the board that all workers share. Those that experiments
name answer beside it.

A worker promises to serve a generation for a short while only (a lease, renewed with every heartbeat). Whoever changes the model
waits until every living worker has said that it follows, and takes for dead who has been silent for longer than any lease: so
when the change is acknowledged, nobody answers from the old model any more, also not one who was cut off or asleep.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from time import monotonic
from typing import Final

import structlog

from app.errors import BundleError, DamagedError, DeviceError, NotReadyError, StorageError, StorageRefusedError, UnavailableError
from app.models.beside import Beside
from app.models.served import ServedModel, Service
from app.models.shelf import Found, Shelf, load_model
from app.settings import Settings
from app.state.models import ALIVE_MS, Heartbeat, ModelBoard, Outcome, Serving
from app.state.redis import RedisStore
from app.telemetry import Metrics

LEASE_S: Final = 2.0
_TRY_AGAIN_S: Final = 10.0
_LEAVE_TO_THE_SERVING_S: Final = ALIVE_MS / 1000
"""A board that was emptied is left to those who served for so long: who has not spoken by then counts as dead."""

log = structlog.get_logger()


class Hall:
    """Opens models, serves one, and keeps the one before for a way back.

    Attributes:
        worker: this worker's name among all.
        board: what all workers share.
        shelf: the bundles that can be opened here.
        bringing: token of the activation that runs here.
        sees: new bundles that are complete here, and signatures of their files; None if nobody looks for them.
    """

    def __init__(
        self,
        settings: Settings,
        store: RedisStore,
        metrics: Metrics,
        first: ServedModel,
        shelf: Shelf,
        beside: Callable[[], Awaitable[Sequence[str]]],
    ) -> None:
        """`beside` says which models are to answer beside the one that serves, the first ones where they are too many; it may
        raise StorageError."""
        self.worker = secrets.token_hex(8)
        self.board = ModelBoard(store)
        self.shelf = shelf
        self.sees: dict[str, str] | None = None
        self._settings = settings
        self._store = store
        self._metrics = metrics
        self._open: dict[str, ServedModel] = {first.model_id: first}
        self._failed: dict[str, str] = {}
        self._failed_s = 0.0  # when the last one failed, on time.monotonic()
        self._token: str | None = None  # of the candidate that was seen last
        self._served = first
        self._wanted_beside = beside
        self._beside = Beside(settings.models_beside)
        self._named: Sequence[str] = ()  # what `beside` said last
        self._generation = 0
        self.bringing: str | None = None
        self._introduced = False
        self._registered_at = -1  # generation of the store when it was told last which models are open here
        self._served_last = False  # what the board said was active when it last said anything is what this worker serves
        self._empty_s: float | None = None  # since when the board has been empty, on time.monotonic()
        self._deaf: str | None = None  # why the board cannot be read
        self._lease_until = 0.0
        self._beating = asyncio.Lock()
        self._looking: asyncio.Task[Serving] | None = None
        self._opening: dict[str, asyncio.Task[None]] = {}
        self._following: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Take part: the first worker of all makes its model the active one; others follow what is active.

        Raises LayoutError if the store is laid out for another version. Storage that is away is waited for.
        """
        await self._served.start()
        self._metrics.serves(self._served.model_id)
        try:
            await self.follow_once()
        except StorageError as error:
            self._hears_nothing(error)
        self._following = asyncio.create_task(self._follow())

    async def stop(self) -> None:
        """Sign off and close every model."""
        for task in [*self._opening.values(), *(task for task in (self._following, self._looking) if task is not None)]:
            while not task.done():
                task.cancel()
                await asyncio.wait([task], timeout=0.05)
        await self._beside.stop()
        with contextlib.suppress(UnavailableError):
            await self.board.beat(self.worker, None, ALIVE_MS)
        for model in self._open.values():
            await model.stop()

    @property
    def service(self) -> Service:
        """What is served now, as far as this worker knows."""
        return self._served.service

    @property
    def model_id(self) -> str:
        """Of the model that is served now, as far as this worker knows."""
        return self._served.model_id

    @property
    def generation(self) -> int:
        return self._generation

    async def current(self) -> Service:
        """What may be served at this moment: asks the board again if the lease has run out.

        Raises:
            NotReadyError: another model is active that this worker does not have open.
            StorageError: the board cannot be read, so nobody knows which model may answer.
        """
        if monotonic() > self._lease_until:
            await self._look_together()
            if monotonic() > self._lease_until:
                raise NotReadyError("another model is active, and is not open here yet")
        return self._served.service

    def opened(self, model_id: str) -> ServedModel | None:
        """A model that is open here."""
        return self._open.get(model_id)

    def beside(self, model_id: str) -> Service | None:
        """A model that answers when it is asked for by its id: the one that serves, or one that an experiment names and that is
        open here; None if it is neither (yet)."""
        if model_id == self._served.model_id:
            return self._served.service
        model = self._beside.get(model_id)
        return None if model is None else model.service

    def failed(self, model_id: str) -> str | None:
        """Why a model could not be opened here."""
        return self._failed.get(model_id)

    def look(self) -> Mapping[str, Found]:
        """The bundles that can be opened here."""
        return self.shelf.look()

    async def follow_once(self) -> Serving:
        """Read the board, do what it says, and say so. Raises StorageError."""
        async with self._beating:
            asked_s = monotonic()
            serving = await self.board.serving()
            if not self._introduced or serving.active is None:
                serving = await self._introduce(serving)
            elif self._registered_at != self._store.generation:  # it may have lost what it was told
                await self._register()
            if serving.active is not None and (serving.generation, serving.active) != (self._generation, self._served.model_id):
                await self._switch(serving)
            await self._clear(serving)
            self._try_again(serving)
            if serving.candidate is not None:
                self._prepare(serving.candidate)
            wanted = await self._stand_beside()
            self._let_go(serving, wanted)
            try:
                alive = await self.board.beat(self.worker, self._says(), ALIVE_MS)
                # Whoever changes the model at this moment is left alone.
                led = serving.token is not None and serving.token.partition(":")[0] in alive
                nobody = not any(serving.active in said.ready for said in alive.values())
                if serving.active in self._failed and nobody and not led:
                    # Such as after a kill and a start with another bundle, before the killed one counted as dead.
                    await self._take_over(serving, "no worker has the one that was active")
            except StorageRefusedError as error:
                # Full, or read-only: then no model can be made active either, and what can be read should be.
                self._hears_nothing(error)
            else:
                self._hears_again()
            if serving.active is not None:
                self._served_last = (serving.generation, serving.active) == (self._generation, self._served.model_id)
                self._empty_s = None
                if self._served_last:
                    self._lease_until = asked_s + LEASE_S
            return serving

    async def _look_together(self) -> None:
        """`follow_once`, once for all who ask meanwhile: one after the other would each wait for a store that hangs."""
        looking = self._looking
        if looking is None:
            looking = self._looking = asyncio.create_task(self.follow_once())

            def done(task: asyncio.Task[Serving]) -> None:
                self._looking = None
                if not task.cancelled():
                    task.exception()  # is raised to those who wait; all may have hung up

            looking.add_done_callback(done)
        await asyncio.shield(looking)

    async def _follow(self) -> None:
        while True:
            try:
                await self._look_together()
            except StorageError as error:
                self._hears_nothing(error)
            except Exception:
                log.exception("cannot follow the active model")
            await asyncio.sleep(self._settings.model_poll_ms / 1000)

    def _hears_nothing(self, error: StorageError) -> None:
        """Say once that storage does not do what is needed here."""
        if self._deaf != error.detail:
            self._deaf = error.detail
            log.warning("cannot say or hear which model is active", error=error.detail)

    def _hears_again(self) -> None:
        if self._deaf is not None:
            self._deaf = None
            log.info("can say and hear again which model is active")

    async def _introduce(self, serving: Serving) -> Serving:
        """Tell a store that does not know us, or has been emptied, which models there are; returns what it says then.

        The first worker of all makes its model the active one, and so does the only one that is there: who starts a service with
        a bundle wants that one.
        """
        await self._store.open()
        if not await self._register():
            return serving  # what is active can be answered from; the next look tries again
        # Before it can be read that our model is active: a worker without it takes over what nobody alive has.
        alive = await self.board.beat(self.worker, self._says(), ALIVE_MS)
        if serving.active is None and self._may_begin():
            if self._introduced:
                log.warning("the store has been emptied; laying it out again", model=self._served.model_id)
            await self.board.first(self._served.model_id)
        if alive.keys() == {self.worker} and not self._introduced:
            if serving.active not in (None, self._served.model_id):
                await self._take_over(serving, "the service was started with it")
            if self._settings.auto_activate:
                # And none of the others that are there: only what comes from now on is new.
                await self.board.know(await asyncio.to_thread(self.shelf.complete))
        self._introduced = True
        return await self.board.serving()

    async def _register(self) -> bool:
        """Tell the store which models are open here, whose states an erasure must find; False if it takes no writes."""
        generation = self._store.generation
        try:
            for model_id in [*self._open]:  # others may be opened meanwhile
                await self._store.register_model(model_id, "{}")
        except StorageRefusedError as error:
            self._hears_nothing(error)
            return False
        self._registered_at = generation
        return True

    def _may_begin(self) -> bool:
        """Whether this worker's model may be the first on a board that says nothing.

        One that is new is for whoever comes first. One that was emptied is for those who served what was active on it: the others
        leave them the time to say so. A worker that has just been started cannot tell the two apart, and takes it for new: there
        is hardly a start in the moment between an emptying and the next look of a serving worker.
        """
        if not self._introduced or self._served_last:
            return True
        if self._empty_s is None:
            self._empty_s = monotonic()
        return monotonic() > self._empty_s + _LEAVE_TO_THE_SERVING_S

    async def _take_over(self, serving: Serving, why: str) -> None:
        """Make the model that is served here the active one: nobody has the one that is."""
        token = f"{self.worker}:start"
        outcome = Outcome(self._served.model_id, time.time_ns() // 1_000_000, "active", why)
        if await self.board.begin(self._served.model_id, token, 0, serving.token or ""):
            await self.board.commit(token, serving.generation, outcome)
            log.warning("made active", model=self._served.model_id, before=serving.active, why=why)

    async def _clear(self, serving: Serving) -> None:
        """Take away what an activation of this worker left behind that could not reach the store at its end."""
        token = serving.token
        if token is not None and token != self.bringing and token.partition(":")[0] == self.worker and serving.candidate:
            reason = "the store was away at its end"
            await self.board.end(token, Outcome(serving.candidate, time.time_ns() // 1_000_000, "failed", reason))

    def _says(self) -> Heartbeat:
        return Heartbeat(self._generation, sorted(self._open), self._failed, self._token, self.sees)

    async def _switch(self, serving: Serving) -> None:
        assert serving.active is not None
        model = self._open.get(serving.active)
        if model is None:
            self._prepare(serving.active)
            return  # and the lease runs out
        if model is not self._served:
            await self._beside.yield_to_serving(model.model_id)
            await model.start()
            before, self._served = self._served, model
            # An arm may name the old one: it answers on without a gap, until `_stand_beside` finds, in this look, that none does.
            self._beside.change_places(before, model)
            self._metrics.serves(model.model_id, before.model_id)
            log.info("switched", model=model.model_id, before=before.model_id, generation=serving.generation)
        self._generation = serving.generation
        self._metrics.generation.set(serving.generation)

    def _try_again(self, serving: Serving) -> None:
        """Forget why a model could not be opened: for each new activation, and now and then, since a bundle may be mended."""
        if serving.token != self._token:
            self._token = serving.token
            self._failed.pop(serving.candidate or "", None)
        if monotonic() > self._failed_s + _TRY_AGAIN_S and serving.candidate is None:
            self._failed.clear()

    def _prepare(self, model_id: str) -> None:
        """Begin to open a model, if it is neither open nor being opened."""
        if model_id not in self._open and model_id not in self._opening and model_id not in self._failed:
            self._opening[model_id] = asyncio.create_task(self._open_model(model_id))

    async def _open_model(self, model_id: str) -> None:
        try:
            found = self.look().get(model_id)
            if found is None or found.manifest is None:
                raise BundleError(f"{model_id}: no such bundle here" if found is None else f"{found.problem}")
            # First, since it is quick: in a store that is full, this fails with every look until there is room.
            await self._store.register_model(model_id, "{}")
            runtime = await asyncio.to_thread(load_model, found.folder, self._settings.device, self._settings.intra_op_threads)
            if runtime.bundle.manifest.model_id != model_id:
                raise BundleError(f"{found.folder}: holds {runtime.bundle.manifest.model_id} by now")
            # Of 300,000 items this takes 0.6 s, in which nobody would be answered here.
            model = await asyncio.to_thread(ServedModel, self._settings, self._store, self._metrics, runtime)
            await model.live.complete()
            await self._store.register_model(model_id, "{}")  # again: the store may have been emptied meanwhile
            self._open[model_id] = model
            log.info("opened", model=model_id)
        except (BundleError, DeviceError) as error:
            self._fail(model_id, error.detail)
            log.error("cannot open a model", model=model_id, reason=error.detail)
        except StorageError as error:
            log.warning("cannot open a model now", model=model_id, error=error.detail)  # the next look tries again
        except Exception as error:
            self._fail(model_id, f"{type(error).__name__}: {error}")
            log.exception("cannot open a model", model=model_id)
        finally:
            del self._opening[model_id]

    def _fail(self, model_id: str, reason: str) -> None:
        self._failed[model_id], self._failed_s = reason, monotonic()

    async def _stand_beside(self) -> Collection[str]:
        """Have those models answer beside the one that serves which experiments name; returns their ids."""
        try:
            self._named = await self._wanted_beside()
        except (StorageError, DamagedError):
            pass  # whatever becomes of experiments, the one that serves is followed
        except Exception:
            log.exception("cannot tell which models are to answer beside the one that serves")
        wanted = self._beside.chosen(self._served, self._named)
        for model_id in wanted:
            self._prepare(model_id)
        await self._beside.follow(self._served, self._open, wanted)
        return wanted

    def _let_go(self, serving: Serving, beside: Collection[str]) -> None:
        """Forget models that are neither active nor the one before nor to be next, and that no experiment names."""
        wanted = {serving.active, serving.previous, serving.candidate, self._served.model_id, *beside}
        for model_id in [model_id for model_id in self._open if model_id not in wanted]:
            self._open.pop(model_id).part()
