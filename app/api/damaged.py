"""What is damaged of what has a name, and hides nothing else: the list of the others names it, and DELETE takes it away."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import structlog
from msgspec import UNSET, UnsetType

from app.state.versioned import Damaged, Kind

log = structlog.get_logger()


class DamagedEntry(msgspec.Struct, frozen=True):
    """What cannot be read: `DELETE` of its name takes it away, `PUT` stores it anew."""

    name: str
    reason: str


def told(kind: Kind, damaged: Sequence[Damaged]) -> list[DamagedEntry] | UnsetType:
    """As an answer says it, which leaves it out if there is none; and the log."""
    for one in damaged:
        log.error(f"a stored {kind} is damaged", name=one.name, reason=one.reason)
    return [DamagedEntry(one.name, one.reason) for one in damaged] or UNSET
