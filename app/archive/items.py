"""The live catalogue beside the archive: `items.jsonl`, what was said of every item, for the trainer and for a restore.

It is written whole and put in place by a rename, whenever an archiver finds that something was said. A restore may lack the
changes since then: the catalogue is its owner's, who can say it again; users are not.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
from redis.exceptions import RedisError

from app.errors import ArchiveError, StorageError
from app.state import keys
from app.state.items import MOST_ITEMS, Change, Item, Said, change_arguments, sound, touched_keys
from app.state.scripts import script
from app.state.text import decode_text

FILE: Final = "items.jsonl"
TENANT: Final = "default"  # more of them come with authentication
_PART: Final = 500


class ItemRecord(msgspec.Struct, frozen=True, omit_defaults=True):
    """One line. `item` is what was said last, also of a `deleted` one."""

    id: str
    item: Item
    since_ms: int = 0
    deleted: bool = False


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(ItemRecord).decode


class ItemsFile:
    """The file in an archive's folder, kept up to date with one tenant's catalogue."""

    def __init__(self, client: Any, folder: Path, tenant: str) -> None:
        """`client` is of redis-py, plain or of a Cluster, and does not decode responses."""
        self._client = client
        self._folder = folder
        self._key = keys.items_key(tenant)
        self._written: bytes | None = None

    def refresh(self) -> bool:
        """Write the file anew if anything was said since it was written last; whether it was.

        Raises:
            ArchiveError: it cannot be written.
            StorageError: Redis is away.
        """
        try:
            mark = self._client.hget(self._key, "")  # before the items: what is said meanwhile makes it due again
            if mark is None or mark == self._written:
                return False
            records = sorted(self._records(), key=lambda record: record.id)
        except RedisError as error:
            raise StorageError(f"Redis does not answer: {error}") from error
        path = self._folder / FILE
        part = path.with_name(f"{FILE}.{os.getpid()}.part")
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with part.open("wb") as file:
                file.writelines(_encode(record) + b"\n" for record in records)
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)
        except OSError as error:
            part.unlink(missing_ok=True)
            raise ArchiveError(f"{path}: cannot be written: {error.strerror}") from error
        self._written = mark
        return True

    def _records(self) -> Iterator[ItemRecord]:
        said: dict[str, Said] = {}
        damaged: set[str] = set()
        for name, value in self._client.hscan_iter(self._key, count=_PART):
            if name:
                found = sound(name, value)
                said |= {one.item_id: one for one in found}
                if not found:
                    damaged.add(decode_text(name))
        for one in said.values():
            yield ItemRecord(one.item_id, one.item or one.was or Item(), one.since_ms, one.item is None)
        if damaged := damaged - said.keys():  # what was written of them last is more than nothing
            yield from (record for record in read_items(self._folder) if record.id in damaged)


def read_items(folder: Path) -> list[ItemRecord]:
    """What the file says; nothing if there is none. Raises ArchiveError if it is damaged."""
    path = folder / FILE
    try:
        return [_decode(line) for line in path.read_bytes().splitlines()]
    except FileNotFoundError:
        return []
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ArchiveError(f"{path}: damaged: {error}") from error


def restore_items(client: Any, records: Sequence[ItemRecord], tenant: str) -> None:
    """Say it all again to a Redis whose catalogue is empty. Raises RedisError if it is away."""
    source, to = script("items").source, touched_keys(tenant)
    epoch = secrets.token_hex(8)
    for record in sorted(records, key=lambda record: record.since_ms):
        kinds = {name: _kind(value) for name, value in record.item.attributes.items()}
        said = [Change(record.id, record.item), *([Change(record.id, None)] if record.deleted else [])]
        for change in said:
            client.eval(source, len(to), *to, *change_arguments([change], kinds, record.since_ms, MOST_ITEMS, epoch))


def _kind(value: object) -> str:
    """As `app.catalogue.attributes` names the types."""
    if isinstance(value, bool):
        return "boolean"
    return "string" if isinstance(value, str) else "number" if isinstance(value, int | float) else "list"
