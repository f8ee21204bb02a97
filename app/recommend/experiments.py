"""The experiments that requests name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from app.errors import StorageError, UnavailableError
from app.recommend.experiment import Experiment, ExperimentSettings, models_named
from app.recommend.remembered import Remembered
from app.state.versioned import Damaged, Stored, VersionedStore


class Experiments(Remembered[Experiment]):
    """Reads experiments."""

    def __init__(self, store: VersionedStore, fresh_s: float) -> None:
        super().__init__(store, fresh_s, _experiment)
        self._running: tuple[Sequence[Stored], Mapping[str, list[str]]] | None = None

    async def every(self) -> tuple[list[Experiment], list[Damaged]]:
        """All that can be read, and what is wrong with the others. Raises StorageError."""
        stored, damaged = await self.store.readable()
        found = []
        for one in stored:
            try:
                found.append(self.read(one))
            except UnavailableError as error:
                damaged.append(Damaged(one.name, error.detail))
        return found, damaged

    async def running(self) -> dict[str, list[str]]:
        """The models that arms name of each experiment that runs, by its name and in this order. Raises StorageError."""
        every, _ = await self.store.readable()  # what is damaged is said when somebody asks for it
        if self._running is None or self._running[0] != every:
            self._running = every, {one.name: models for one in every if (models := self._models_of(one))}
        return dict(self._running[1])

    async def models(self) -> list[str]:
        """The ids of the models that arms of running experiments name, in the order of the experiments' names and of their arms;
        while storage is away, those that it had last.

        Raises StorageError if storage is away and was not asked before.
        """
        try:
            running: Mapping[str, list[str]] = await self.running()
        except StorageError:
            if self._running is None:
                raise
            running = self._running[1]
        return list(dict.fromkeys(model_id for models in running.values() for model_id in models))

    def _models_of(self, one: Stored) -> list[str]:
        try:
            return models_named(self.read(one).settings)
        except UnavailableError:  # of another version: it is said when somebody asks for it
            return []


def _experiment(found: Stored) -> Experiment:
    return Experiment(found.name, found.version, ExperimentSettings.model_validate_json(found.body))
