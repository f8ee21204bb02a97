"""The scenarios that requests name, remembered for a moment: rules change within that, and each request does not ask for them."""

from __future__ import annotations

from collections import OrderedDict
from time import monotonic
from typing import Final

import structlog
from pydantic import ValidationError

from app.errors import NotFoundError, StorageError, UnavailableError
from app.recommend.answer import ScenarioName
from app.recommend.ruleset import RuleSet
from app.state.scenarios import ScenarioStore, StoredScenario

_REMEMBERED: Final = 1_000

Named = tuple[ScenarioName, RuleSet]

log = structlog.get_logger()


class Scenarios:
    """Reads scenarios; one that was read is good for `fresh_s`, and for longer while storage is away."""

    def __init__(self, store: ScenarioStore, fresh_s: float) -> None:
        self.store = store
        self._fresh_s = fresh_s
        self._known: OrderedDict[str, tuple[float, StoredScenario, Named]] = OrderedDict()

    async def get(self, name: str) -> Named:
        """A scenario's name and version, and its rules.

        Raises:
            NotFoundError: there is none of that name.
            StorageError: storage is away, and the scenario was not read before.
            UnavailableError: it was stored by another version, and cannot be read by this one.
        """
        known = self._known.get(name)
        if known is not None and monotonic() < known[0] + self._fresh_s:
            return known[2]
        asked_s = monotonic()
        try:
            found = await self.store.get(name)
        except StorageError:
            if known is None:
                raise
            return known[2]
        if found is None:
            self._known.pop(name, None)
            raise NotFoundError(f"there is no scenario {name!r}")
        if known is None or known[1] != found:
            try:
                rules = RuleSet.model_validate_json(found.rules)
            except ValidationError as error:
                log.error("a scenario cannot be read", scenario=name, version=found.version, error=str(error).splitlines()[0])
                raise UnavailableError(
                    f"scenario {name!r} was stored by another version of the service; store it again"
                ) from None
        else:
            rules = known[2][1]
        named = (ScenarioName(name, found.version), rules)
        self._known[name] = (asked_s, found, named)
        self._known.move_to_end(name)
        if len(self._known) > _REMEMBERED:
            self._known.popitem(last=False)
        return named

    def forget(self, name: str) -> None:
        """Ask again next time: it was changed here."""
        self._known.pop(name, None)
