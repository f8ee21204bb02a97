"""`longwave import`: histories from files into users' sequences.

Two passes. The first reads and checks every row, and spills the events into buckets by user; a bad row ends the import there,
with nothing written. The second takes one bucket at a time, which is all that is in memory, sorts it by user and time, and writes
each user at once. An import that was killed is run again, and the store passes over the users that have it, and the parts of long
histories.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import IO, Any, Final, Protocol
from zlib import crc32

import pyarrow as pa

from app.archive.columns import from_text, to_text
from app.archive.tables import read_events
from app.errors import DamagedError, ImportFileError
from app.ingest.validate import validate
from app.state.events import StoredEvent, decode_event, encode_event

BUCKETS: Final = 64
_SAID: Final = 10  # bad rows that an error names, and damaged users
_IN_FLIGHT: Final = 32  # users that are being written at a time
_BUFFER_ROWS: Final = 2_000  # of one bucket, before they go to its file

_SPILL: Final = pa.schema(
    [
        ("user_id", pa.large_string()),
        ("time_ms", pa.int64()),
        ("row", pa.int64()),
        ("event", pa.large_binary()),
        ("event_id", pa.large_string()),
    ]
)


class HistoryWriter(Protocol):
    """The one thing that an import needs of the store."""

    async def write_history(
        self, tenant: str, user_id: str, events: Sequence[StoredEvent], event_ids: Sequence[str | None], import_id: str
    ) -> int | None:
        """Add events, sorted by time, to the user's sequence under a new epoch; returns how many were taken, None if this import
        has done so before."""


@dataclass(slots=True)
class Imported:
    """What an import did. `again` users had it already; `known` rows were of before their user was erased, or of events that
    the user had, by their ids; `refused` rows were passed over, and `reasons` say why. `damaged` users could not be written, and
    `damages` say which and why."""

    rows: int = 0
    users: int = 0
    again: int = 0
    known: int = 0
    refused: int = 0
    reasons: list[str] = field(default_factory=list)
    damaged: int = 0
    damages: list[str] = field(default_factory=list)


Progress = Callable[[str, float], None]
"""Told what is being done, and which part of it is done, from 0 to 1."""


def import_id_of(files: Sequence[Path], mapping: Mapping[str, str], event_type: str | None = None) -> str:
    """An id for the content of these files read in this way: the same import again has the same, and as events of another type
    they are another import. Raises ImportFileError."""
    digest = sha256(repr((sorted(mapping.items()), event_type)).encode())
    for path in files:
        try:
            with path.open("rb") as content:
                while chunk := content.read(1 << 20):
                    digest.update(chunk)
        except OSError as error:
            raise ImportFileError(f"{path}: cannot be read: {error.strerror}") from error
        digest.update(b"end of file")
    return digest.hexdigest()[:16]


async def import_files(
    files: Sequence[Path],
    writer: HistoryWriter,
    *,
    tenant: str,
    import_id: str,
    known_types: Collection[str],
    mapping: Mapping[str, str],
    event_type: str | None = None,
    skip_bad: bool = False,
    max_future_s: float = 0.0,
    on_progress: Progress = lambda what, done: None,
    buckets: int = BUCKETS,
) -> Imported:
    """Import files of events, given as `tables.read_events` takes them.

    Args:
        known_types: the event types of the model.
        skip_bad: pass over rows that cannot be stored, where the import would otherwise end before it writes anything.

    Raises:
        ImportFileError: a file cannot be read, or has bad rows: it names the first of them.
        StorageError: Redis is away; run the same import again.
    """
    imported = Imported()
    now_ms = time.time_ns() // 1_000_000

    def check(path: Path, first: int, raw: list[dict[str, Any]]) -> Iterator[tuple[int, str, StoredEvent, str | None]]:
        valid, errors = validate(raw, known_types, now_ms, max_future_s)
        bad = {error.index: f"{error.field} {error.message}".strip() for error in reversed(errors)}
        untimed = [v.index for v in valid if "timestamp" not in raw[v.index]]
        bad |= dict.fromkeys(untimed, "timestamp is required: a history has no time of arrival")
        imported.refused += len(bad)
        for index in sorted(bad)[: _SAID - len(imported.reasons)]:
            imported.reasons.append(f"{path}: row {first + index}: {bad[index]}")
        for found in valid:
            if found.index not in bad:
                yield first + found.index, found.user_id, found.event, found.event_id

    with _said_of_scratch(), ExitStack() as files_of_ours:
        # They have no names: nothing of them is left, however this process ends.
        spill = _Spill([files_of_ours.enter_context(tempfile.TemporaryFile()) for _ in range(buckets)])
        with spill:
            for number, path in enumerate(files):
                for rows in read_events(path, mapping, event_type):
                    for event in check(path, rows.first, rows.events):
                        spill.add(*event)
                    on_progress("reading", (number + rows.done) / len(files))
        if imported.refused and not skip_bad:
            more = f"\n... and {imported.refused - _SAID:,} more" if imported.refused > _SAID else ""
            raise ImportFileError("\n".join(imported.reasons) + more + "\nnothing was imported")
        await _write(spill, writer, tenant, import_id, imported, on_progress)
    return imported


async def _write(
    spill: _Spill, writer: HistoryWriter, tenant: str, import_id: str, imported: Imported, on_progress: Progress
) -> None:
    slots = asyncio.Semaphore(_IN_FLIGHT)

    async def write(user_id: str, events: list[StoredEvent], event_ids: list[str | None]) -> None:
        try:
            taken = await writer.write_history(tenant, user_id, events, event_ids, import_id)
            if taken is None:
                imported.again += 1
            else:
                imported.users += taken > 0
                imported.rows += taken
                imported.known += len(events) - taken
        except DamagedError as error:  # says nothing of the others
            imported.damaged += 1
            imported.damages += [error.detail] if len(imported.damages) < _SAID else []
        finally:
            slots.release()
        handled[0] += len(events)
        on_progress("writing", handled[0] / max(spill.rows, 1))

    handled = [0]
    async with asyncio.TaskGroup() as group:
        for user_id, events, event_ids in spill.users():
            await slots.acquire()
            group.create_task(write(user_id, events, event_ids))


@contextmanager
def _said_of_scratch() -> Iterator[None]:
    """A full disk is told of by the folder that people can make room in, or change."""
    try:
        yield
    except OSError as error:
        folder = tempfile.gettempdir()
        raise ImportFileError(
            f"{folder} (TMPDIR): cannot hold the events while they are sorted: {error.strerror or error}"
        ) from error


class _Spill:
    """Events on disk, in buckets by user, a file each. Filled within its context, read after it."""

    def __init__(self, files: Sequence[IO[bytes]]) -> None:
        self._files = files
        self._waiting: list[list[tuple[str, int, int, bytes, str | None]]] = [[] for _ in files]
        self._writers: list[pa.ipc.RecordBatchStreamWriter] = []
        self._stack = ExitStack()
        self.rows = 0

    def __enter__(self) -> _Spill:
        options = pa.ipc.IpcWriteOptions(compression="lz4")
        for file in self._files:
            self._writers.append(self._stack.enter_context(pa.ipc.new_stream(file, _SPILL, options=options)))
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            for bucket in range(len(self._files)):
                self._flush(bucket)
        self._stack.close()
        if kind is None:
            for file in self._files:
                file.flush()

    def add(self, row: int, user_id: str, event: StoredEvent, event_id: str | None) -> None:
        user = to_text(user_id)
        bucket = crc32(user.encode()) % len(self._files)
        # Not the row of its file but of all: of the same time, earlier files come first.
        self._waiting[bucket].append((user, event.time_ms, self.rows, encode_event(event), event_id))
        self.rows += 1
        if len(self._waiting[bucket]) >= _BUFFER_ROWS:
            self._flush(bucket)

    def users(self) -> Iterator[tuple[str, list[StoredEvent], list[str | None]]]:
        """Each user with all their events in order of time, and the events' ids. The files are closed as they are read."""
        by = [("user_id", "ascending"), ("time_ms", "ascending"), ("row", "ascending")]
        for file in self._files:
            file.seek(0)
            with file, pa.ipc.open_stream(file) as stream:
                table = stream.read_all().sort_by(by)
            user: str | None = None
            events: list[StoredEvent] = []
            ids: list[str | None] = []
            for batch in table.to_batches(max_chunksize=8_192):
                columns = (batch.column(name).to_pylist() for name in ("user_id", "event", "event_id"))
                for of_user, packed, event_id in zip(*columns, strict=True):
                    if of_user != user:
                        if user is not None:
                            yield from_text(user), events, ids
                        user, events, ids = of_user, [], []
                    events.append(decode_event(packed))
                    ids.append(event_id)
            if user is not None:
                yield from_text(user), events, ids

    def _flush(self, bucket: int) -> None:
        rows, self._waiting[bucket] = self._waiting[bucket], []
        if rows:
            arrays = [pa.array(column, kind.type) for column, kind in zip(zip(*rows, strict=True), _SPILL, strict=True)]
            self._writers[bucket].write_batch(pa.RecordBatch.from_arrays(arrays, schema=_SPILL))
