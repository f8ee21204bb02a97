"""Every key that Longwave has in Redis. No other file builds one.

Ids are percent-encoded (RFC 3986 unreserved characters stay): none holds a `:`, a `{` or a `}`, and no two ids make one key.
All keys of a user carry the hash tag `{pp}` of the user's partition: on a Redis Cluster they live on one node, together with
that partition's event log, and one script may touch them all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from urllib.parse import quote

PARTITIONS = 256
"""Part of the stored format: another number would look for users in the wrong place, so Redis keeps it and `open` compares."""

PARTITIONS_KEY = "lw:partitions"


@dataclass(frozen=True, slots=True)
class UserKeys:
    """The keys of one user; all are on the same partition."""

    seq: str
    """List: packed events in arrival order, bounded."""
    meta: str
    """Hash: `n` events appended, `e` epoch, `f`/`l` first and last time, `a` attributes."""
    ids: str
    """String: 8-byte hashes of the last event ids, oldest first."""
    log: str
    """Stream of the partition: every accepted event with its tenant and user."""


def encode_id(identifier: str) -> str:
    """Percent-encode an id; lone surrogates too, so that every Python string has a key of its own."""
    return quote(identifier, safe="", errors="surrogatepass")


def partition(tenant: str, user_id: str) -> str:
    """The user's partition as two hex digits: a stable hash of tenant and user, the same in every process and version."""
    return _partition(encode_id(tenant), encode_id(user_id))


def user_keys(tenant: str, user_id: str) -> UserKeys:
    """The keys that belong to a user whatever the model."""
    t, u = encode_id(tenant), encode_id(user_id)
    pp = _partition(t, u)
    head = f"lw:{{{pp}}}:{t}"
    return UserKeys(seq=f"{head}:seq:{u}", meta=f"{head}:meta:{u}", ids=f"{head}:ids:{u}", log=f"lw:{{{pp}}}:log")


def state_key(tenant: str, model_id: str, user_id: str) -> str:
    """String: the user's state under one model. Another model has another key, so models never read each other's states."""
    t, u = encode_id(tenant), encode_id(user_id)
    return f"lw:{{{_partition(t, u)}}}:{t}:state:{encode_id(model_id)}:{u}"


def popularity_key(tenant: str, half_lives_s: Sequence[float]) -> str:
    """Hash: per item id the time in unix ms and one decayed count per half-life.

    The half-lives are in the name: during a swap two models may count with different ones and must not mix their columns.
    """
    return f"lw:{encode_id(tenant)}:popularity:{','.join(f'{half_life:.17g}' for half_life in half_lives_s)}"


def _partition(encoded_tenant: str, encoded_user: str) -> str:
    digest = blake2b(f"{encoded_tenant}:{encoded_user}".encode("ascii"), digest_size=8).digest()
    return f"{int.from_bytes(digest, 'little') % PARTITIONS:02x}"
