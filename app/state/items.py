"""The live catalogue in Redis: what applications said of their items, in the order in which they said it.

A hash holds what is said of each item now, and a stream the order of the changes: each has a version, one more than the one
before, and whoever has followed up to a version reads what came after it. The stream is bounded: who has fallen behind its
beginning reads the whole hash.
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import msgspec
import structlog

from app.errors import DamagedError, InvalidRequestError
from app.state import keys
from app.state.redis import RedisStore
from app.state.scripts import script
from app.state.text import decode_text, encode_text
from app.state.transport import Command

MOST_CHANGES: Final = 20_000
"""That the stream keeps, about."""
MOST_ITEMS: Final = 10_000_000
MOST_NAMES: Final = 256
"""Of attributes, of all items together."""
_PART: Final = 200
_NUMBER_BYTES: Final = 4
_VECTORS_TTL_S: Final = 30 * 86_400


class Item(msgspec.Struct, frozen=True, omit_defaults=True):
    """What an application said of an item. Times are unix milliseconds; it is available from the first until before the
    second. Vectors are float32, little-endian, which JSON has as base64: 2.7 KB for 512 numbers."""

    title: str | None = None
    description: str | None = None
    categories: tuple[str, ...] | None = None
    attributes: Mapping[str, str | int | float | bool | tuple[str, ...]] = {}
    available_from: int | None = None
    available_to: int | None = None
    hidden: bool = False
    features: Mapping[str, float] = {}
    vectors: Mapping[str, bytes] = {}


@dataclass(frozen=True, slots=True)
class Said:
    """An item as it was left by a change; `item` is None for one that was deleted, `was` what was said of that one before.

    `since_ms` is when anything was said of it first, or again after it was deleted; 0 where that was not read.
    """

    item_id: str
    version: int
    item: Item | None
    since_ms: int = 0
    was: Item | None = None


@dataclass(frozen=True, slots=True)
class Mark:
    """How far somebody has followed the changes; another epoch is another store, or one that was emptied."""

    epoch: str = ""
    version: int = 0


@dataclass(frozen=True, slots=True)
class Change:
    """A change to be made; `item` None deletes. With `expected`, only if that is the item's version now (0: nothing was said)."""

    item_id: str
    item: Item | None
    expected: int | None = None


log = structlog.get_logger()

_encode = msgspec.json.Encoder(order="deterministic").encode
_decode = msgspec.json.Decoder(Item).decode


