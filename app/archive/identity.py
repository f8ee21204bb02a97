"""Whether a log is the one that the archive was made from.

Each partition's log has a random identity in a key beside it, which goes when the log goes, and the manifest has it again. What
does not fit is neither archived nor trimmed. See docs/adr/0013-log-identity.md.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from app.archive.log import Log, Mark
from app.archive.manifest import Manifest
from app.archive.record import parse_id
from app.errors import ArchiveError
from app.state.keys import PARTITIONS

_ADVICE: Final = (
    "nothing of it is archived or trimmed. No two services may have the same archive: stop the one that should not. Then either "
    "give this service another folder (LONGWAVE_ARCHIVE_DIR), which takes all that waits, or run `longwave restore` on an empty "
    "Redis (before that, `longwave archive --archive-dir` with another folder saves what waits)"
)


@dataclass(slots=True)
class Compared:
    """All partitions by whether their logs fit the archive.

    `fitting` have a mark; `unmarked` fit so far and have none; `strange` do not fit, and why.
    """

    fitting: dict[int, Mark] = field(default_factory=dict)
    unmarked: list[int] = field(default_factory=list)
    strange: dict[int, str] = field(default_factory=dict)


def taken(manifest: Manifest, marks: Mapping[int, Mark]) -> set[int]:
    """The partitions of a Redis with these marks whose logs the archive takes.

    A restored Redis takes the archive over as a whole, or nothing of it: where it has gone on in one partition, or has been taken
    over by another, two of them would own a part each.
    """
    known = {partition for partition in range(PARTITIONS) if manifest.identity(partition)}
    own = {p for p in known & marks.keys() if marks[p].identity == manifest.identity(p)}
    if own:
        # A partition that the archive does not know yet comes to it with the others of its Redis, or not at all.
        return own | (marks.keys() - known)
    restored = all(p in marks and (marks[p].origin, marks[p].cursor) == (manifest.identity(p), manifest.cursor(p)) for p in known)
    return set(marks) if restored else set()


def compare(manifest: Manifest, log: Log) -> Compared:
    """Look at the logs of all partitions. Raises StorageError."""
    marks = log.marks()
    fitting = taken(manifest, marks)
    ours = bool(fitting) or not manifest.identities
    compared = Compared()
    for partition in range(PARTITIONS):
        mark, cursor, known = marks.get(partition), manifest.cursor(partition), manifest.identity(partition)
        if known and partition in fitting:
            compared.fitting[partition] = marks[partition]
        elif known:
            compared.strange[partition] = _why_strange(known, mark)
        elif not ours:
            compared.strange[partition] = "no log of this Redis is in the archive, so it is of another service, or was emptied"
        elif cursor != "0-0" and parse_id(log.last_id(partition)) < parse_id(cursor):  # of before there were identities
            compared.strange[partition] = f"it ends before {cursor}, where the archive ends, so Redis was emptied or replaced"
        elif mark is None:
            compared.unmarked.append(partition)
        else:
            compared.fitting[partition] = mark
    return compared


def _why_strange(known: str, mark: Mark | None) -> str:
    if mark is None:
        return "its identity is gone, so Redis was emptied or is another one"
    if mark.origin == known:
        return "this Redis was restored from the archive, but the one before has gone on with it since, or a partition is lost"
    return "it has another identity, so it is of another service, or of a Redis of before a restore"


def refusal(folder: Path, compared: Compared, partitions: Collection[int]) -> ArchiveError | None:
    """What to say of those of these partitions that are strange, if any are."""
    strange = [partition for partition in sorted(partitions) if partition in compared.strange]
    if not strange:
        return None
    more = f" (and {len(strange) - 1} more)" if len(strange) > 1 else ""
    return ArchiveError(
        f"the log of partition {strange[0]:02x}{more} is not the one that the archive {folder} was made from: "
        f"{compared.strange[strange[0]]}; {_ADVICE}"
    )
