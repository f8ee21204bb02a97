"""The keys of Redis that the archive touches beside those of a user."""

from __future__ import annotations

from hashlib import blake2b

from app.state import keys

MAINTENANCE_KEY = "lw:archive:maintenance"
"""String: token of the archiver that compacts and erases; with expiry."""


def log_key(partition: int) -> str:
    """Stream: the event log of a partition."""
    return keys.log_key(f"{partition:02x}")


def identity_key(partition: int) -> str:
    """String: the identity of that log and up to where it was trimmed, see `Mark`."""
    return keys.log_identity_key(f"{partition:02x}")


def lease_key(partition: int) -> str:
    """String: token of the archiver that reads this partition; with expiry."""
    return f"lw:{{{partition:02x}}}:archive"


def user_hash(user_id: str) -> str:
    """What is remembered of an erased user: 16 hex digits, as in the key of the tombstone."""
    return blake2b(keys.encode_id(user_id).encode("ascii"), digest_size=8).hexdigest()


def gone_key(partition: int, tenant: str, hashed_user: str) -> str:
    """`UserKeys.gone`, built from the hash alone: the archive knows no more of the erased."""
    return f"lw:{{{partition:02x}}}:{keys.encode_id(tenant)}:gone:{hashed_user}"
