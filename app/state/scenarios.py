"""Named sets of rules in Redis, every version of them up to a bound."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from app.errors import DamagedError
from app.state import keys
from app.state.redis import RedisStore
from app.state.scripts import script

MOST_SCENARIOS: Final = 1_000
MOST_BYTES: Final = 65_536
MOST_VERSIONS: Final = 50
"""Of one scenario; the oldest go first."""


@dataclass(frozen=True, slots=True)
class StoredScenario:
    """A scenario as of one of its versions; `rules` is JSON."""

    name: str
    version: int
    rules: bytes


class ScenarioStore:
    """The scenarios of one tenant. Methods raise StorageError."""

    def __init__(self, store: RedisStore, tenant: str) -> None:
        self._store = store
        self._keys = (keys.scenarios_key(tenant), keys.scenario_versions_key(tenant))

    async def put(self, name: str, rules: bytes) -> int | None:
        """Store a new version, and return it; None if there are too many scenarios. The same rules again are no new version."""
        (version,) = await self._store.run(
            script("scenario"), [(self._keys, (keys.encode_id(name), rules, MOST_VERSIONS, MOST_SCENARIOS))], durable=True
        )
        return None if version is None else int(version)

    async def get(self, name: str, version: int | None = None) -> StoredScenario | None:
        """A scenario, the latest version or one that is kept."""
        latest, versions = self._keys
        encoded = keys.encode_id(name)
        asked = ("HGET", latest, encoded) if version is None else ("HGET", versions, f"{encoded}:{version}")
        (found,) = await self._store.all([asked])
        return None if found is None else _scenario(name, found)

    async def every(self) -> list[StoredScenario]:
        """The latest version of each, by name."""
        (found,) = await self._store.all([("HGETALL", self._keys[0])])
        pairs = zip(found[::2], found[1::2], strict=True)
        return sorted(
            (_scenario(keys.decode_id(name.decode()), value) for name, value in pairs), key=lambda scenario: scenario.name
        )

    async def delete(self, name: str) -> bool:
        """Forget a scenario with all its versions; False if there is none."""
        (done,) = await self._store.run(script("scenario"), [(self._keys, (keys.encode_id(name),))], durable=True)
        return bool(done)


def _scenario(name: str, found: bytes) -> StoredScenario:
    version, _, rules = found.partition(b" ")
    if not version.isdigit():
        raise DamagedError(f"what is stored of scenario {name!r} is damaged; store it again")
    return StoredScenario(name, int(version), rules)
