"""Whether the archive has records, word for word: what a log has before the archive's cursor is trimmed only then."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow.compute as pc

from app.archive.archive import Archive
from app.archive.columns import canonical, to_records, to_table, to_text
from app.archive.files import day_of, read_file
from app.archive.keys import user_hash
from app.archive.manifest import Manifest
from app.archive.record import MOVED, Record
from app.state.events import encode_event


def first_lacking(archive: Archive, manifest: Manifest, records: Sequence[Record]) -> Record | None:
    """The first of some records of one partition that the archive never had; None where it has, or had erased, them all.

    Raises:
        ArchiveError: a file is missing or damaged.
    """
    partition = records[0].partition
    places = {(to_text(record.tenant), day_of(record.ms)) for record in records}
    first_ms, last_ms = records[0].ms, records[-1].ms
    there: set[tuple[object, ...]] = set()
    for file in manifest.files:
        if (file.tenant, file.day) in places:
            # Most files of a day are of another time of it: reading them all, for each partition, took minutes.
            arrived = range(first_ms, last_ms + 1)
            for group in read_file(archive, file, partitions=range(partition, partition + 1), arrived_ms=arrived):
                ms = group.column("ms")
                near = pc.and_(pc.greater_equal(ms, first_ms), pc.less_equal(ms, last_ms))
                rows = canonical([group.filter(pc.and_(pc.equal(group.column("partition"), partition), near))])
                there.update(map(_content, to_records(rows)))
    erased_ms: dict[tuple[str, str], int] = {}
    for removed in manifest.removed:
        who = (removed.tenant, removed.user_hash)
        erased_ms[who] = max(erased_ms.get(who, 0), removed.ms)
    # As they read from a file: columns have every number as a float.
    for record, row in zip(records, to_records(to_table(records)), strict=True):
        names = (record.user_id, record.other) if record.kind == MOVED else (record.user_id,)
        gone = any(record.ms <= erased_ms.get((to_text(record.tenant), user_hash(name)), -1) for name in names)
        if _content(row) not in there and not gone:
            return record
    return None


def _content(row: Record) -> tuple[object, ...]:
    """What tells a record from another at the same place. After a loss of its end a log may count the same numbers again."""
    event = None if row.event is None else (row.event_id, encode_event(row.event))
    return row.ms, row.seq, row.kind, row.tenant, row.user_id, row.epoch, row.n, row.count, event, row.impression
