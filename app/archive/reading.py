"""What a partition's log gives to a commit: the records behind the archive's cursor. What is before it is trimmed first."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from app.archive.archive import Archive
from app.archive.log import Log
from app.archive.lookup import first_lacking
from app.archive.manifest import Manifest
from app.archive.record import HISTORY, SEQUENCE, Record, parse
from app.errors import ArchiveError

_PAGE: Final = 2_000  # entries per XRANGE: a stall of Redis of a few milliseconds


@dataclass(slots=True)
class Batch:
    """What was read of the log with this identity: records after `start`, the last of them at `end`.

    `whole`: all that the log ever had between them; not where some had been trimmed for another archive.
    """

    identity: str
    start: str
    end: str
    whole: bool = True
    records: list[Record] = field(default_factory=list)


def trim_archived(archive: Archive, manifest: Manifest, source: Log, partition: int, batch: Batch) -> None:
    """Trim what is archived already: its archiver was killed before it did, or Redis has lost that it was trimmed.

    Raises:
        ArchiveError: the archive lacks some of it: Redis had lost the end of the log, and its clock was behind then.
    """
    while batch.start != "0-0":
        entries, _ = source.read(partition, batch.identity, "0-0", _PAGE, upto=batch.start)
        if not entries:
            return
        lacking = first_lacking(archive, manifest, [parse(partition, *entry) for entry in entries])
        if lacking is not None:
            raise ArchiveError(
                f"the log of partition {partition:02x} is archived up to {batch.start}, but the archive {archive.folder} lacks "
                f"its record {lacking.ms}-{lacking.seq}: Redis has lost the end of this log, and its clock is behind since; "
                f"nothing of it is archived or trimmed. An archive in another folder (LONGWAVE_ARCHIVE_DIR) takes it whole"
            )
        if not source.trim(partition, batch.identity, entries[0][0].decode(), entries[-1][0].decode()):
            return


def fill(source: Log, partition: int, batch: Batch, room: int) -> bool:
    """Read up to `room` records, never ending within a rewritten sequence; True if there may be more.

    Raises:
        ArchiveError: a record cannot be understood; the batch has those before it.
    """
    awaited = 0  # HISTORY records of the last SEQUENCE that are still to come: one script wrote them all
    whole = 0  # records up to the last complete sequence
    try:
        while True:
            size = min(_PAGE, max(room - len(batch.records), awaited))
            if size <= 0:
                return True
            entries, whole_page = source.read(partition, batch.identity, batch.end, size)
            batch.whole = batch.whole and whole_page
            for entry_id, fields in entries:
                record = parse(partition, entry_id, fields)
                if record.kind == HISTORY:
                    awaited = max(0, awaited - 1)
                elif awaited:
                    raise ArchiveError(
                        f"the log of partition {partition:02x} is damaged: {awaited} events are missing at {entry_id.decode()}"
                    )
                else:
                    awaited = record.count if record.kind == SEQUENCE else 0
                batch.records.append(record)
                batch.end = entry_id.decode()
                if not awaited:
                    whole = len(batch.records)
            if len(entries) < size:
                if awaited:
                    raise ArchiveError(
                        f"the log of partition {partition:02x} is damaged: {awaited} events are missing at its end"
                    )
                return False
    finally:
        if awaited:
            del batch.records[whole:]
            last = batch.records[-1] if batch.records else None
            batch.end = f"{last.ms}-{last.seq}" if last else batch.start
