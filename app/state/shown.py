"""What a user was shown of late, as impression.lua keeps it: small, bounded, and gone some weeks after the last list."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Final, NamedTuple

MOST_IDS: Final = 64
"""Of a user: the last lists that are known again, so that none is stored twice."""
MOST_SHOWINGS: Final = 128
"""Of a user: the last items that were shown, again and again counted each time."""
SHOWN_TTL_MS: Final = 30 * 86_400_000

_COUNT: Final = struct.Struct("<H")
_SHOWING: Final = struct.Struct("<qI")


class Showing(NamedTuple):
    """An item, by its key, and when it was shown (unix seconds)."""

    key: int
    at_s: int


def pack_showings(item_keys: Sequence[int], at_s: int) -> bytes:
    """That these items were shown at a moment, as far as a user keeps so many."""
    return b"".join(_SHOWING.pack(key, at_s) for key in item_keys[:MOST_SHOWINGS])


def read_shown(raw: bytes) -> list[Showing]:
    """The showings, the latest last; none where it is damaged."""
    if len(raw) < _COUNT.size:
        return []
    start = _COUNT.size + 8 * _COUNT.unpack_from(raw)[0]
    if start > len(raw) or (len(raw) - start) % _SHOWING.size:
        return []
    return [Showing(*one) for one in _SHOWING.iter_unpack(raw[start:])]
