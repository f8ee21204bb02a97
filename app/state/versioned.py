"""What has a name and is set by hand (scenarios, experiments): JSON in Redis, every version of it up to a bound."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Final, Literal
from urllib.parse import quote

from app.errors import DamagedError
from app.state import keys
from app.state.redis import RedisStore
from app.state.scripts import script

MOST: Final = {"scenario": 1_000, "experiment": 200}
"""So many of a kind, in one tenant."""
MOST_BYTES: Final = 65_536
MOST_VERSIONS: Final = 50
"""Of one name; the oldest go first."""

_MOST_DIGITS: Final = 15

Kind = Literal["scenario", "experiment"]


@dataclass(frozen=True, slots=True)
class Stored:
    """What is stored under a name, as of one of its versions; `body` is JSON."""

    name: str
    version: int
    body: bytes


@dataclass(frozen=True, slots=True)
class Damaged:
    """What is stored and cannot be read, and why. A field under whose name nothing could be stored is called by its bytes,
    percent-encoded."""

    name: str
    reason: str


class VersionedStore:
    """What one tenant has of a kind. Methods raise StorageError.

    Versions of a name grow by one with each change. One that is stored again after it was forgotten goes on after the highest of
    all forgotten ones, so that no version of a name ever means two things.
    """

    def __init__(self, store: RedisStore, tenant: str, kind: Kind) -> None:
        self.kind = kind
        self._store = store
        self._keys = (keys.named_key(tenant, kind), keys.named_versions_key(tenant, kind))

    async def put(self, name: str, body: bytes) -> int | None:
        """Store a new version, and return it; None if there are too many names. The same body again is no new version."""
        arguments = (keys.encode_id(name), body, MOST_VERSIONS, MOST[self.kind])
        (version,) = await self._store.run(script("versioned"), [(self._keys, arguments)], durable=True)
        return None if version is None else int(version)

    async def get(self, name: str, version: int | None = None) -> Stored | None:
        """What is there of a name, the latest version or one that is kept."""
        latest, versions = self._keys
        encoded = keys.encode_id(name)
        asked = ("HGET", latest, encoded) if version is None else ("HGET", versions, f"{encoded}:{version}")
        (found,) = await self._store.all([asked])
        return None if found is None else self._read(name, found)

    async def missing(self, names: Collection[str]) -> set[str]:
        """Those names under which nothing is stored."""
        there = await self._store.all([("HEXISTS", self._keys[0], keys.encode_id(name)) for name in names])
        return {name for name, found in zip(names, there, strict=True) if not found}

    async def readable(self) -> tuple[list[Stored], list[Damaged]]:
        """The latest version of each that is not damaged, and those that are; both by name."""
        (said,) = await self._store.all([("HGETALL", self._keys[0])])
        found, damaged = [], []
        for field, value in zip(said[::2], said[1::2], strict=True):
            name = _decoded(field)
            if name is None:
                damaged.append(Damaged(_called(field), "nothing could be stored under this name"))
                continue
            try:
                found.append(self._read(name, value))
            except DamagedError as error:
                damaged.append(Damaged(name, error.detail))
        return sorted(found, key=lambda one: one.name), sorted(damaged, key=lambda one: one.name)

    async def delete(self, name: str) -> bool:
        """Forget a name with all its versions, or what `readable` calls by it; False if there is none."""
        if await self._forget(keys.encode_id(name)):
            return True
        (fields,) = await self._store.all([("HKEYS", self._keys[0])])
        odd = [field for field in fields if _decoded(field) is None and _called(field) == name]
        return bool(odd) and await self._forget(odd[0])

    async def _forget(self, field: str | bytes) -> bool:
        (done,) = await self._store.run(script("versioned"), [(self._keys, (field,))], durable=True)
        return bool(done)

    def _read(self, name: str, found: bytes) -> Stored:
        version, _, body = found.partition(b" ")
        if not version.isdigit() or len(version) > _MOST_DIGITS:
            raise DamagedError(f"what is stored of {self.kind} {name!r} is damaged; store it again")
        return Stored(name, int(version), body)


def _decoded(field: bytes) -> str | None:
    """The name whose field this is; None if it is no name's, such as after a hand that slipped."""
    try:
        name = keys.decode_id(field.decode())
    except ValueError:
        return None
    return name if keys.encode_id(name).encode() == field else None


def _called(field: bytes) -> str:
    return quote(field, safe="")
