"""Cold users: questions asked as if their users had come only so many events ago."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from model.data.sequences import Int64, Queries, Sequences


def last_events(seq: Sequences, queries: Queries, count: int) -> tuple[Sequences, Queries, Int64]:
    """Every query asked by a user of its own, who has made exactly the `count` events that stand before it.

    Returns:
        Sequences of Q users with count + 1 events each (the last is the one that the query stands before), the same Q queries at
        their places there, and (Q * (count + 1),) the rows of `seq` that the events are.

    Raises:
        ValueError: a query has fewer events before it.
    """
    if (queries.position - seq.offsets[queries.user] < count).any():
        raise ValueError(f"a query has fewer than {count} events before it")
    rows = (queries.position[:, None] + np.arange(-count, 1)).ravel()
    offsets = np.arange(len(queries) + 1, dtype=np.int64) * (count + 1)
    own = replace(
        seq,
        user_ids=[f"{seq.user_ids[user]} at {position}" for user, position in zip(queries.user, queries.position, strict=True)],
        offsets=offsets,
        item=seq.item[rows],
        item_key=seq.item_key[rows],
        type=seq.type[rows],
        time=seq.time[rows],
        numbers=seq.numbers[rows],
        platform=seq.platform[rows],
        basket=seq.basket[rows],
        text={new: seq.text[row] for new, row in enumerate(rows.tolist()) if row in seq.text},
        attributes=seq.attributes[queries.user],
    )
    asked = replace(queries, user=np.arange(len(queries), dtype=np.int32), position=offsets[:-1] + count)
    return own, asked, rows
