"""The experiments that requests name."""

from __future__ import annotations

from collections.abc import Sequence

from app.errors import StorageError, UnavailableError
from app.recommend.experiment import Experiment, ExperimentSettings
from app.recommend.remembered import Remembered
from app.state.versioned import Stored, VersionedStore


class Experiments(Remembered[Experiment]):
    """Reads experiments."""

    def __init__(self, store: VersionedStore, fresh_s: float) -> None:
        super().__init__(store, fresh_s, _experiment)
        self._models: tuple[Sequence[Stored], frozenset[str]] | None = None

    async def models(self) -> set[str]:
        """The ids of the models that arms of running experiments name; while storage is away, those that it had last.

        Raises StorageError if storage is away and was not asked before.
        """
        try:
            every, _ = await self.store.readable()  # what is damaged is said when somebody asks for it
        except StorageError:
            if self._models is None:
                raise
        else:
            if self._models is None or self._models[0] != every:
                self._models = every, frozenset(model_id for one in every for model_id in self._of(one))
        return set(self._models[1])

    def _of(self, one: Stored) -> set[str]:
        try:
            settings = self.read(one).settings
        except UnavailableError:  # of another version: it is said when somebody asks for it
            return set()
        return set() if settings.stopped else {arm.model_id for arm in settings.arms if arm.model_id is not None}


def _experiment(found: Stored) -> Experiment:
    return Experiment(found.name, found.version, ExperimentSettings.model_validate_json(found.body))
