"""Fewer, larger files, and without the rows of those who were erased or moved: read files, write others, commit the exchange."""

from __future__ import annotations

import contextlib
import os
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Final

import msgspec
import pyarrow as pa
import pyarrow.compute as pc
import structlog

from app.archive.archive import Archive
from app.archive.columns import from_text
from app.archive.files import day_of, read_file, sweep, write_file
from app.archive.keys import user_hash
from app.archive.manifest import File, Manifest, Removal, Removed
from app.archive.merge import MOST_FILES, merged
from app.archive.record import MOVED, SEQUENCE
from app.errors import ArchiveError

TARGET_ROWS: Final = 1_000_000
"""Rows of a large file."""

_MOST_SMALL: Final = 48  # small files that an open day may have
_KEPT_REMOVED_MS: Final = 400 * 86_400_000  # longer than any tombstone lives
_SWEEP_EVERY_S: Final = 600.0

StillOurs = Callable[[], object]
"""Called now and then by what takes long: the archiver prolongs its lease."""

Rewriter = Callable[[StillOurs], None]
"""What does the work of `Compaction.rewrite` in another place."""

log = structlog.get_logger()


class Compaction:
    """Housekeeping of an archive; one process at a time, and where it is two, the slower one's work is dropped.

    Args:
        erase_within_s: how soon after its arrival an erasure is carried out in the files.
        target_rows: of a file that is large enough.
        rewriter: does what `rewrite` does, elsewhere, whenever there is something to do; None: here.
        on_erased: called when removals were carried out.
    """

    def __init__(
        self,
        archive: Archive,
        erase_within_s: float = 86_400.0,
        target_rows: int = TARGET_ROWS,
        rewriter: Rewriter | None = None,
        on_erased: Callable[[], None] = lambda: None,
    ) -> None:
        self._archive = archive
        self._rewriter = rewriter
        self._on_erased = on_erased
        self._erase_within_s = erase_within_s
        self._target_rows = target_rows
        self._swept_s = -_SWEEP_EVERY_S

    def run(self, erase_now: bool = False, still_ours: StillOurs = lambda: None) -> None:
        """Merge small files, carry out due removals, delete what nobody needs; `still_ours` is called now and then.

        Raises:
            ArchiveError: a file is missing or damaged, or none can be written.
        """
        waiting: Sequence[Removal] = ()
        try:
            manifest = self._archive.latest()
            waiting = manifest.removals
            if self._rewriter is None or erase_now:
                self.rewrite(erase_now, still_ours)
            elif self._due(manifest):
                self._rewriter(still_ours)
        finally:  # one that fails again and again must not fill the disk with what it leaves, nor its archiver with manifests
            self._archive.prune()
            if erase_now or time.monotonic() - self._swept_s >= _SWEEP_EVERY_S:
                self._swept_s = time.monotonic()
                sweep(self._archive)
            if waiting and not {*waiting} <= {*self._archive.latest().removals}:
                self._on_erased()

    def rewrite(self, erase_now: bool = False, still_ours: StillOurs = lambda: None) -> None:
        """The part of `run` that reads and writes rows."""
        manifest = self._archive.latest()
        failed: ArchiveError | None = None
        if manifest.removals and (erase_now or self._removals_due(manifest)):
            try:
                self._remove(manifest.removals, still_ours)
            except ArchiveError as error:  # a damaged file is no reason to leave the other days as they are
                failed = error
        for some in self._mergeable(self._archive.latest()):
            still_ours()
            try:
                written = write_file(self._archive, some[0].tenant, some[0].day, merged(self._archive, some))
            except ArchiveError as error:
                if {*some} <= {*self._archive.latest().files}:
                    failed = failed or error  # a file that is damaged is no reason to leave the other days as they are
                else:
                    log.warning("another archiver has replaced these files", files=len(some))
                continue
            self._exchange(some, [written])
        if failed is not None:
            raise failed

    def _due(self, manifest: Manifest) -> bool:
        """Whether `rewrite` has anything to do."""
        return self._removals_due(manifest) or any(True for _ in self._mergeable(manifest))

    def _removals_due(self, manifest: Manifest) -> bool:
        oldest_ms = min((removal.ms for removal in manifest.removals), default=None)
        # At half the time: the rewriting itself takes some, and may have to be done again.
        return oldest_ms is not None and time.time() - oldest_ms / 1000 >= self._erase_within_s / 2

    def _mergeable(self, manifest: Manifest) -> Iterator[list[File]]:
        """Files of one tenant and day each that should be one."""
        groups: dict[tuple[str, str], list[File]] = defaultdict(list)
        for file in manifest.files:
            if file.rows < self._target_rows // 2:
                groups[file.tenant, file.day].append(file)
        today = day_of(time.time_ns() // 1_000_000)
        for (_, day), small in groups.items():
            if len(small) >= (2 if day < today else _MOST_SMALL):
                yield from _portions(small, self._target_rows)

    def _remove(self, removals: Sequence[Removal], still_ours: StillOurs) -> None:
        """Rewrite every file that names one of these users where it must not, commit, and delete the old files at once.

        A file for which that fails keeps no other from being rewritten, but the removals remain due.
        """
        by_tenant: dict[str, list[Removal]] = defaultdict(list)
        for removal in removals:
            by_tenant[removal.tenant].append(removal)
        replaced: list[File] = []
        written: list[File] = []
        failed: ArchiveError | None = None
        try:
            for file in self._archive.latest().files:
                still_ours()
                of_tenant = by_tenant.get(file.tenant, [])
                try:
                    if not of_tenant or not _names(self._archive, file, of_tenant):
                        continue
                    left = (without(table, of_tenant) for table in merged(self._archive, [file]))
                    written.append(write_file(self._archive, file.tenant, file.day, left))
                except ArchiveError as error:
                    failed = failed or error
                    continue
                replaced.append(file)
                if not written[-1].rows:
                    self._archive.discard([written.pop()])
        except BaseException:  # a full disk may be: what is tried again and again must not leave its files each time
            self._archive.discard(written)
            raise
        now_ms = time.time_ns() // 1_000_000
        kept_from_ms = now_ms - _KEPT_REMOVED_MS
        forgotten = set(removals) if failed is None else set()

        def forget(manifest: Manifest) -> Manifest:
            return msgspec.structs.replace(
                manifest,
                removals=tuple(removal for removal in manifest.removals if removal not in forgotten),
                removed=(
                    *(removed for removed in manifest.removed if removed.done_ms >= kept_from_ms),
                    *(_removed(removal, now_ms) for removal in forgotten),
                ),
            )

        if (replaced or failed is None) and self._exchange(replaced, written, forget):
            for file in replaced:  # without asking how old they are: their times may be another machine's
                (self._archive.folder / file.path).unlink(missing_ok=True)
            # What earlier merges left for their readers, or killed writers behind them, may hold the same rows.
            sweep(self._archive, age_s=0)
            self._archive.prune()
            log.info("erased", removals=len(forgotten), files=len(replaced), number=self._archive.latest().number)
        if failed is not None:
            raise failed

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


def without(table: pa.Table, removals: Collection[Removal]) -> pa.Table:
    """The rows that removals leave, in their order.

    The user's own rows up to the erasure go, it with them. Of other users, who was merged into an erased user, and a sequence
    that came from one, lose that name. Who was merged has an erasure of its own, unless that one was cut off: until then that it
    was merged must be told, or its events would be its own again.
    """
    last: dict[tuple[str, int, str], tuple[int, int]] = {}
    erased_ms: dict[tuple[str, str], int] = {}
    for removal in removals:
        key = (removal.tenant, removal.partition, removal.user_id)
        last[key] = max(last.get(key, (0, 0)), (removal.ms, removal.seq))
        of_user = (removal.tenant, removal.user_id)
        erased_ms[of_user] = max(erased_ms.get(of_user, 0), removal.ms)
    columns = ("tenant", "partition", "user_id", "ms", "seq", "kind", "other")
    keep: list[bool] = []
    named_rows: list[bool] = []
    for tenant, partition, user, ms, seq, kind, other in zip(*(table.column(name).to_pylist() for name in columns), strict=True):
        upto = last.get((tenant, partition, user))
        gone = upto is not None and (ms, seq) <= upto
        named = other is not None and ms <= erased_ms.get((tenant, other), -1)
        keep.append(not gone)
        named_rows.append(named and kind in (MOVED, SEQUENCE))
    mask = pa.array(named_rows, pa.bool_())
    for name in ("other", "event_id"):  # the mark of a merge has the name, too
        at = table.schema.get_field_index(name)
        column = table.column(at)
        blanked = pc.if_else(mask, pa.scalar(None, column.type), column)
        table = table.set_column(at, table.schema.field(at), blanked)
    return table.filter(pa.array(keep, pa.bool_()))


def _names(archive: Archive, file: File, removals: Sequence[Removal]) -> bool:
    """Whether one of these users is in the file, with rows of their own or as the other side of a merge."""
    users = pa.array(sorted({removal.user_id for removal in removals}), pa.large_string())
    for table in read_file(archive, file, ["user_id", "other"]):
        for name in ("user_id", "other"):
            if pc.any(pc.is_in(table.column(name), value_set=users)).as_py():
                return True
    return False


def _portions(files: Sequence[File], most_rows: int) -> Iterator[list[File]]:
    """Runs of at least two files that together have at most `most_rows` rows, in the order of their names, which is of time.

    They are no more than can be merged at a time; if they were, what came of them is merged the next time.
    """
    some: list[File] = []
    for file in sorted(files, key=lambda file: file.path):
        if some and (len(some) == MOST_FILES or sum(one.rows for one in some) + file.rows > most_rows):
            if len(some) > 1:
                yield some
            some = []
        some.append(file)
    if len(some) > 1:
        yield some


def _removed(removal: Removal, now_ms: int) -> Removed:
    return Removed(
        tenant=removal.tenant,
        user_hash=user_hash(from_text(removal.user_id)),
        partition=removal.partition,
        ms=removal.ms,
        gone_ms=removal.gone_ms,
        done_ms=now_ms,
    )
