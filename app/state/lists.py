"""The id of a list says where the list comes from: which model, under which scenario, in which arm of which experiment, when. So
nothing is stored of lists that nobody sees, and whoever says that one was shown or clicked on need not say whose it was.

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
_NAMED: Final = struct.Struct("<IB")  # version, bytes of the name that follows
_FORMAT: Final = 1
_FALLBACK: Final = 1
_SCENARIO: Final = 2
_EXPERIMENT: Final = 4
_CHECK: Final = 4  # bytes
_MOST_NAME: Final = 64  # bytes of a scenario's or an experiment's name
MOST_ARM_BYTES: Final = 24
"""Of an arm's name, which an id holds whole."""
_MOST_ID: Final = 256  # characters, as of every id; the longest is of 252


@dataclass(frozen=True, slots=True)
class ListOrigin:
    """Where a list comes from.

    Attributes:
        fallback: whether it came from popularity and not from the model.
        made_s: when, unix seconds.
        scenario: "" for none; of a name longer than 64 bytes the beginning and a hash. version: of the scenario, 0 for none.
        experiment: likewise. experiment_version, arm: of it, 0 and "" for none.
    """

    model_id: str
    fallback: bool
    made_s: int
    scenario: str = ""
    version: int = 0
    experiment: str = ""
    experiment_version: int = 0
    arm: str = ""


def new_list_id(
    model_id: str,
    fallback: bool,
    scenario: str | None = None,
    version: int = 0,
    experiment: str | None = None,
    experiment_version: int = 0,
    arm: str = "",
) -> str:
    """An id for a list that is made now; `model_id` is 16 hex digits, `arm` has at most `MOST_ARM_BYTES`."""
    flags = _FALLBACK * fallback | _SCENARIO * (scenario is not None) | _EXPERIMENT * (experiment is not None)
    noise = _random.getrandbits(72).to_bytes(9, "little")
    body = _HEAD.pack(_FORMAT, flags, bytes.fromhex(model_id), int(time.time()), noise)
    if experiment is not None:
        if scenario is not None:
            body += _packed(scenario, version)
        body += _packed(experiment, experiment_version) + arm.encode("utf-8", "replace")
    elif scenario is not None:  # its name ends with the id, as it did when there was nothing else
        body += _VERSION.pack(version) + _short(scenario)
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
    fallback, rest = bool(flags & _FALLBACK), body[_HEAD.size :]
    scenario, version = "", 0
    try:
        if not flags & _EXPERIMENT:
            if flags & _SCENARIO:
                (version,) = _VERSION.unpack_from(rest)
                scenario = rest[_VERSION.size :].decode(errors="replace")
            return ListOrigin(model.hex(), fallback, made_s, scenario, version)
        if flags & _SCENARIO:
            scenario, version, rest = _unpacked(rest)
        experiment, experiment_version, rest = _unpacked(rest)
    except struct.error:  # too short for what its flags say
        return None
    return ListOrigin(
        model.hex(), fallback, made_s, scenario, version, experiment, experiment_version, rest.decode(errors="replace")
    )


def short_name(name: str) -> str:
    """A scenario's or an experiment's name as an id says it."""
    return _short(name).decode(errors="replace")


def _short(name: str) -> bytes:
    """Of a long name the beginning and a hash."""
    encoded = name.encode("utf-8", "replace")
    if len(encoded) > _MOST_NAME:
        encoded = encoded[: _MOST_NAME - 9] + b"~" + blake2b(encoded, digest_size=4).hexdigest().encode()
    return encoded


def _packed(name: str, version: int) -> bytes:
    short = _short(name)
    return _NAMED.pack(version, len(short)) + short


def _unpacked(body: bytes) -> tuple[str, int, bytes]:
    """Name, version, and what comes after them. Raises struct.error if the body is too short."""
    version, length = _NAMED.unpack_from(body)
    end = _NAMED.size + length
    if len(body) < end:
        raise struct.error("the name is cut off")
    return body[_NAMED.size : end].decode(errors="replace"), version, body[end:]


def _check(body: bytes) -> bytes:
    return blake2b(body, digest_size=_CHECK, person=b"longwave list").digest()
