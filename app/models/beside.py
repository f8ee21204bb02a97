"""Models that answer beside the one that serves, for whom an experiment sends there."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping, Sequence

import structlog

from app.models.served import ServedModel

log = structlog.get_logger()


class Beside:
    """Starts and ends them, behind the back of the one that serves, which tells them of the events that it takes."""

    def __init__(self, most: int) -> None:
        """`most` is how many may stand beside the one that serves."""
        self._most = most
        self._left_out: Sequence[str] = ()
        self._standing: dict[str, ServedModel] = {}
        self._starting: dict[str, asyncio.Task[None]] = {}

    def get(self, model_id: str) -> ServedModel | None:
        """A model that answers here."""
        return self._standing.get(model_id)

    def chosen(self, served: ServedModel, named: Sequence[str]) -> Sequence[str]:
        """Which of those models may stand beside `served`: the first ones, the same in every worker. The log says which not."""
        others = [model_id for model_id in named if model_id != served.model_id]
        chosen, left_out = others[: self._most], others[self._most :]
        if left_out != self._left_out:
            self._left_out = left_out
            if left_out:
                log.error(
                    "experiments name more models than may stand beside the active one, which answers for them",
                    most=self._most,
                    left_out=left_out,
                )
        return chosen

    async def follow(self, served: ServedModel, opened: Mapping[str, ServedModel], wanted: Collection[str]) -> None:
        """Have those models stand beside `served` that are wanted, as soon as they are open, and no others.

        `opened` has every model that was wanted before.
        """
        wanted = {model_id for model_id in wanted if model_id in opened and model_id != served.model_id}
        gone = []
        for model_id in self._starting.keys() - wanted:
            await _ended(self._starting.pop(model_id))
            gone.append(opened[model_id])  # which may have started in this moment
        # Reading what is popular takes long for a large catalogue, and whoever calls has more to do.
        for model_id in wanted - self._standing.keys() - self._starting.keys():
            self._starting[model_id] = asyncio.create_task(opened[model_id].start())
        for model_id in [model_id for model_id, task in self._starting.items() if task.done()]:
            error = self._starting.pop(model_id).exception()
            if error is None:
                self._standing[model_id] = opened[model_id]
                log.info("a model answers beside the one that serves", model=model_id)
            else:
                log.error("cannot start a model", model=model_id, reason=str(error))  # the next look tries again
        gone += [self._standing.pop(model_id) for model_id in self._standing.keys() - wanted]
        self._tell(served)
        for model in gone:
            if model is not served:
                # Requests that have begun with it end with it: nothing of it is closed, only its own work ends.
                await model.stop()

    def change_places(self, before: ServedModel, served: ServedModel) -> None:
        """One that was serving stands beside the one that serves from this moment on, wanted or not: `follow` tells."""
        self._standing.pop(served.model_id, None)
        self._standing[before.model_id] = before
        before.tell(())
        self._tell(served)

    async def yield_to_serving(self, model_id: str) -> None:
        """A model is about to serve, and is started for that: not by two at once."""
        if model_id in self._starting:
            await _ended(self._starting.pop(model_id))

    def _tell(self, served: ServedModel) -> None:
        served.tell([self._standing[model_id] for model_id in sorted(self._standing)])

    async def stop(self) -> None:
        """Begin nothing any more. What stands is for the caller to stop."""
        for task in self._starting.values():
            await _ended(task)
        self._starting.clear()


async def _ended(task: asyncio.Task[None]) -> None:
    while not task.done():  # a client of Redis may swallow a cancellation
        task.cancel()
        await asyncio.wait([task], timeout=0.05)
