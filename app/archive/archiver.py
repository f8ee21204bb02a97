"""Event log -> archive: read the partitions from where the archive ends, write files, commit, trim."""

from __future__ import annotations

import gc
import secrets
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from threading import Event
from typing import Final

import msgspec
import pyarrow as pa
import structlog

from app.archive.archive import Archive
from app.archive.columns import to_table, to_text
from app.archive.compaction import Compaction, Rewriter
from app.archive.expiry import Expiry
from app.archive.files import day_of, write_file
from app.archive.identity import compare, refusal, taken
from app.archive.items import ItemsFile
from app.archive.log import Log, Mark
from app.archive.manifest import File, Manifest, Removal
from app.archive.reading import Batch, fill, trim_archived
from app.archive.record import ERASED, Record
from app.errors import ArchiveError, StorageError
from app.state.keys import PARTITIONS

_POLL_S: Final = 5.0
_BACK_OFF_S: Final = 5.0
_ELSEWHERE_S: Final = 0.2
_GIVE_BACK_EVERY_S: Final = 5.0

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class _Cycle:
    """One commit: the rows in it, whether there is more to read, partitions that others hold, and what nobody understood."""

    rows: int
    more: bool
    elsewhere: int
    refused: ArchiveError | None


class Archiver:
    """Moves the log into the archive. Several may run: what one commits, none commits again.

    Args:
        log: the log to read and trim.
        batch_rows: about how many records one commit takes; they are in memory meanwhile.
        interval_s: in `follow`, the longest that records wait for a commit; a full batch does not wait.
        lease_ms: how long a partition stays ours without a sign of life; only saves double work, nothing depends on it.
        erase_within_s: how soon after its arrival an erasure is carried out in the files too; begun at half that time.
        expiry: lets idle users go, right after a commit, when little waits to be archived, and not while a log is refused; None:
            they stay.
        rewriter: compacts in our stead: see `Compaction`.
        on_erased: called when erasures were carried out in the files.
    """

    def __init__(
        self,
        archive: Archive,
        log: Log,
        *,
        batch_rows: int = 100_000,
        interval_s: float = 60.0,
        lease_ms: int = 60_000,
        erase_within_s: float = 86_400.0,
        expiry: Expiry | None = None,
        items: ItemsFile | None = None,
        rewriter: Rewriter | None = None,
        on_erased: Callable[[], None] = lambda: None,
    ) -> None:
        self._archive = archive
        self._log = log
        self._batch_rows = batch_rows
        self._interval_s = interval_s
        self._lease_ms = lease_ms
        self._token = secrets.token_hex(8)
        self._compaction = Compaction(archive, erase_within_s, rewriter=rewriter, on_erased=on_erased)
        self._expiry = expiry
        self._items = items
        self._next = 0  # the partition to begin with, so that a busy one does not starve those behind it

    def once(self, erase_now: bool = False) -> int:
        """Archive what is in the log, let idle users go, compact and erase what is due; returns the number of records archived.

        Raises:
            ArchiveError: a record cannot be understood, or a file not be written. Everything before it is archived.
            StorageError: Redis is away.
        """
        deadline_s = time.monotonic() + 2 * self._lease_ms / 1000
        total = 0
        while True:
            cycle = self._drain()
            total += cycle.rows
            if not cycle.elsewhere or cycle.refused is not None:
                break
            if time.monotonic() > deadline_s:
                raise ArchiveError(f"{cycle.elsewhere} partitions are being archived by another archiver")
            time.sleep(_ELSEWHERE_S)
        if self._expiry is not None and cycle.refused is None and self._expiry.all(Event()):
            total += self._drain().rows  # it says in the log who has gone
        self._maintain(erase_now)
        if cycle.refused is not None:
            raise cycle.refused
        return total

    def follow(self, stop: Event) -> None:
        """Archive until `stop` is set; errors are logged and tried again."""
        last_s = given_back_s = 0.0
        while not stop.is_set():
            try:
                pending = sum(map(self._pending, range(PARTITIONS)))
                due = time.monotonic() - last_s >= self._interval_s
                if pending >= self._batch_rows or due:
                    last_s = time.monotonic()
                    refused = self._drain().refused if pending else None
                    if self._expiry is not None and refused is None:
                        self._expiry.step(stop)
                    self._maintain()
                    if time.monotonic() - given_back_s >= _GIVE_BACK_EVERY_S:
                        given_back_s = time.monotonic()
                        # What a large batch took: the oldest generation of objects may not be looked at for hours otherwise.
                        gc.collect()
                        pa.default_memory_pool().release_unused()
                    if refused is not None:
                        raise refused
            except StorageError as error:
                log.warning("storage is away, the archiver waits", error=error.detail)
                stop.wait(_BACK_OFF_S)
            except ArchiveError as error:
                log.error("cannot archive", error=error.detail)
                stop.wait(max(_BACK_OFF_S, self._interval_s))
            stop.wait(min(_POLL_S, self._interval_s))

    def _pending(self, partition: int) -> int:
        try:
            return self._log.length(partition)
        except ArchiveError:
            return 1  # which is said when it is due

    def _drain(self) -> _Cycle:
        """Commit until the log is read to its end."""
        rows = 0
        while True:
            cycle = self._commit_some()
            rows += cycle.rows
            if not cycle.more:
                return replace(cycle, rows=rows)

    def _commit_some(self) -> _Cycle:
        leased: list[int] = []
        elsewhere = 0
        broken: ArchiveError | None = None
        try:
            for offset in range(PARTITIONS):
                partition = (self._next + offset) % PARTITIONS
                try:
                    waits = self._log.length(partition) > 0
                except ArchiveError as error:
                    broken, waits = broken or error, False
                if waits:
                    if self._log.take(partition, self._token, self._lease_ms):
                        leased.append(partition)
                    else:
                        elsewhere += 1
            if not leased:
                return _Cycle(0, False, elsewhere, broken)
            # After the leases: what their last holders committed is in it.
            manifest = self._archive.latest()
            compared = compare(manifest, self._log)
            marks = compared.fitting | {p: self._log.mark(p, secrets.token_hex(8)) for p in compared.unmarked}
            batches, unread, more = self._read([p for p in leased if p in marks], manifest, marks)
            rows = self._commit(batches, marks) if batches else 0
            refused = refusal(self._archive.folder, compared, leased) or unread or broken
            return _Cycle(rows, more or (bool(batches) and not rows), elsewhere, refused)
        finally:
            for partition in leased:
                self._log.release(partition, self._token)

    def _read(
        self, leased: list[int], manifest: Manifest, marks: Mapping[int, Mark]
    ) -> tuple[dict[int, Batch], ArchiveError | None, bool]:
        """New records of the leased partitions, the first error met, and whether there is more than the batch may hold."""
        batches: dict[int, Batch] = {}
        refused: ArchiveError | None = None
        room = self._batch_rows
        for partition in leased:
            self._log.take(partition, self._token, self._lease_ms)
            batch = Batch(marks[partition].identity, manifest.cursor(partition), manifest.cursor(partition))
            try:
                trim_archived(self._archive, manifest, self._log, partition, batch)
                more = fill(self._log, partition, batch, room)
            except ArchiveError as error:
                refused, more = refused or error, False
            if batch.records:
                batches[partition] = batch
                room -= len(batch.records)
            if more or room <= 0:
                self._next = partition + 1
                return batches, refused, True
        return batches, refused, False

    def _commit(self, batches: dict[int, Batch], marks: Mapping[int, Mark]) -> int:
        """Write and commit what was read of logs with these marks, and trim it."""
        records = [record for partition in sorted(batches) for record in batches[partition].records]
        files = self._write(records)
        removals = [_removal(record) for record in records if record.kind == ERASED]

        def add(manifest: Manifest) -> Manifest | None:
            if any(manifest.cursor(partition) != batch.start for partition, batch in batches.items()):
                return None  # another archiver, which took us for dead, was faster
            ours = taken(manifest, marks)
            if not batches.keys() <= ours:
                return None  # another service was, or a Redis that was restored
            identities = {f"{partition:02x}": marks[partition].identity for partition in ours}
            cursors = manifest.cursors | {f"{partition:02x}": batch.end for partition, batch in batches.items()}
            return msgspec.structs.replace(
                manifest,
                files=(*manifest.files, *files),
                cursors=dict(sorted(cursors.items())),
                removals=(*manifest.removals, *removals),
                identities=dict(sorted((manifest.identities | identities).items())),
                whole=_whole(manifest, batches, identities),
            )

        committed = self._archive.publish(files, add)
        if committed is None:
            log.warning("another archiver has committed these partitions", partitions=len(batches), rows=len(records))
            return 0
        for partition, batch in batches.items():
            first = batch.records[0]
            if not self._log.trim(partition, batch.identity, f"{first.ms}-{first.seq}", batch.end):
                log.warning("not trimmed: the log is not as it was read", partition=f"{partition:02x}", upto=batch.end)
        log.info(
            "archived",
            number=committed.number,
            rows=len(records),
            partitions=len(batches),
            files=len(files),
            bytes=sum(file.bytes for file in files),
            lag_s=round(time.time() - min(record.ms for record in records) / 1000, 3),
        )
        return len(records)

    def _write(self, records: list[Record]) -> list[File]:
        """One file per tenant and day; `records` are in order."""
        groups: dict[tuple[str, str], list[Record]] = defaultdict(list)
        for record in records:
            groups[to_text(record.tenant), day_of(record.ms)].append(record)
        return [write_file(self._archive, tenant, day, [to_table(group)]) for (tenant, day), group in groups.items()]

    def _maintain(self, erase_now: bool = False) -> None:
        """Write down the catalogue, compact, erase and sweep, unless another archiver is at it."""
        if not self._log.take(None, self._token, self._lease_ms):
            if erase_now:
                raise ArchiveError("another archiver is compacting this archive: try again when it is done")
            return
        failed: ArchiveError | StorageError | None = None
        try:
            if self._items is not None:
                try:
                    # Of a Redis that was emptied, or of another service, the catalogue is no more the archive's than its log.
                    if not compare(self._archive.latest(), self._log).strange:
                        self._items.refresh()
                except (ArchiveError, StorageError) as error:  # no reason to leave the erased in the files
                    failed = error
            self._compaction.run(erase_now, self._still_ours)
            if failed is not None:
                raise failed
        except OSError as error:
            raise ArchiveError(f"{error.filename}: cannot be tidied up: {error.strerror}") from error
        finally:
            self._log.release(None, self._token)

    @property
    def _still_ours(self) -> Callable[[], object]:
        return lambda: self._log.take(None, self._token, self._lease_ms)


def _whole(manifest: Manifest, batches: Mapping[int, Batch], identities: Mapping[str, str]) -> tuple[str, ...]:
    """The partitions of which the archive lacks nothing, once it has these batches and identities."""
    # What was restored from the archive has nothing that is not in it.
    whole = {*manifest.whole, *(pp for pp, identity in identities.items() if manifest.identities.get(pp, identity) != identity)}
    for partition, batch in batches.items():
        if not batch.whole:
            whole.discard(f"{partition:02x}")
        elif batch.start == "0-0":
            whole.add(f"{partition:02x}")
    return tuple(sorted(whole))


def _removal(record: Record) -> Removal:
    return Removal(
        tenant=to_text(record.tenant),
        user_id=to_text(record.user_id),
        partition=record.partition,
        ms=record.ms,
        seq=record.seq,
        gone_ms=record.gone_ms or 0,
    )
