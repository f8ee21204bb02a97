"""Merges as the archive has them. A merge is told in two logs: that of who got the events (`s`, with the mark of the epoch that
they come from), and then that of who had them (`m`). They are archived at different moments, so either may be there without the
other.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

import pyarrow.compute as pc

from app.archive.archive import Archive
from app.archive.columns import canonical, from_text
from app.archive.files import read_file
from app.archive.manifest import Manifest
from app.archive.record import SEQUENCE
from app.state.identities import DONE

_COLUMNS: Final = ("partition", "ms", "seq", "kind", "tenant", "user_id", "n", "count", "other", "event_id")
_MARK: Final = f"^{DONE}[0-9a-f]{{16}}$"


class Move(NamedTuple):
    """What the target's log says: the last `moved` of the source's events stand with `target` since `ms`, when the source had
    been told `n` in `epoch` (0: not known, as in logs of older versions)."""

    ms: int
    target: str
    epoch: bytes
    moved: int
    n: int


Moves = Mapping[tuple[str, str], Sequence[Move]]
"""Those of each (tenant, source), oldest first."""


def moves_of(archive: Archive, manifest: Manifest) -> Moves:
    """All that the archive has. Raises ArchiveError."""
    found: dict[tuple[str, str], list[Move]] = defaultdict(list)
    for file in manifest.files:
        for table in read_file(archive, file, _COLUMNS, holding=("kind", SEQUENCE)):
            marked = pc.match_substring_regex(table.column("event_id"), _MARK)
            wanted = pc.and_(pc.and_(pc.equal(table.column("kind"), SEQUENCE), marked), pc.is_valid(table.column("other")))
            rows = canonical([table.filter(wanted)]).select(_COLUMNS)
            for _, ms, _, _, tenant, target, n, count, source, mark in zip(*(c.to_pylist() for c in rows.columns), strict=True):
                epoch = bytes.fromhex(mark.removeprefix(DONE))
                found[from_text(tenant), from_text(source)].append(Move(ms, from_text(target), epoch, count or 0, n or 0))
    for moves in found.values():
        moves.sort()
    return found
