"""From one model to the next: every worker opens it, active users are folded with it, then all switch at once."""

from __future__ import annotations

import asyncio
import secrets
import time
from typing import Final

import structlog

from app.errors import ConflictError, NotFoundError, StorageError, UnavailableError
from app.fold import Asked, LongTail, UserState
from app.models.hall import Hall
from app.models.served import ServedModel
from app.settings import Settings

_POLL_S: Final = 0.05
_TOGETHER: Final = 32  # users folded in one go

log = structlog.get_logger()


class Activation:
    """Changes of the model, asked of this worker."""

    def __init__(self, settings: Settings, hall: Hall) -> None:
        self._settings = settings
        self._hall = hall
        self._board = hall.board
        self._running: asyncio.Task[None] | None = None

    async def stop(self) -> None:
        """Give up what is running; it can be asked for again."""
        if self._running is not None:
            self._running.cancel()
            await asyncio.gather(self._running, return_exceptions=True)

    async def begin(self, model_id: str) -> asyncio.Task[None] | None:
        """Begin to make a model the active one; None if it is. The task ends when no worker serves another any more.

        Raises:
            NotFoundError: there is no such bundle here.
            ConflictError: another activation is running, or the bundle cannot be served.
            StorageError: Redis did not answer.
        """
        serving = await self._board.serving()
        if serving.active == model_id:
            return None
        found = self._hall.look().get(model_id)
        if found is None:
            raise NotFoundError(f"there is no bundle {model_id!r} here")
        if found.manifest is None:
            raise ConflictError(f"the bundle cannot be served: {found.problem}")
        token = f"{self._hall.worker}:{secrets.token_hex(8)}"
        stale = ""
        if serving.token is not None:
            alive = await self._board.beat_of_all()
            if serving.token.partition(":")[0] in alive:
                raise ConflictError(f"model {serving.candidate} is being activated; one at a time")
            stale = serving.token
        if self._hall.bringing is not None:
            raise ConflictError("another activation is just ending; one at a time")
        self._hall.bringing = token
        try:
            begun = await self._board.begin(model_id, token, time.time_ns() // 1_000_000, stale)
        except BaseException:
            self._hall.bringing = None  # if it has begun nevertheless, the hall ends it
            raise
        if not begun:
            self._hall.bringing = None
            raise ConflictError("another activation has just begun; one at a time")
        self._running = asyncio.create_task(self._run(model_id, token))
        return self._running

    async def _run(self, model_id: str, token: str) -> None:
        committed = False
        try:
            async with asyncio.timeout(self._settings.activation_timeout_s):
                model = await self._prepared(model_id, token)
                await self._backfill(model, token)
                serving = await self._board.serving()
                if not await self._board.commit(token, serving.generation):
                    raise ConflictError("another activation has taken over")
                committed = True
                await self._followed(serving.generation + 1)
        except TimeoutError:
            ends = "it is active, but not every worker has followed" if committed else "the running model keeps serving"
            raise UnavailableError(f"the activation did not end within {self._settings.activation_timeout_s} s; {ends}") from None
        finally:
            # Nothing stays half-done: without the commit above, what served goes on serving.
            try:
                await asyncio.shield(self._board.end(token))
            except StorageError as error:
                log.warning("an activation is not cleared yet", error=error.detail)
            finally:
                self._hall.bringing = None

    async def _prepared(self, model_id: str, token: str) -> ServedModel:
        """Phase 1: every living worker has the model open. Raises ConflictError if one cannot."""
        while True:
            await self._hall.follow_once()
            says = await self._board.beat_of_all()
            for said in says.values():
                if said.token == token and model_id in said.failed:  # in this activation, not in an earlier one
                    raise ConflictError(f"the bundle cannot be served: {said.failed[model_id]}")
            model = self._hall.opened(model_id)
            if model is not None and all(model_id in said.ready for said in says.values()):
                return model
            await asyncio.sleep(_POLL_S)

    async def _backfill(self, model: ServedModel, token: str) -> None:
        """Fold the users who were active lately with the new model, at a rate that leaves the reads alone. States that are there
        already are only looked at: a backfill that was broken off goes on where it ended."""
        users = model.service.users
        since_ms = time.time_ns() // 1_000_000 - self._settings.backfill_days * 86_400_000
        done = 0
        await self._board.progress(token, "backfill", done)
        async for found in self._board.users():
            for start in range(0, len(found), _TOGETHER):
                began = time.monotonic()
                some = await self._board.active_since(found[start : start + _TOGETHER], since_ms)
                events = 0
                for state in await users.batch([Asked(tenant, user_id) for tenant, user_id in some]):
                    while isinstance(state, LongTail):
                        (state,) = await users.batch([await users.shorten(state)])
                        events += state.meta.stored if isinstance(state, UserState) else 0
                    if isinstance(state, UserState):
                        events += state.folded
                done += len(some)
                if not await self._board.progress(token, "backfill", done):
                    raise ConflictError("another activation has taken over")
                took = time.monotonic() - began
                await asyncio.sleep(max(0.0, events / self._settings.backfill_events_per_s - took))
        await model.flush()
        log.info("backfilled", model=model.model_id, users=done)

    async def _followed(self, generation: int) -> None:
        """Phase 2: every living worker serves the new generation."""
        while True:
            await self._hall.follow_once()
            says = await self._board.beat_of_all()
            if self._hall.generation >= generation and all(said.generation >= generation for said in says.values()):
                return
            await asyncio.sleep(_POLL_S)
