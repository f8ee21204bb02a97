"""Every user's events as flat numpy arrays: what training, evaluation and the baselines read.

Users are stored one after another (CSR): the events of user u are rows `offsets[u]:offsets[u + 1]`, in arrival order.
Rows of items count from 0; -1 stands for an event without an item or with one outside the vocabulary.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

NUMBERS = ("value", "quantity", "price")

Int32 = npt.NDArray[np.int32]
Int64 = npt.NDArray[np.int64]
Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Sequences:
    """E events of U users over N items.

    Attributes:
        user_ids: U names; item_ids: N names, the vocabulary.
        offsets: (U + 1,) first event of each user.
        item: (E,) row in `item_ids`, or -1.
        item_key: (E,) 64-bit key of the item id whether or not it is in the vocabulary; 0 without an item.
        type: (E,) index into `event_types`.
        time: (E,) unix milliseconds.
        numbers: (E, 3) value, quantity, price; NaN is missing.
        platform: (E,) 0 is missing, i is `platforms[i - 1]`.
        basket: (E,) number of the basket within the user, non-decreasing; events bought together share it.
        text: texts of the events that have one, by event row.
        polarity: (types,) +1 positive, 0 neutral, -1 negative; weight: (types,) what one event counts.
        attributes: (U, A) user attributes, 0 is missing.
    """

    user_ids: list[str]
    item_ids: list[str]
    offsets: Int64
    item: Int32
    item_key: Int64
    type: Int32
    time: Int64
    numbers: Float32
    platform: Int32
    basket: Int32
    text: dict[int, str]
    event_types: list[str]
    polarity: Int32
    weight: Float32
    platforms: list[str]
    attribute_names: list[str]
    attribute_values: list[list[str]]
    attributes: Int32

    @property
    def users(self) -> int:
        return len(self.user_ids)

    @property
    def items(self) -> int:
        return len(self.item_ids)

    @property
    def user(self) -> Int32:
        """(E,) the user of each event."""
        return np.repeat(np.arange(self.users, dtype=np.int32), np.diff(self.offsets))

    @property
    def positive(self) -> npt.NDArray[np.bool_]:
        """(E,) whether the event may be a target: of a positive type, with an item of the vocabulary."""
        return (self.polarity[self.type] > 0) & (self.item >= 0)


@dataclass(frozen=True)
class Queries:
    """Q questions "what next?", each asked at one moment of one user's sequence.

    Attributes:
        user: (Q,) row of the user.
        position: (Q,) row of the first event not yet seen: the input is `offsets[user]:position`.
        as_of: (Q,) unix milliseconds at which it is asked.
        target_offsets: (Q + 1,), target: the true items of query q are `target[target_offsets[q]:target_offsets[q + 1]]`,
            distinct, ascending, all of the vocabulary.
    """

    user: Int32
    position: Int64
    as_of: Int64
    target_offsets: Int64
    target: Int32

    def __len__(self) -> int:
        return len(self.user)

    def targets(self, q: int) -> Int32:
        return self.target[self.target_offsets[q] : self.target_offsets[q + 1]]


def headline_k(protocol: str) -> int:
    """The k of the ndcg@k that settings and epochs are chosen by: 20 for baskets, which hold that many, else 10."""
    return 20 if protocol == "basket" else 10


@dataclass(frozen=True)
class Split:
    """What may be learned from and what is asked.

    Attributes:
        protocol: "loo", "time" or "basket".
        train_end: (U,) row after each user's last training event; rows `offsets[u]:train_end[u]` train.
        valid, test: queries; those of `test` may see everything before them, the validation part included.
        cut_ms, valid_cut_ms: the moments that part train | validation | test (0 for loo, which has none).
        filter_seen: whether items of the user's past are taken out of the ranking.
    """

    protocol: str
    train_end: Int64
    valid: Queries
    test: Queries
    valid_cut_ms: int
    cut_ms: int
    filter_seen: bool

    @property
    def k(self) -> int:
        return headline_k(self.protocol)


def item_key(item_id: str) -> int:
    """The signed 64-bit key under which the own-repeat memory knows an item; never 0 (0 is an empty slot)."""
    key = int.from_bytes(hashlib.blake2b(item_id.encode(), digest_size=8).digest(), "little", signed=True)
    return key or 1
