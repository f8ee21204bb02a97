"""Small worlds of events: written by hand, or random with ties, late events and users without any."""

from __future__ import annotations

import numpy as np

from model.data.sequences import Sequences


def build(events: list[tuple[int, int, int, int, int]], items: int) -> Sequences:
    """Events as (user, item, type, time, basket), users ascending; type 0 purchase, 1 view, 2 cancellation (weights 1, 1, 1)."""
    table = np.array(events, np.int64).reshape(-1, 5)
    users = int(table[:, 0].max(initial=-1)) + 1
    count = len(table)
    return Sequences(
        user_ids=[f"u{user}" for user in range(users)],
        item_ids=[f"i{item}" for item in range(items)],
        offsets=np.concatenate([[0], np.cumsum(np.bincount(table[:, 0], minlength=users))]).astype(np.int64),
        item=table[:, 1].astype(np.int32),
        item_key=np.where(table[:, 1] >= 0, table[:, 1] + 1, 99),
        type=table[:, 2].astype(np.int32),
        time=table[:, 3],
        numbers=np.full((count, 3), np.nan, np.float32),
        platform=np.zeros(count, np.int32),
        basket=table[:, 4].astype(np.int32),
        text={},
        event_types=["purchase", "view", "cancellation"],
        polarity=np.array([1, 0, -1], np.int32),
        weight=np.ones(3, np.float32),
        platforms=[],
        attribute_names=[],
        attribute_values=[],
        attributes=np.zeros((users, 0), np.int32),
    )


def random_world(seed: int, users: int = 8, items: int = 12, late: bool = False) -> Sequences:
    """Baskets of 1-4 events at coarse times, so that ties between users are common; one user has no event at all."""
    rng = np.random.default_rng(seed)
    day = 86_400_000
    events = []
    for user in range(users):
        now = int(rng.integers(0, 10)) * day
        for basket in range(0 if user == 3 else int(rng.integers(1, 9))):
            now += int(rng.integers(0, 6)) * day
            for position in range(int(rng.integers(1, 5))):
                item = int(rng.integers(-1, items))
                kind = int(rng.choice(3, p=[0.7, 0.15, 0.15]))
                # A basket may span some minutes; with `late` an event may carry a time from long before.
                time = now + position * 60_000 - (int(rng.integers(0, 4)) * day if late else 0)
                events.append((user, item, kind, time, basket))
    return build(events, items)
