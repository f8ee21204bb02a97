"""New bundles that come into the folder while the service runs, activated by themselves: by one worker of all, once all see them.

A bundle is new if it was made later than the active one, was not active before (a way back by hand is not undone) and was not
there when the service was started (who starts it has chosen among those). It is complete when all files that its manifest names
are there and none has changed for a while. One that cannot be verified is tried again only when its files change.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from datetime import UTC, datetime
from time import monotonic
from typing import Final

import structlog

from app.errors import ConflictError, LongwaveError, RefusedError, StorageError
from app.models.activate import Activation, seen
from app.models.hall import Hall
from app.models.shelf import Found, Shelf
from app.state.models import Heartbeat
from app.telemetry import Metrics

_LOOK_S: Final = 1.0
_SETTLED_S: Final = 2.0  # files that have not changed for so long are taken for whole; if they are not, that is found out
_BACK_OFF_S: Final = 30.0  # after what may pass: storage away, a worker that is too slow

log = structlog.get_logger()


class Watch:
    """Looks for new bundles.

    Args:
        shelf: the folder to look into; its own, since it looks from a thread.
    """

    def __init__(self, hall: Hall, activation: Activation, shelf: Shelf, metrics: Metrics) -> None:
        self._hall = hall
        self._activation = activation
        self._shelf = shelf
        self._metrics = metrics
        self._since: dict[str, tuple[str, float]] = {}  # signature of each bundle, and since when it has been that one
        self._again_s = 0.0
        self._watching: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._hall.sees = {}
        self._watching = asyncio.create_task(self._watch())

    async def stop(self) -> None:
        task = self._watching
        while task is not None and not task.done():
            task.cancel()
            await asyncio.wait([task], timeout=0.05)

    async def _watch(self) -> None:
        while True:
            try:
                await self._look()
            except StorageError as error:
                log.warning("cannot look for new bundles", error=error.detail)
            except Exception:
                log.exception("cannot look for new bundles")
                self._again_s = monotonic() + _BACK_OFF_S
            await asyncio.sleep(_LOOK_S)

    async def _look(self) -> None:
        found, complete = await asyncio.to_thread(lambda: (self._shelf.look(), self._shelf.complete()))
        self._hall.sees = settled = self._settled(complete)
        serving = await self._hall.board.serving()
        says = {worker: said for worker, said in (await self._hall.board.beat_of_all()).items() if said.sees is not None}
        active = self._hall.opened(serving.active or "")
        if active is None or min(says, default=None) != self._hall.worker:
            return  # another one does it
        new: dict[datetime, str] = {}
        made = _made(active.service.runtime.bundle.manifest.created_at)
        for name, signature in settled.items():
            one = found.get(name)
            if one is None:
                continue  # gone, or just come
            if one.manifest is None:
                if serving.refused.get(name) != signature:
                    log.error("a bundle is refused; the running model keeps serving", bundle=name, reason=one.problem)
                    self._metrics.activations.labels("refused").inc()
                    await self._hall.board.refuse(name, signature)
            elif name not in serving.past and serving.refused.get(name) != seen(says, name) and _everyone(says, name):
                new[_made(one.manifest.created_at)] = name
        latest = max(new, default=made)
        if latest > made and monotonic() >= self._again_s:
            await self._activate(new[latest], found[new[latest]])

    async def _activate(self, model_id: str, found: Found) -> None:
        log.info("a new bundle is being activated", model=model_id, folder=found.folder.name)
        try:
            task = await self._activation.begin(model_id)
            if task is not None:
                await task
        except RefusedError:
            pass  # said, and remembered
        except ConflictError as error:
            log.info("a new bundle is not activated now", model=model_id, reason=error.detail)
        except LongwaveError as error:
            log.warning("a new bundle could not be activated, and is tried again", model=model_id, reason=error.detail)
            self._again_s = monotonic() + _BACK_OFF_S

    def _settled(self, complete: Mapping[str, str]) -> dict[str, str]:
        now_s = monotonic()
        for name, signature in complete.items():
            if self._since.get(name, ("", 0.0))[0] != signature:
                self._since[name] = (signature, now_s)
        self._since = {name: since for name, since in self._since.items() if name in complete}
        return {name: signature for name, signature in complete.items() if now_s - self._since[name][1] >= _SETTLED_S}


def _everyone(says: Mapping[str, Heartbeat], name: str) -> bool:
    """Whether every worker that looks sees the bundle, each on its own host."""
    return all(said.sees is not None and name in said.sees for said in says.values())


def _made(created_at: str) -> datetime:
    """When a bundle was made; of one that does not say it, before all others."""
    try:
        moment = datetime.fromisoformat(created_at)
    except ValueError:
        return datetime.min.replace(tzinfo=UTC)
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
