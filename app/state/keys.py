"""Every key that Longwave has in Redis. No other file builds one.

Ids are percent-encoded (RFC 3986 unreserved characters stay): none holds a `:`, a `{` or a `}`, and no two ids make one key.
All keys of a user carry the hash tag `{pp}` of the user's partition: on a Redis Cluster they live on one node, together with
that partition's event log, and one script may touch them all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from urllib.parse import quote, unquote

PARTITIONS = 256
"""Part of the stored format: another number would look for users in the wrong place."""

LAYOUT_KEY = "lw:layout"
LAYOUT = f"2/{PARTITIONS}"
"""Format of what is stored, and number of partitions. Redis keeps it, and a service that expects another one refuses to start."""


_CACHED = 65_536  # users whose keys are not worked out again, about 1 KB each


@dataclass(frozen=True, slots=True)
class UserKeys:
    """The keys of one user; all are on the same partition."""

    seq: str
    """List: packed events in arrival order, bounded."""
    meta: str
    """Hash: `n` events appended, `e` epoch, `was` those before it, `f`/`l` first and last time, `a` attributes; `to`, `ms`, `ik`
    after a merge; `d` day of the last record, `cut` if the archive may lack some."""
    ids: str
    """String: a ring of 8-byte hashes of the last event ids, behind a header of 16 bytes."""
    shown: str
    """String with a TTL: the lists and items that the user was shown of late, see impression.lua."""
    gone: str
    """String with a TTL: when the user was erased, unix ms. Named by a hash: it must not keep who they were."""
    log: str
    """Stream of the partition: everything that changed a sequence, and what was shown, with tenant and user, until it is
    archived."""


def receipt_key(tenant: str, user_id: str, name: str) -> str:
    """String with a TTL: what an erasure, that has this name, has taken with a user, see `Erasing.finish`."""
    return f"lw:{{{partition(tenant, user_id)}}}:{encode_id(tenant)}:receipt:{name}"


MODELS_KEY = "lw:models"
"""Hash: model id -> JSON of what it is; every model that may have states."""


MODEL_KEY = "lw:model"
"""Hash: which model serves, see model.lua."""

WORKERS_KEY = "lw:{lw:model}:workers"
"""Hash: who is alive, see heartbeat.lua. On a Cluster it is in the slot of `MODEL_KEY`: a node that refuses one refuses both."""


def encode_id(identifier: str) -> str:
    """Percent-encode an id; lone surrogates too, so that every Python string has a key of its own."""
    return quote(identifier, safe="", errors="surrogatepass")


def decode_id(encoded: str) -> str:
    """What `encode_id` was given."""
    return unquote(encoded, errors="surrogatepass")


def partition(tenant: str, user_id: str) -> str:
    """The user's partition as two hex digits: a stable hash of tenant and user, the same in every process and version."""
    return _partition(encode_id(tenant), encode_id(user_id))


@lru_cache(_CACHED)
def user_keys(tenant: str, user_id: str) -> UserKeys:
    """The keys that belong to a user whatever the model."""
    t, u = encode_id(tenant), encode_id(user_id)
    return _user_keys(_partition(t, u), t, u)


def nobodys_keys(tenant: str, name: str) -> UserKeys:
    """The keys of the user "", whom no id names, on the partition of some name: what is nobody's is spread over all of them."""
    return _user_keys(partition(tenant, name), encode_id(tenant), "")


def _user_keys(pp: str, t: str, u: str) -> UserKeys:
    head = f"lw:{{{pp}}}:{t}"
    forgotten = blake2b(u.encode("ascii"), digest_size=8).hexdigest()
    return UserKeys(
        seq=f"{head}:seq:{u}",
        meta=f"{head}:meta:{u}",
        ids=f"{head}:ids:{u}",
        shown=f"{head}:shown:{u}",
        gone=f"{head}:gone:{forgotten}",
        log=log_key(pp),
    )


def user_of_meta(key: str) -> tuple[str, str] | None:
    """Tenant and user id of the key of a meta; None for another key."""
    parts = key.split(":")
    if len(parts) != 5 or parts[3] != "meta":
        return None
    tenant, user = parts[2], parts[4]
    return unquote(tenant, errors="surrogatepass"), unquote(user, errors="surrogatepass")


