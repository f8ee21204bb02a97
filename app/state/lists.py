"""The id of a list says where the list comes from: which model, under which scenario, when. So nothing is stored of lists that
nobody sees, and whoever says that one was shown or clicked on need not say whose it was.

It is opaque to clients: base64url of these fields and a checksum. That tells ids from other strings and from ids that were cut
off or misspelt; it is no secret, and who can report what was shown can invent it anyhow.
"""

from __future__ import annotations

import secrets
import struct
import time
from base64 import urlsafe_b64decode, urlsafe_b64encode
from dataclasses import dataclass
from hashlib import blake2b
from random import Random
from typing import Final

# Ids must differ, not be secret.
_random: Final = Random(secrets.token_bytes(32))

_HEAD: Final = struct.Struct("<BB8sI9s")  # format, flags, model id, unix seconds, what makes it another one than all others
_VERSION: Final = struct.Struct("<I")
_FORMAT: Final = 1
_FALLBACK: Final = 1
_SCENARIO: Final = 2
_CHECK: Final = 4  # bytes
_MOST_NAME: Final = 64  # bytes of a scenario's name
_MOST_ID: Final = 160  # characters


@dataclass(frozen=True, slots=True)
class ListOrigin:
    """Where a list comes from.

    Attributes:
        fallback: whether it came from popularity and not from the model.
        made_s: when, unix seconds.
        scenario: "" for none; of a name longer than 64 bytes the beginning and a hash. version: of the scenario, 0 for none.
    """

    model_id: str
    fallback: bool
    made_s: int
    scenario: str = ""
    version: int = 0


def new_list_id(model_id: str, fallback: bool, scenario: str | None = None, version: int = 0) -> str:
    """An id for a list that is made now; `model_id` is 16 hex digits."""
    flags = _FALLBACK * fallback | _SCENARIO * (scenario is not None)
    noise = _random.getrandbits(72).to_bytes(9, "little")
    body = _HEAD.pack(_FORMAT, flags, bytes.fromhex(model_id), int(time.time()), noise)
    if scenario is not None:
        name = scenario.encode("utf-8", "replace")
        if len(name) > _MOST_NAME:
            name = name[: _MOST_NAME - 9] + b"~" + blake2b(name, digest_size=4).hexdigest().encode()
        body += _VERSION.pack(version) + name
    return urlsafe_b64encode(body + _check(body)).rstrip(b"=").decode()


def read_list_id(text: str) -> ListOrigin | None:
    """What an id says; None if it is none of ours."""
    if len(text) > _MOST_ID:
        return None
    try:
        raw = urlsafe_b64decode(text.encode("ascii") + b"=" * (-len(text) % 4))
    except ValueError:
        return None
    body = raw[:-_CHECK]
    if len(body) < _HEAD.size or raw[-_CHECK:] != _check(body) or urlsafe_b64encode(raw).rstrip(b"=").decode() != text:
        return None
    form, flags, model, made_s, _ = _HEAD.unpack_from(body)
    if form != _FORMAT:
        return None
    scenario, version = "", 0
    if flags & _SCENARIO:
        (version,) = _VERSION.unpack_from(body, _HEAD.size)
        scenario = body[_HEAD.size + _VERSION.size :].decode(errors="replace")
    return ListOrigin(model.hex(), bool(flags & _FALLBACK), made_s, scenario, version)


def _check(body: bytes) -> bytes:
    return blake2b(body, digest_size=_CHECK, person=b"longwave list").digest()
