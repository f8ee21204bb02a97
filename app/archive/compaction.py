"""Fewer, larger files, and without the rows of those who were erased or moved: read files, write others, commit the exchange."""

from __future__ import annotations

import contextlib
import os
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Final

import msgspec
import pyarrow as pa
import pyarrow.compute as pc
import structlog

from app.archive.archive import Archive
from app.archive.columns import ORDER, SCHEMA, from_text
from app.archive.files import day_of, read_file, sweep, write_file
from app.archive.keys import user_hash
from app.archive.manifest import File, Manifest, Removal, Removed
from app.archive.record import ERASED, EXPIRED, MOVED, SEQUENCE

TARGET_ROWS: Final = 1_000_000
"""Rows of a large file: what a merge holds in memory."""

_MOST_SMALL: Final = 48  # small files that an open day may have
_KEPT_REMOVED_MS: Final = 400 * 86_400_000  # longer than any tombstone lives
_SWEEP_EVERY_S: Final = 600.0

User = tuple[str, int, str]
"""Tenant, partition and id, as in the files."""

Place = tuple[int, int]
"""Of a record: the two numbers of its stream id."""

log = structlog.get_logger()


class Compaction:
    """Housekeeping of an archive; one process at a time, and where it is two, the slower one's work is dropped.

    Args:
        erase_within_s: how soon after its arrival an erasure is carried out in the files.
        target_rows: of a file that is large enough.
    """

    def __init__(self, archive: Archive, erase_within_s: float = 86_400.0, target_rows: int = TARGET_ROWS) -> None:
        self._archive = archive
        self._erase_within_s = erase_within_s
        self._target_rows = target_rows
        self._swept_s = -_SWEEP_EVERY_S

    def run(self, erase_now: bool = False, still_ours: Callable[[], object] = lambda: None) -> None:
        """Merge small files, carry out due removals, delete what nobody needs; `still_ours` is called now and then.

        Raises:
            ArchiveError: a file is missing or damaged, or none can be written.
        """
        manifest = self._archive.latest()
        oldest_ms = min((removal.ms for removal in manifest.removals), default=None)
        # At half the time: the rewriting itself takes some, and may have to be done again.
        due = oldest_ms is not None and time.time() - oldest_ms / 1000 >= self._erase_within_s / 2
        if manifest.removals and (erase_now or due):
            self._remove(manifest.removals, still_ours)
        self._merge(still_ours)
        self._archive.prune()
        if erase_now or time.monotonic() - self._swept_s >= _SWEEP_EVERY_S:
            self._swept_s = time.monotonic()
            sweep(self._archive)

    def _merge(self, still_ours: Callable[[], object]) -> None:
        groups: dict[tuple[str, str], list[File]] = defaultdict(list)
        for file in self._archive.latest().files:
            if file.rows < self._target_rows // 2:
                groups[file.tenant, file.day].append(file)
        today = day_of(time.time_ns() // 1_000_000)
        for (tenant, day), small in groups.items():
            if len(small) >= (2 if day < today else _MOST_SMALL):
                for some in _portions(small, self._target_rows):
                    still_ours()
                    table = _sorted(table for file in some for table in read_file(self._archive, file))
                    self._exchange(some, [write_file(self._archive, tenant, day, [table])])

    def _remove(self, removals: Sequence[Removal], still_ours: Callable[[], object]) -> None:
        """Rewrite every file that names one of these users where it must not, commit, and delete the old files at once."""
        by_tenant: dict[str, list[Removal]] = defaultdict(list)
        for removal in removals:
            by_tenant[removal.tenant].append(removal)
        replaced: list[File] = []
        written: list[File] = []
        rested: dict[User, list[Place]] = defaultdict(list)
        naming: list[File] = []
        for file in self._archive.latest().files:
            still_ours()
            of_tenant = by_tenant.get(file.tenant, [])
            if of_tenant and _names(self._archive, file, of_tenant, rested):
                naming.append(file)
        for file in naming:
            still_ours()
            of_tenant = by_tenant[file.tenant]
            table = without(_sorted(read_file(self._archive, file)), of_tenant, rested)
            replaced.append(file)
            if table.num_rows:
                written.append(write_file(self._archive, file.tenant, file.day, [table]))
        now_ms = time.time_ns() // 1_000_000
        kept_from_ms = now_ms - _KEPT_REMOVED_MS
        forgotten = set(removals)

        def forget(manifest: Manifest) -> Manifest:
            return msgspec.structs.replace(
                manifest,
                removals=tuple(removal for removal in manifest.removals if removal not in forgotten),
                removed=(
                    *(removed for removed in manifest.removed if removed.done_ms >= kept_from_ms),
                    *(_removed(removal, now_ms) for removal in removals),
                ),
            )

        if self._exchange(replaced, written, forget):
            for file in replaced:  # without asking how old they are: their times may be another machine's
                (self._archive.folder / file.path).unlink(missing_ok=True)
            # What earlier merges left for their readers, or killed writers behind them, may hold the same rows.
            sweep(self._archive, age_s=0)
            self._archive.prune()
            log.info("erased", removals=len(removals), files=len(replaced), number=self._archive.latest().number)

    def _exchange(
        self, old: Sequence[File], new: Sequence[File], also: Callable[[Manifest], Manifest] = lambda manifest: manifest
    ) -> bool:
        """Commit `new` in the place of `old`, unless one of `old` has been replaced by another."""
        paths = {file.path for file in old}

        def exchange(manifest: Manifest) -> Manifest | None:
            if not paths <= {file.path for file in manifest.files}:
                return None
            files = (*(file for file in manifest.files if file.path not in paths), *new)
            return also(msgspec.structs.replace(manifest, files=files))

        if self._archive.publish(new, exchange) is None:
            log.warning("another archiver has replaced these files", files=len(old))
            return False
        for file in old:
            with contextlib.suppress(FileNotFoundError):
                os.utime(self._archive.folder / file.path)  # their readers have until the sweep, by this time
        return True


def without(table: pa.Table, removals: Collection[Removal], rested: Mapping[User, Sequence[Place]]) -> pa.Table:
    """The rows that removals leave, in their order.

    The user's own rows up to an erasure go, and its own. Those up to a move go, too, but not its own, which is the alias, and not
    what came before the user was last idle for too long (`rested`): Redis did not have it any more, so it was not moved. Of other
    users, who was merged into an erased user loses that alias, and a sequence that came from one the name of its origin.
    """
    erased: dict[User, Place] = {}
    moved: dict[User, Place] = {}
    erased_ms: dict[tuple[str, str], int] = {}
    for removal in removals:
        key = (removal.tenant, removal.partition, removal.user_id)
        of_kind = erased if removal.kind == ERASED else moved
        of_kind[key] = max(of_kind.get(key, (0, 0)), (removal.ms, removal.seq))
        if removal.kind == ERASED:
            of_user = (removal.tenant, removal.user_id)
            erased_ms[of_user] = max(erased_ms.get(of_user, 0), removal.ms)
    left = {key: max((place for place in rested.get(key, ()) if place < at), default=(0, 0)) for key, at in moved.items()}
    columns = ("tenant", "partition", "user_id", "ms", "seq", "kind", "other")
    keep: list[bool] = []
    named_rows: list[bool] = []
    for tenant, partition, user, ms, seq, kind, other in zip(*(table.column(name).to_pylist() for name in columns), strict=True):
        key, place = (tenant, partition, user), (ms, seq)
        gone = place <= erased.get(key, (0, 0)) or (key in moved and left[key] < place < moved[key])
        named = other is not None and ms <= erased_ms.get((tenant, other), -1)
        keep.append(not gone and not (named and kind == MOVED))
        named_rows.append(named and kind == SEQUENCE)
    mask = pa.array(named_rows, pa.bool_())
    for name in ("other", "event_id"):  # the mark of a merge has the name, too
        at = table.schema.get_field_index(name)
        column = table.column(at)
        blanked = pc.if_else(mask, pa.scalar(None, column.type), column)
        table = table.set_column(at, table.schema.field(at), blanked)
    return table.filter(pa.array(keep, pa.bool_()))


def _names(archive: Archive, file: File, removals: Sequence[Removal], rested: dict[User, list[Place]]) -> bool:
    """Whether one of these users is in the file, with rows of their own or as the other side of a merge; where they were idle for
    too long is added to `rested`."""
    users = pa.array(sorted({removal.user_id for removal in removals}), pa.large_string())
    found = False
    for table in read_file(archive, file, ["partition", "ms", "seq", "kind", "user_id", "other"]):
        own, other = (pc.is_in(table.column(name), value_set=users) for name in ("user_id", "other"))
        found = found or bool(pc.any(own).as_py() or pc.any(other).as_py())
        ends = table.filter(pc.and_(own, pc.equal(table.column("kind"), EXPIRED)))
        columns = (ends.column(name).to_pylist() for name in ("partition", "ms", "seq", "user_id"))
        for partition, ms, seq, user in zip(*columns, strict=True):
            rested[file.tenant, partition, user].append((ms, seq))
    return found


def _sorted(tables: Iterable[pa.Table]) -> pa.Table:
    """Rows of any files, of older versions too, as one table in the archive's order."""
    return canonical(tables).sort_by(ORDER)


def canonical(tables: Iterable[pa.Table]) -> pa.Table:
    """One table with the columns of this version; those that a file did not have yet are empty."""
    empty = SCHEMA.empty_table()
    table = pa.concat_tables([empty, *tables], promote_options="default")
    return table.select(SCHEMA.names).cast(SCHEMA)


def _portions(files: Sequence[File], most_rows: int) -> Iterator[list[File]]:
    """Runs of at least two files that together have at most `most_rows` rows, in the order of their names, which is of time."""
    some: list[File] = []
    for file in sorted(files, key=lambda file: file.path):
        if some and sum(one.rows for one in some) + file.rows > most_rows:
            if len(some) > 1:
                yield some
            some = []
        some.append(file)
    if len(some) > 1:
        yield some


def _removed(removal: Removal, now_ms: int) -> Removed:
    return Removed(
        kind=removal.kind,
        tenant=removal.tenant,
        user_hash=user_hash(from_text(removal.user_id)),
        partition=removal.partition,
        ms=removal.ms,
        gone_ms=removal.gone_ms,
        done_ms=now_ms,
    )