def user_of(key: str) -> tuple[str, str] | None:
    """Tenant and user id of a key that names a user; None for another key."""
    parts = key.split(":")
    if len(parts) < 5 or parts[3] not in ("seq", "meta", "ids", "shown", "state"):
        return None
    return unquote(parts[2], errors="surrogatepass"), unquote(parts[-1], errors="surrogatepass")


_TYPES = {"seq": "list", "meta": "hash", "ids": "string", "shown": "string", "gone": "string", "state": "string", "log": "stream"}


def type_of(key: str) -> str | None:
    """The Redis type of a key of a user or of a partition; None for another key."""
    parts = key.split(":")
    return _TYPES.get(parts[3] if len(parts) > 3 else parts[-1])


def log_key(pp: str) -> str:
    """Stream: the event log of a partition."""
    return f"lw:{{{pp}}}:log"


def log_identity_key(pp: str) -> str:
    """String: the random identity of a partition's log, by which the archive knows it. It goes when the log goes."""
    return f"lw:{{{pp}}}:log-identity"


@lru_cache(_CACHED)
def state_key(tenant: str, model_id: str, user_id: str) -> str:
    """String: the user's state under one model. Another model has another key, so models never read each other's states."""
    t, u = encode_id(tenant), encode_id(user_id)
    return f"lw:{{{_partition(t, u)}}}:{t}:state:{encode_id(model_id)}:{u}"


def popularity_key(tenant: str, half_lives_s: Sequence[float]) -> str:
    """Hash: per item id the time in unix ms and one decayed count per half-life.

    The half-lives are in the name: during a swap two models may count with different ones and must not mix their columns.
    """
    return f"lw:{encode_id(tenant)}:popularity:{','.join(f'{half_life:.17g}' for half_life in half_lives_s)}"


def trend_key(tenant: str, width_s: int, slot: int) -> str:
    """Hash: what was used within one bucket of time, see trend.lua. All of a tenant are in one slot of a Cluster."""
    return f"lw:{{trend-{encode_id(tenant)}}}:{width_s}:{slot}"


def context_key(tenant: str, half_life_s: float, facet: str) -> str:
    """Hash: how much was used with each value of a facet, see context.lua. All of a tenant are in one slot of a Cluster."""
    return f"lw:{{context-{encode_id(tenant)}}}:{half_life_s:.17g}:{encode_id(facet)}"


def context_items_key(tenant: str, half_life_s: float, facet: str, value: str) -> str:
    """Hash: which items were used with a value of a facet, see context.lua."""
    return f"{context_key(tenant, half_life_s, facet)}:{encode_id(value)}"


def items_key(tenant: str) -> str:
    """Hash: what was said of each item, see items.lua."""
    return f"lw:{encode_id(tenant)}:items"


def item_changes_key(tenant: str) -> str:
    """Stream: which items were changed, in order; on a Cluster in the slot of `items_key`."""
    return f"lw:{{{items_key(tenant)}}}:changes"


def item_kinds_key(tenant: str) -> str:
    """Hash: name of an attribute -> its type; on a Cluster in the slot of `items_key`."""
    return f"lw:{{{items_key(tenant)}}}:kinds"


def item_vectors_key(tenant: str, model_id: str) -> str:
    """Hash: item id -> what a model made of an item that it was not trained with."""
    return f"lw:{encode_id(tenant)}:vectors:{encode_id(model_id)}"


def named_key(tenant: str, kind: str) -> str:
    """Hash: what has a name, of a kind such as `scenario`, see versioned.lua."""
    return f"lw:{encode_id(tenant)}:{kind}s"


def named_versions_key(tenant: str, kind: str) -> str:
    """Hash: every version of them that is kept; on a Cluster in the slot of `named_key`."""
    return f"lw:{{{named_key(tenant, kind)}}}:versions"


def _partition(encoded_tenant: str, encoded_user: str) -> str:
    digest = blake2b(f"{encoded_tenant}:{encoded_user}".encode("ascii"), digest_size=8).digest()
    return f"{int.from_bytes(digest, 'little') % PARTITIONS:02x}"
