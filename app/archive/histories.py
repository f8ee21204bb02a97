"""Every user of an archive, with the whole effective sequence: erased and moved applied, imports and merges merged."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Final, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from app.archive.archive import Archive
from app.archive.columns import ORDER, canonical, from_text, to_records
from app.archive.files import read_file
from app.archive.manifest import Manifest
from app.archive.moves import Moves, moves_of
from app.archive.replay import Replay
from app.errors import ArchiveError
from app.state.events import StoredEvent
from app.state.keys import PARTITIONS, partition

ROWS_AT_ONCE: Final = 1_000_000


class History(NamedTuple):
    """A live user. `n` events are counted in `epoch`; `events` has the last of them, all unless the archive began later.

    `events` is unbounded, in the order of the fold.
    """

    tenant: str
    user_id: str
    epoch: bytes
    n: int
    events: Sequence[StoredEvent]


@dataclass(frozen=True, slots=True)
class ArchivedUser:
    """A user as the archive leaves it: live, or an alias (`moved_to`), whose events are those that had left its sequence
    before, or all, with epoch and the rest, if they are `on_the_way`: the archive says that the user was merged, but has not
    come to where the events stand again.

    `went_on`: its epoch has ended by a merge, so that it needs another one where the mark of that is.
    `ids` are the last event ids in order of arrival, `marks` those of the imports and merges that were done.
    """

    partition: int
    tenant: str
    user_id: str
    epoch: bytes
    n: int
    events: Sequence[StoredEvent]
    attributes: Mapping[str, str]
    ids: Sequence[str]
    marks: Sequence[str]
    moved_to: str | None
    moved_ms: int
    on_the_way: bool
    went_on: bool


def histories(archive: Archive, rows_at_once: int = ROWS_AT_ONCE) -> Iterator[History]:
    """Each live user once, with attributes alone too, ordered by partition, tenant and user.

    Raises:
        ArchiveError: there is no archive, or it is damaged, or it was rewritten meanwhile.
    """
    for user in users(archive, archive.existing(), rows_at_once=rows_at_once):
        if user.moved_to is None:
            yield History(user.tenant, user.user_id, user.epoch, user.n, user.events)


def users(archive: Archive, manifest: Manifest, window: int = 0, rows_at_once: int = ROWS_AT_ONCE) -> Iterator[ArchivedUser]:
    """Live users and aliases at a manifest, like `histories`.

    Args:
        window: how many of a user's last event ids to give.
        rows_at_once: about how many rows may be in memory; the files are read once for each such portion of the partitions.
    """
    erased_ms: dict[tuple[str, str], int] = {}
    for removal in manifest.removals:
        erased_ms[from_text(removal.tenant), from_text(removal.user_id)] = removal.ms
    moves = moves_of(archive, manifest)
    portions = min(PARTITIONS, max(1, -(-manifest.rows // rows_at_once)))
    for portion in range(portions):
        partitions = range(PARTITIONS * portion // portions, PARTITIONS * (portion + 1) // portions)
        for user in _users(_rows(archive, manifest, partitions), partitions, moves, window):
            # Compaction takes the names of the erased from aliases and merges: until it has, they are passed over here.
            if user.moved_to is None or user.moved_ms > erased_ms.get((user.tenant, user.moved_to), -1):
                yield user


def _rows(archive: Archive, manifest: Manifest, partitions: range) -> pa.Table:
    """The rows of these partitions, each user's together and in the order of the log."""
    wanted = pa.array(partitions, pa.int16())
    parts = (
        table.filter(pc.is_in(table.column("partition"), value_set=wanted))
        for file in manifest.files
        for table in read_file(archive, file, partitions=partitions)
    )
    partition, *place = ORDER
    return canonical(parts).sort_by([partition, ("tenant", "ascending"), ("user_id", "ascending"), *place])


def _users(rows: pa.Table, partitions: range, moves: Moves, window: int) -> Iterator[ArchivedUser]:
    unmet = {who for who in moves if int(partition(*who), 16) in partitions}
    for (number, tenant, user_id), records in groupby(to_records(rows), lambda r: (r.partition, r.tenant, r.user_id)):
        unmet.discard((tenant, user_id))
        replay = Replay(tenant, user_id, window, moves)
        try:
            for record in records:
                replay.apply(record)
            replay.finish()
        except ArchiveError as error:
            raise ArchiveError(f"user {user_id!r} of tenant {tenant!r}, partition {number:02x}: {error.detail}") from error
        if replay.life.epoch or replay.life.moved_to is not None:
            yield _user(number, tenant, user_id, replay)
    for tenant, user_id in sorted(unmet):  # who has moved with all that they did since the archive's last look at their partition
        replay = Replay(tenant, user_id, window, moves)
        replay.finish()
        yield _user(int(partition(tenant, user_id), 16), tenant, user_id, replay)


def _user(number: int, tenant: str, user_id: str, replay: Replay) -> ArchivedUser:
    life = replay.life
    return ArchivedUser(
        partition=number,
        tenant=tenant,
        user_id=user_id,
        epoch=life.epoch,
        n=life.n,
        events=[event for event, _ in life.events],
        attributes=life.attributes,
        ids=list(life.ids),
        marks=life.marks,
        moved_to=life.moved_to,
        moved_ms=life.moved_ms,
        on_the_way=life.on_the_way,
        went_on=replay.went_on,
    )
