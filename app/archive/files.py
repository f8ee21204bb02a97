"""The Parquet files of an archive: written durably, with a checksum; read; and swept when nobody names them."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from hashlib import blake2b, sha256
from typing import Any, Final

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from app.archive.archive import MANIFESTS, Archive, sync_folder
from app.archive.columns import SCHEMA, from_text
from app.archive.manifest import File, Manifest
from app.errors import ArchiveError
from app.state.keys import encode_id

ROW_GROUP: Final = 65_536  # rows: small enough that a reader of one partition skips most of a large file
ORPHAN_AGE_S: Final = 3_600
"""How long a file that no manifest names is left alone: a reader may have it open, a writer may be about to commit it."""

_LONGEST_NAME: Final = 180  # of a tenant in a path; file systems take 255 bytes
_DRAFT: Final = "*.draft"


def day_of(ms: int) -> str:
    """The day (UTC) of a moment in unix ms."""
    return datetime.fromtimestamp(ms / 1000, UTC).date().isoformat()


def write_file(archive: Archive, tenant: str, day: str, tables: Iterable[pa.Table]) -> File:
    """Write rows of one tenant and day as a new file, durable when this returns; nobody reads it before a manifest names it.

    Args:
        tenant: as in the rows.
        tables: in the order of `columns.ORDER`, over all tables; one row group of them is in memory at a time.

    Raises:
        ArchiveError: it cannot be written; what there was of it is deleted.
    """
    folder = archive.folder / f"tenant={_folder_name(tenant)}" / f"day={day}"
    path = folder / f"{time.time_ns() // 1_000_000}-{secrets.token_hex(8)}.parquet"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            with path.open("xb") as out:
                counted = _Counted(out)
                rows = 0
                with pq.ParquetWriter(counted, SCHEMA, compression="zstd") as writer:
                    for table in _row_groups(tables):
                        writer.write_table(table, row_group_size=ROW_GROUP)
                        rows += table.num_rows
                out.flush()
                os.fsync(out.fileno())
        except BaseException:
            path.unlink(missing_ok=True)
            raise
        for named in (folder, folder.parent, archive.folder):
            sync_folder(named)
    except OSError as error:
        raise ArchiveError(f"{path}: cannot be written: {error.strerror or error}") from error
    relative = path.relative_to(archive.folder).as_posix()
    return File(relative, tenant, day, rows, counted.bytes, counted.digest.hexdigest())


def read_file(
    archive: Archive,
    file: File,
    columns: Sequence[str] | None = None,
    partitions: range | None = None,
    arrived_ms: range | None = None,
    holding: tuple[str, str | None] | None = None,
) -> Iterator[pa.Table]:
    """The row groups of a file, those alone that may have rows of these partitions, and that arrived in this time.

    Args:
        holding: a column of texts, and a value that must be in it, or None for any value; a file without the column has none.

    Raises:
        ArchiveError: it is missing, damaged, or has another number of rows than was committed.
    """
    with _opened(archive, file) as parquet:
        names = None if columns is None else [name for name in columns if name in parquet.schema_arrow.names]
        if holding is not None and holding[0] not in parquet.schema_arrow.names:
            return
        wanted = [
            (parquet.schema_arrow.names.index(name), values)
            for name, values in (("partition", partitions), ("ms", arrived_ms))
            if values is not None
        ]
        for group in range(parquet.num_row_groups):
            held = parquet.metadata.row_group(group)
            if holding is not None:
                at = parquet.schema_arrow.names.index(holding[0])
                if not _may_hold(held.column(at).statistics, holding[1]):
                    continue
            if all(_meets(held.column(at).statistics, values) for at, values in wanted):
                yield parquet.read_row_group(group, names)


def read_batches(archive: Archive, file: File, rows: int) -> Iterator[pa.Table]:
    """A file from its beginning to its end, `rows` rows at a time; no more than these are in memory. Raises like `read_file`."""
    # Not mapped: all of a mapped file counts as ours until it is closed. Without threads: each would keep memory of its own.
    with _opened(archive, file, memory_map=False) as parquet:
        for batch in parquet.iter_batches(rows, use_threads=False):
            yield pa.Table.from_batches([batch])


def verify(archive: Archive, manifest: Manifest) -> None:
    """Compare every file with its size and checksum. Raises ArchiveError for the first that differs."""
    for file in manifest.files:
        path = archive.folder / file.path
        try:
            size = path.stat().st_size
            with path.open("rb") as content:
                digest = sha256()
                while chunk := content.read(1 << 20):
                    digest.update(chunk)
        except OSError as error:
            raise ArchiveError(f"{path}: cannot be read: {error.strerror}") from error
        if size != file.bytes or digest.hexdigest() != file.sha256:
            raise ArchiveError(f"{path}: is not the file that was committed ({size} bytes, {file.bytes} expected)")


def sweep(archive: Archive, age_s: float = ORPHAN_AGE_S) -> int:
    """Delete files that no manifest names, and drafts of manifests, that are older than `age_s`; returns how many files.

    That they go is committed first: a writer that is about to name one of them must then look again, and sees it.
    """
    now_s = time.time()
    orphans: set[str] = set()

    def mark(manifest: Manifest) -> Manifest | None:
        named = {file.path for file in manifest.files}
        orphans.clear()
        orphans.update(path for path in _old(archive, "tenant=*/day=*/*.parquet", now_s - age_s) if path not in named)
        if orphans == set(manifest.swept):
            # Nothing to say that is not said; what is said already may still be there, if its sweeper was killed.
            return None
        return msgspec.structs.replace(manifest, swept=tuple(sorted(orphans)))

    archive.publish([], mark)
    for path in orphans:
        (archive.folder / path).unlink(missing_ok=True)
    for draft in _old(archive, f"{MANIFESTS}/{_DRAFT}", now_s - age_s):
        (archive.folder / draft).unlink(missing_ok=True)
    return len(orphans)


@contextmanager
def _opened(archive: Archive, file: File, memory_map: bool = True) -> Iterator[pq.ParquetFile]:
    """A file to read from; what goes wrong with it, also while it is read, is an ArchiveError that names it."""
    path = archive.folder / file.path
    try:
        with pq.ParquetFile(path, memory_map=memory_map) as parquet:
            if parquet.metadata.num_rows != file.rows:
                raise ArchiveError(f"{path}: has {parquet.metadata.num_rows} rows, its manifest says {file.rows}")
            yield parquet
    except FileNotFoundError:
        raise ArchiveError(f"{path}: is not there; if the archive was rewritten in the meantime, run this again") from None
    except (OSError, pa.ArrowException) as error:
        raise ArchiveError(f"{path}: damaged: {error}") from error


def _row_groups(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """The same rows in tables of `ROW_GROUP` rows each, but for the last."""
    waiting: list[pa.Table] = []
    room = ROW_GROUP
    for table in tables:
        while table.num_rows:
            waiting.append(table.slice(0, room))
            room -= waiting[-1].num_rows
            table = table.slice(waiting[-1].num_rows)
            if not room:
                yield pa.concat_tables(waiting)
                waiting, room = [], ROW_GROUP
    if waiting:
        yield pa.concat_tables(waiting)


def _old(archive: Archive, pattern: str, before_s: float) -> list[str]:
    found = []
    for path in archive.folder.glob(pattern):
        try:
            old = path.stat().st_mtime <= before_s
        except FileNotFoundError:
            continue
        if old:
            found.append(path.relative_to(archive.folder).as_posix())
    return found


def _folder_name(tenant: str) -> str:
    """A tenant as the name of a folder; the rows have it in full."""
    encoded = encode_id(from_text(tenant))
    if len(encoded) <= _LONGEST_NAME:
        return encoded
    return f"{encoded[:_LONGEST_NAME]}~{blake2b(encoded.encode(), digest_size=8).hexdigest()}"


def _meets(statistics: Any, values: range) -> bool:
    if statistics is None or not statistics.has_min_max:
        return True
    return bool(statistics.min < values.stop and statistics.max >= values.start)


def _may_hold(statistics: Any, value: str | None) -> bool:
    if statistics is None or not statistics.has_min_max:
        return statistics is None or statistics.num_values > 0
    return value is None or bool(statistics.min <= value <= statistics.max)


class _Counted:
    """A file to write to that knows the size and checksum of what it was given."""

    def __init__(self, out: Any) -> None:
        self._out = out
        self.digest = sha256()
        self.bytes = 0
        self.closed = False

    def write(self, data: Any) -> int:
        view = memoryview(data)
        self.digest.update(view)
        self.bytes += view.nbytes
        self._out.write(view)
        return view.nbytes

    def tell(self) -> int:
        return self.bytes

    def flush(self) -> None:
        self._out.flush()

    def close(self) -> None:
        self.closed = True

    def readable(self) -> bool:
        return False

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return False
