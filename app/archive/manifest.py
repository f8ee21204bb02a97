"""What an archive is: a number, the files that count, and how far each partition's log has been read."""

from __future__ import annotations

from typing import Final

import msgspec

FORMAT: Final = 1


class File(msgspec.Struct, frozen=True):
    """A Parquet file, by its path below the archive's folder; `tenant` is as `columns.to_text` writes it."""

    path: str
    tenant: str
    day: str
    rows: int
    bytes: int
    sha256: str


class Removal(msgspec.Struct, frozen=True):
    """Rows of a user who was erased that must go: those up to the record at (ms, seq), and it. Ids as in the files."""

    tenant: str
    user_id: str
    partition: int
    ms: int
    seq: int
    gone_ms: int = 0


class Removed(msgspec.Struct, frozen=True):
    """What is kept of an erasure once the rows are gone: no name, only the hash by which Redis keeps a tombstone.

    `ms` is when it arrived, `gone_ms` up to which time events of the user are refused, `done_ms` when the rows were gone.
    """

    tenant: str
    user_hash: str
    partition: int
    ms: int
    gone_ms: int
    done_ms: int


class Manifest(msgspec.Struct, frozen=True):
    """One commit. `cursors` has the stream id of the last archived record of each partition (two hex digits), `identities` which
    log that is of: see `identity`; archives of before there were any have none. `whole` are the partitions of which the archive
    has all that the log ever had, as far as that can be known.

    `swept` are files that are being deleted: nobody may commit them any more.
    """

    number: int = 0
    format: int = FORMAT
    token: str = ""  # random: tells a manifest from another that had the same number
    created_ms: int = 0
    files: tuple[File, ...] = ()
    cursors: dict[str, str] = msgspec.field(default_factory=dict)
    removals: tuple[Removal, ...] = ()
    removed: tuple[Removed, ...] = ()
    swept: tuple[str, ...] = ()
    identities: dict[str, str] = msgspec.field(default_factory=dict)
    whole: tuple[str, ...] = ()

    def cursor(self, partition: int) -> str:
        return self.cursors.get(f"{partition:02x}", "0-0")

    def identity(self, partition: int) -> str:
        return self.identities.get(f"{partition:02x}", "")

    @property
    def rows(self) -> int:
        return sum(file.rows for file in self.files)
