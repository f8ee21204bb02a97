"""One record of the event log, parsed: what the archive holds a row of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import msgspec

from app.errors import ArchiveError
from app.state.events import StoredEvent, decode_event
from app.state.impressions import Impression, decode_impression
from app.state.text import decode_text

EVENT: Final = "e"  # a live event
HISTORY: Final = "h"  # an event of a bulk import or a merge; belongs to the SEQUENCE before it
SEQUENCE: Final = "s"  # the sequence was rewritten under a new epoch, `count` HISTORY records follow
ATTRIBUTES: Final = "a"
ERASED: Final = "x"
MOVED: Final = "m"  # the user's last `count` events are another user's now, and stand there
EXPIRED: Final = "r"  # idle: gone from Redis, here all stays; who comes back begins a new sequence
IMPRESSION: Final = "v"  # a list was shown, to the user or, without one, to nobody in particular

_decode_attributes = msgspec.msgpack.Decoder(dict[str, str]).decode

_FIELDS: Final[Mapping[str, frozenset[bytes]]] = {
    EVENT: frozenset({b"e", b"i", b"n", b"p"}),
    HISTORY: frozenset({b"e", b"i", b"n", b"p"}),
    SEQUENCE: frozenset({b"p", b"c", b"o", b"i", b"a", b"n"}),
    ATTRIBUTES: frozenset({b"a", b"p"}),
    ERASED: frozenset({b"p", b"g"}),
    MOVED: frozenset({b"o", b"c", b"p"}),
    EXPIRED: frozenset({b"p"}),
    IMPRESSION: frozenset({b"v"}),
}
_COMMON: Final = frozenset({b"k", b"t", b"u"})


class Record(msgspec.Struct, frozen=True):
    """A record with its place in the log: `partition` and the two numbers of its stream id. What its kind lacks is empty.

    `event_id` is beside the event; that of a SEQUENCE marks the import or merge that wrote it, so that it is not done twice.
    `other` is the user that a SEQUENCE came from, or that a MOVED one went to; `n` of a SEQUENCE is that of the user that it came
    from, as of then (0: not known). `extra` has the fields that this version does not know: kept, not understood.
    """

    kind: str
    tenant: str
    user_id: str
    partition: int
    ms: int
    seq: int
    epoch: bytes = b""
    n: int = 0
    event: StoredEvent | None = None
    event_id: str | None = None
    count: int = 0
    other: str = ""
    attributes: dict[str, str] | None = None
    gone_ms: int | None = None
    impression: Impression | None = None
    extra: dict[str, str] | None = None


def parse(partition: int, entry_id: bytes, fields: Mapping[bytes, bytes]) -> Record:
    """A stream entry as a record.

    Raises:
        ArchiveError: an unknown kind, a missing or a damaged field; the message names the entry.
    """
    ms, seq = parse_id(entry_id)
    where = f"record {ms}-{seq} of the log of partition {partition:02x}"
    kind = fields.get(b"k", b"").decode("utf-8", "replace")
    known = _FIELDS.get(kind)
    if known is None:
        raise ArchiveError(
            f"{where} has the unknown kind {kind!r}; this version knows {', '.join(_FIELDS)}: "
            "nothing from there on is archived or trimmed until a version that knows it runs"
        )
    try:
        return Record(
            kind=kind,
            tenant=decode_text(fields[b"t"]),
            user_id=decode_text(fields[b"u"]),
            partition=partition,
            ms=ms,
            seq=seq,
            epoch=fields[b"p"] if kind not in (ERASED, MOVED, IMPRESSION) else b"",
            n=int(fields.get(b"n", b"0") if kind == SEQUENCE else fields[b"n"]) if b"n" in known else 0,
            event=decode_event(fields[b"e"]) if b"e" in known else None,
            event_id=(decode_text(fields[b"i"]) if b"e" in known else decode_text(fields.get(b"i", b""))) or None,
            count=int(fields[b"c"]) if b"c" in known else 0,
            other=decode_text(fields[b"o"]) if b"o" in known else "",
            attributes=_attributes(kind, fields),
            gone_ms=int(fields[b"g"]) if b"g" in known else None,
            impression=decode_impression(fields[b"v"]) if b"v" in known else None,
            extra={_name(name): fields[name].hex() for name in fields.keys() - known - _COMMON} or None,
        )
    except KeyError as error:
        raise ArchiveError(f"{where}, of kind {kind!r}, has no field {_name(error.args[0])!r}") from None
    except (ValueError, msgspec.MsgspecError) as error:
        raise ArchiveError(f"{where}, of kind {kind!r}, is damaged: {error}") from error


def parse_id(entry_id: bytes | str) -> tuple[int, int]:
    """A stream id as its two numbers: arrival in unix ms, and the place within that millisecond."""
    text = entry_id.decode() if isinstance(entry_id, bytes) else entry_id
    ms, _, seq = text.partition("-")
    return int(ms), int(seq)


def _attributes(kind: str, fields: Mapping[bytes, bytes]) -> dict[str, str] | None:
    """The user's attributes; those of a merge stand with the sequence."""
    if kind == ATTRIBUTES or (kind == SEQUENCE and fields.get(b"a")):
        return _decode_attributes(fields[b"a"])
    return None


def _name(raw: bytes) -> str:
    return raw.decode("utf-8", "backslashreplace")
