"""From one model to the next: every worker opens it, active users are folded with it, then all switch at once."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from time import monotonic
from typing import Final, Literal

import structlog

from app.errors import ConflictError, DamagedError, LongwaveError, NotFoundError, RefusedError, StorageError, UnavailableError
from app.fold import Asked, LongTail, Users, UserState
from app.models.hall import Hall
from app.models.served import ServedModel
from app.settings import Settings
from app.state.damage import OneOfManyError
from app.state.models import Heartbeat, Outcome, Serving
from app.telemetry import Metrics

_POLL_S: Final = 0.05
_TOGETHER: Final = 32  # users folded in one go
_ASKED_FOR_S: Final = 5.0  # how long a store that does not answer is asked what became of a commit
_ENDS: Final = {
    True: "it is active, but not every worker has followed",
    False: "the running model keeps serving",
    None: "whether it became active is not known",
}

log = structlog.get_logger()


class Activation:
    """Changes of the model, asked of this worker."""

    def __init__(self, settings: Settings, hall: Hall, metrics: Metrics) -> None:
        self._settings = settings
        self._metrics = metrics
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
        if found is None and self._hall.opened(model_id) is None:  # one that is open needs no folder any more
            raise NotFoundError(f"there is no bundle {model_id!r} here")
        if found is not None and found.manifest is None:
            raise RefusedError(f"the bundle cannot be served: {found.problem}")
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
        self._running = running = asyncio.create_task(self._run(model_id, token))
        running.add_done_callback(self._over)
        return running

    def _over(self, ended: asyncio.Task[None]) -> None:
        """Keep nothing of an activation: the error that one ended with knows the model."""
        if self._running is ended:
            self._running = None

    async def _run(self, model_id: str, token: str) -> None:
        committed: bool | None = False
        generation = 0
        try:
            async with asyncio.timeout(self._settings.activation_timeout_s):
                model = await self._prepared(model_id, token)
                serving = await self._board.serving()
                if serving.previous != model_id:  # else a way back, which waits for nobody: states of then go on where they end
                    await self._backfill(model, token)
                generation = serving.generation + 1
                committed = None  # it may be from here on, whatever is heard of it
                committed = await self._commit(model_id, token, generation)
                if not committed:
                    raise ConflictError("another activation has taken over")
                await self._followed(generation)
            self._metrics.activations.labels("active").inc()
        except BaseException as error:
            if committed is None:
                committed = await asyncio.shield(self._settled(model_id, token, generation, _reason(error)))
            if isinstance(error, TimeoutError):
                what = f"the activation did not end within {self._settings.activation_timeout_s} s"
                error = UnavailableError(f"{what}; {_ENDS[committed]}")
            elif isinstance(error, StorageError) and generation:
                error = StorageError(f"{error.detail}; {_ENDS[committed]}")
            # Shielded: nothing stays half-done. Without the commit above, what served goes on serving.
            await asyncio.shield(self._ended(model_id, token, committed, error))
            raise error from None
        finally:
            self._hall.bringing = None

    async def _commit(self, model_id: str, token: str, generation: int) -> bool:
        """Make the model the active one, in this generation; False if another activation has taken over.

        Raises StorageError if it is not known whether it was done, or if that is not confirmed as the settings demand.
        """
        until_s = monotonic() + _ASKED_FOR_S
        asked = False
        while True:
            try:
                # Once more is safe: only who has the token can do it, which goes with it. And it confirms what was done before.
                if await self._board.commit(token, generation - 1, _outcome(model_id, "active")):
                    return True
                return asked and _is_active(await self._board.serving(), model_id, generation)
            except StorageError:
                if monotonic() > until_s:
                    raise
            asked = True
            await asyncio.sleep(_POLL_S)

    async def _settled(self, model_id: str, token: str, generation: int, reason: str) -> bool | None:
        """Whether a model has become the active one whose commit was not answered; None if the board cannot be read."""
        until_s = monotonic() + _ASKED_FOR_S
        while True:
            with contextlib.suppress(StorageError):
                # Before the board is read: a commit that is still on its way does nothing any more then.
                await self._board.end(token, _outcome(model_id, "failed", reason))
            with contextlib.suppress(StorageError):
                serving = await self._board.serving()
                if serving.token != token or monotonic() > until_s:
                    return _is_active(serving, model_id, generation)
            if monotonic() > until_s:
                return None
            await asyncio.sleep(_POLL_S)

    async def _ended(self, model_id: str, token: str, committed: bool | None, error: BaseException) -> None:
        """Say on the board and aloud why an activation ended early."""
        reason = _reason(error)
        result: Literal["active", "refused", "failed"] = "refused" if isinstance(error, RefusedError) else "failed"
        if committed:
            result = "active"
        self._metrics.activations.labels(result).inc()
        what = {
            "refused": "a bundle is refused; the running model keeps serving",
            "failed": f"an activation has failed; {_ENDS[committed]}",
            "active": "a new model is active, but not every worker has followed",
        }
        log.error(what[result], model=model_id, reason=reason)
        outcome = _outcome(model_id, result, reason)
        try:
            if committed:
                await self._board.said(outcome)
                return
            await self._board.end(token, outcome)
            if isinstance(error, RefusedError) and error.signature:
                await self._board.refuse(model_id, error.signature)
        except StorageError as away:
            log.warning("an activation is not cleared yet", error=away.detail)

    async def _prepared(self, model_id: str, token: str) -> ServedModel:
        """Phase 1: every living worker has the model open.

        Raises:
            RefusedError: one cannot.
            ConflictError: it is not the next one any more.
        """
        signature = seen(await self._board.beat_of_all(), model_id)  # before anything is read: files may be mended meanwhile
        while True:
            if (await self._hall.follow_once()).token != token:
                raise ConflictError("another activation has taken over, or the store was emptied")
            says = await self._board.beat_of_all()
            for said in says.values():
                if said.token == token and model_id in said.failed:  # in this activation, not in an earlier one
                    raise RefusedError(f"the bundle cannot be served: {said.failed[model_id]}", signature)
            model = self._hall.opened(model_id)
            if model is not None and all(model_id in said.ready for said in says.values()):
                return model
            await asyncio.sleep(_POLL_S)

    async def _backfill(self, model: ServedModel, token: str) -> None:
        """Fold the users who were active lately with the new model, at a rate that leaves the reads alone.

        What it folds is stored, and is only looked at the next time: a backfill that was broken off goes on where it ended. Who
        has fewer events to be folded than a state is stored for is left to the first read, which has no more to do than that.
        """
        users = model.service.users
        since_ms = time.time_ns() // 1_000_000 - self._settings.backfill_days * 86_400_000
        done = 0
        await self._board.progress(token, "backfill", done)
        async for found in self._board.users():
            for start in range(0, len(found), _TOGETHER):
                began = time.monotonic()
                some = await self._board.active_since(found[start : start + _TOGETHER], since_ms)
                events = await _fold(users, [Asked(tenant, user_id) for tenant, user_id in some], model.commit_events)
                done += len(some)
                self._metrics.backfilled_users.inc(len(some))
                self._metrics.backfilled_events.inc(events)
                if not await self._board.progress(token, "backfill", done):
                    raise ConflictError("another activation has taken over")
                took = time.monotonic() - began
                await asyncio.sleep(max(0.0, events / self._settings.backfill_events_per_s - took))
        await model.flush()
        log.info("backfilled", model=model.model_id, users=done)

    async def _followed(self, generation: int) -> None:
        """Phase 2: every living worker serves the new generation. Raises ConflictError if there is none any more."""
        while True:
            await self._hall.follow_once()
            says = await self._board.beat_of_all()
            # After they were heard: of a store that was emptied meanwhile nobody is heard who still serves the old one.
            if (await self._board.serving()).generation < generation:
                raise ConflictError("the store was emptied, or has lost what it had acknowledged")
            if self._hall.generation >= generation and all(said.generation >= generation for said in says.values()):
                return
            await asyncio.sleep(_POLL_S)


async def _fold(users: Users, asked: Sequence[Asked], at_least: int) -> int:
    """Fold those users who have so many events to be folded, and are not damaged; returns how many events that were."""
    try:
        states = await users.batch(asked, at_least)
    except (OneOfManyError, DamagedError):  # which is in the log
        return sum([await _fold(users, [one], at_least) for one in asked]) if len(asked) > 1 else 0
    events = sum(state.folded for state in states if isinstance(state, UserState))
    for state in states:
        if isinstance(state, LongTail):
            events += await _fold_long(users, state, at_least)
    return events


async def _fold_long(users: Users, long: LongTail, at_least: int) -> int:
    """The same of one whose events are too many to be folded between other requests."""
    try:
        shorter = await users.shorten(long)
    except DamagedError:
        return 0
    folded = max(0, shorter.own.header.applied - long.start) if shorter.own is not None else 0
    return folded + await _fold(users, [shorter], at_least)


def seen(says: Mapping[str, Heartbeat], model_id: str) -> str:
    """One signature for what all workers see of the files of a bundle: another one as soon as any of them sees other files. Empty
    where nobody looks for new bundles."""
    found = {said.sees[model_id] for said in says.values() if said.sees is not None and model_id in said.sees}
    return blake2b(" ".join(sorted(found)).encode(), digest_size=8).hexdigest() if found else ""


def _is_active(serving: Serving, model_id: str, generation: int) -> bool:
    return serving.generation >= generation and serving.active == model_id


def _reason(error: BaseException) -> str:
    if isinstance(error, asyncio.CancelledError):
        return "the worker that brought it was stopped"
    return error.detail if isinstance(error, LongwaveError) else f"{type(error).__name__}: {error}".removesuffix(": ")


def _outcome(model_id: str, result: Literal["active", "refused", "failed"], reason: str | None = None) -> Outcome:
    return Outcome(model_id, time.time_ns() // 1_000_000, result, reason)
