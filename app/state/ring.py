"""The ring of a user's recent event ids, as append.lua keeps it: read and written whole where a sequence is rewritten."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from hashlib import blake2b
from itertools import zip_longest
from typing import Final

_HEADER: Final = struct.Struct("<IIQ")  # slots, zero, ids so far
_ID_BYTES: Final = 8

EMPTY_RING: Final = _HEADER.pack(0, 0, 0)


def ring_ids(ring: bytes) -> list[bytes]:
    """The hashes in a ring, oldest first."""
    slots, _, seen = _HEADER.unpack_from(ring)
    ids = [ring[at : at + _ID_BYTES] for at in range(_HEADER.size, len(ring), _ID_BYTES)]
    turn = seen % slots if slots and seen > slots else 0
    return ids[turn:] + ids[:turn]


def remember_ids(ring: bytes, new: Sequence[bytes], slots: int) -> bytes:
    """A ring of so many slots that holds the old ids and the new ones; those that it has move to the end.

    Where there is no room for all, the last of both stay, in turns: each may be sent again, and neither a long history nor
    another identity with as many ids may push out what was told a moment ago.
    """
    old = ring_ids(ring)
    newest = dict.fromkeys([*reversed(new), *reversed(old)])
    if len(newest) > slots:
        newest = dict.fromkeys(one for pair in zip_longest(reversed(new), reversed(old)) for one in pair if one is not None)
    latest = list(newest)[:slots][::-1]
    return _HEADER.pack(slots, 0, len(latest)) + b"".join(latest)


def id_hash(event_id: bytes) -> bytes:
    """8 bytes that stand for an event id: among 1,000 known ids a new one is taken for a retry once in 10^16 times."""
    return blake2b(event_id, digest_size=_ID_BYTES).digest()
