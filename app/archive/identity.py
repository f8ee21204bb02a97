"""Whether a log is the one that the archive was made from.

Each partition's log has a random identity in a key beside it, which goes when the log goes, and the manifest has it again. What
does not fit is neither archived nor trimmed. See docs/adr/0013-log-identity.md.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from app.archive.log import Log, Mark
from app.archive.manifest import Manifest
from app.archive.record import parse_id
from app.errors import ArchiveError
from app.state.keys import PARTITIONS

_ADVICE: Final = (
    "nothing of it is archived or trimmed. Either run `longwave restore` on an empty Redis (events that came since are lost), or "
    "give this service another folder (LONGWAVE_ARCHIVE_DIR); no two services may have the same"
)


@dataclass(slots=True)
class Compared:
    """All partitions by whether their logs fit the archive.

    `fitting` have a mark; `unmarked` fit so far and have none; `strange` do not fit, and why.
    """

    fitting: dict[int, Mark] = field(default_factory=dict)
    unmarked: list[int] = field(default_factory=list)
    strange: dict[int, str] = field(default_factory=dict)


def fits(manifest: Manifest, partition: int, mark: Mark) -> bool:
    """Whether the archive may take a log with this mark: it has the same identity or none yet, or the log was restored from it
    and it has not gone on since."""
    known = manifest.identity(partition)
    return known in ("", mark.identity) or (mark.origin, mark.cursor) == (known, manifest.cursor(partition))


def compare(manifest: Manifest, log: Log) -> Compared:
    """Look at the logs of all partitions. Raises StorageError."""
    marks = log.marks()
    known = {partition for partition in range(PARTITIONS) if manifest.identity(partition)}
    # A partition that the archive does not know yet comes to it with the others of its Redis, or not at all.
    ours = not known or any(partition in marks and fits(manifest, partition, marks[partition]) for partition in known)
    compared = Compared()
    for partition in range(PARTITIONS):
        mark, cursor = marks.get(partition), manifest.cursor(partition)
        if partition in known:
            if mark is not None and fits(manifest, partition, mark):
                compared.fitting[partition] = mark
            elif mark is None:
                compared.strange[partition] = "its identity is gone, so Redis was emptied or is another one"
            else:
                compared.strange[partition] = (
                    "it has another identity, so it is of another service, or of a Redis of before a restore"
                )
        elif not ours:
            compared.strange[partition] = "no log of this Redis is in the archive, so it is of another service, or was emptied"
        elif cursor != "0-0" and parse_id(log.last_id(partition)) < parse_id(cursor):  # of before there were identities
            compared.strange[partition] = f"it ends before {cursor}, where the archive ends, so Redis was emptied or replaced"
        elif mark is None:
            compared.unmarked.append(partition)
        else:
            compared.fitting[partition] = mark
    return compared


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
