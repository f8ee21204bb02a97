"""The stored form of an event: what a user's sequence and the event log hold."""

from __future__ import annotations

from typing import Annotated, Any, Final

import msgspec

_LAST_MS: Final = 2**63 - 1  # of the 64 bits that a time has everywhere


class StoredEvent(msgspec.Struct, array_like=True, omit_defaults=True, frozen=True):
    """One accepted event, packed as a MessagePack array; trailing absent fields take no bytes.

    Item and type are kept by name, never by row: rows change with every model, names do not. The event id stands beside the event
    in the log and as a hash among the user's recent ids, not in the sequence, where a UUID would take more than all the rest.
    Append fields only at the end: old bytes must stay readable.
    """

    type: str
    time_ms: Annotated[int, msgspec.Meta(le=_LAST_MS)]
    item_id: str | None = None
    value: float | None = None
    quantity: float | None = None
    price: float | None = None
    platform: str | None = None
    session_id: str | None = None
    basket_id: str | None = None
    text: str | None = None
    recommendation_id: str | None = None
    context: dict[str, Any] | None = None


encode_event = msgspec.msgpack.Encoder().encode
decode_event = msgspec.msgpack.Decoder(StoredEvent).decode

UNREADABLE: Final = (ValueError, RecursionError)
"""What the decoders raise of bytes that are none of ours."""

# A user's attributes; sorted, so that the same ones are the same bytes.
encode_attributes = msgspec.msgpack.Encoder(order="sorted").encode
decode_attributes = msgspec.msgpack.Decoder(dict[str, str]).decode


def compact_number(number: float | None) -> float | None:
    """The same number in its shortest packed form: most quantities are whole and take one byte instead of nine."""
    if number is None or not number.is_integer() or abs(number) >= 2**53:
        return number
    return int(number)