class ItemStore:
    """The live items of one tenant. Methods raise StorageError."""

    def __init__(self, store: RedisStore, tenant: str) -> None:
        self._store = store
        self._items = keys.items_key(tenant)
        self._changes = keys.item_changes_key(tenant)
        self._touched = touched_keys(tenant)
        self._tenant = tenant

    @property
    def generation(self) -> int:
        """Grows when another server answers than before, which may have lost the last changes."""
        return self._store.generation

    async def change(
        self, changes: Sequence[Change], kinds: Mapping[str, str], now_ms: int, most_items: int = MOST_ITEMS
    ) -> list[int] | None:
        """Make changes, all of them or none: the version of each. None if one did not meet the version that it expected.

        Args:
            kinds: the type of each attribute that the items have.

        Raises:
            InvalidRequestError: an attribute has another type already, or there are too many names or items.
        """
        arguments = change_arguments(changes, kinds, now_ms, most_items, secrets.token_hex(8))
        (last,) = await self._store.run(script("items"), [(self._touched, arguments)], durable=True)
        if not isinstance(last, list):
            return list(range(last - len(changes) + 1, last + 1))
        what, *more = (word.decode() for word in last)
        if what == "version":
            return None
        if what == "kind":
            name, there = more
            field, message = f"attributes.{name}", f"is of type {there} for every item; this value is of type {kinds[name]}"
        elif what == "names":
            field, message = (
                "attributes",
                f"these would be more than {MOST_NAMES} different names of attributes",
            )
        else:
            field, message = "items", f"there are {most_items} items already, which is the most"
        raise InvalidRequestError(f"{field}: {message}", [{"field": field, "message": message}])

    async def kinds(self) -> dict[str, str]:
        """The type of each attribute that any item ever had."""
        (found,) = await self._store.all([("HGETALL", self._touched[2])])
        return {name.decode(): kind.decode() for name, kind in zip(found[::2], found[1::2], strict=True)}

    async def get(self, item_id: str) -> Said | None:
        """What was said last of an item; None if nothing was."""
        (found,) = await self._store.all([("HGET", self._items, encode_text(item_id))])
        return None if found is None else read_said(item_id, found)

    async def mark(self) -> Mark:
        """Where the changes are now."""
        (found,) = await self._store.all([("HGET", self._items, "")])
        return _mark(found)

    async def since(self, mark: Mark) -> list[Said] | None:
        """What changed after a mark, in this order, the first some of it, each item as it is now; None if that is not known: read
        everything."""
        version = mark.version
        last, found = await self._store.all(
            [("HGET", self._items, ""), ("XRANGE", self._changes, f"({version}-0", "+", "COUNT", _PART)]
        )
        now = _mark(last)
        if now.epoch != mark.epoch:
            return None
        versions = [int(entry_id.partition(b"-")[0]) for entry_id, _ in found]
        if not versions:
            return [] if now.version == version else None
        if versions[0] != version + 1:
            return None
        names = [fields[1] for _, fields in found]
        values = await self._store.all([("HMGET", self._items, *names)])
        # An item may have been changed again since: then it is read once more, with that change.
        said: list[Said] = []
        for at, name, value in zip(versions, names, values[0], strict=True):
            found_now = sound(name, value) if value is not None else []
            said.append(replace(found_now[0], version=at) if found_now else Said(decode_text(name), at, None))
        return said

    async def everything(self) -> AsyncIterator[list[Said]]:
        """All items of which something was said, also the deleted ones, some at a time; one may come twice."""
        cursor: int | bytes = 0
        while True:
            ((cursor, found),) = await self._store.all([("HSCAN", self._items, cursor, "COUNT", _PART)])
            yield [said for name, value in zip(found[::2], found[1::2], strict=True) if name for said in sound(name, value)]
            if int(cursor) == 0:
                return

    async def vectors(self, model_id: str, item_ids: Sequence[str]) -> list[bytes | None]:
        """What `keep_vectors` kept for these items."""
        if not item_ids:
            return []
        (found,) = await self._store.all([("HMGET", self._vectors(model_id), *map(encode_text, item_ids))])
        return list(found)

    async def keep_vectors(self, model_id: str, vectors: Mapping[str, bytes]) -> None:
        """Keep what a model made of some items, for other workers and the next start; forgotten a month after the last of
        them."""
        key = self._vectors(model_id)
        pairs = [part for item_id, packed in vectors.items() for part in (encode_text(item_id), packed)]
        commands: list[Command] = [("HSET", key, *pairs), ("EXPIRE", key, _VECTORS_TTL_S)]
        await self._store.all(commands)

    def _vectors(self, model_id: str) -> str:
        return keys.item_vectors_key(self._tenant, model_id)


def touched_keys(tenant: str) -> tuple[str, str, str]:
    """The keys of items.lua."""
    return keys.items_key(tenant), keys.item_changes_key(tenant), keys.item_kinds_key(tenant)


def change_arguments(
    changes: Sequence[Change], kinds: Mapping[str, str], now_ms: int, most_items: int, epoch: str
) -> list[str | int | bytes]:
    """The arguments of items.lua."""
    arguments: list[str | int | bytes] = [MOST_CHANGES, epoch, now_ms, most_items, MOST_NAMES, len(kinds)]
    for name, kind in kinds.items():
        arguments += (name, kind)
    for one in changes:
        said = b"" if one.item is None else _encode(one.item)
        arguments += (encode_text(one.item_id), said, -1 if one.expected is None else one.expected)
    return arguments


def _mark(found: bytes | None) -> Mark:
    if found is None:
        return Mark()
    version, _, epoch = found.decode().partition(" ")
    return Mark(epoch, int(version))


def read_said(item_id: str, value: bytes) -> Said:
    """An item as the hash has it. Raises DamagedError if it is none."""
    try:
        version, since_ms, said = value.split(b" ", 2)
        if said.startswith(b"-"):
            return Said(item_id, int(version), None, int(since_ms), _item(said[1:]) if said != b"-" else None)
        return Said(item_id, int(version), _item(said), int(since_ms))
    except (ValueError, RecursionError, msgspec.DecodeError) as error:
        raise DamagedError(f"what is stored of item {item_id!r} is damaged: {error}; say it again") from None


def _item(said: bytes) -> Item:
    item = _decode(said)
    for name, vector in item.vectors.items():
        if len(vector) % _NUMBER_BYTES:
            raise ValueError(f"the vector {name!r} ends within a number")
    return item


def sound(name: bytes, value: bytes) -> list[Said]:
    """An item, or nothing if it is damaged, which is logged: the others are not held up by it."""
    try:
        return [read_said(decode_text(name), value)]
    except DamagedError as error:
        log.error("an item is left out", error=error.detail)
        return []
