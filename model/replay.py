"""Walking events and queries in the order in which a live service meets them.

The unit is a block: a user's basket, cut once more wherever a query stands inside it. Blocks of all users go by (clock of their
first event, user, row); a query is asked right before its block, and the block becomes known right after, whole, before the next
query. Events nobody asks about (cancellations, other types) are blocks too, without a query. This is exactly what a replay over
HTTP does: GET, then POST, basket by basket.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from model.baselines.protocol import Baseline
from model.data.sequences import Int64, Queries, Sequences
from model.data.splits import basket_starts, order_of_blocks

Step: TypeAlias = tuple[Literal["query"], int] | tuple[Literal["events"], int, int]


def live_schedule(seq: Sequences, queries: Queries, known: Int64 | None = None) -> list[Step]:
    """The steps of a live replay, up to and including the events right after the last query.

    Args:
        seq: the events.
        queries: in any order, at distinct positions; each `position` is the row of an event of its `user`.
        known: (U,) row after each user's last event that is known before the replay starts (for instance `Split.train_end`);
            queries before it are an error. None: nothing is known.

    Returns:
        ("query", q) and ("events", start_row, end_row) in live order; the rows of a step belong to one user.

    Raises:
        ValueError: a query at a row that is not its user's, or that is known beforehand, or two at the same row.
    """
    start = seq.offsets[:-1] if known is None else known
    outside = (queries.position < start[queries.user]) | (queries.position >= seq.offsets[1:][queries.user])
    if outside.any():
        raise ValueError(f"query {int(outside.argmax())} does not stand at an event that its user has yet to make")
    query_at = np.full(len(seq.item), -1, np.int64)
    query_at[queries.position] = np.arange(len(queries))
    if np.count_nonzero(query_at >= 0) < len(queries):
        raise ValueError("two queries stand at the same event")

    pending = start[start < seq.offsets[1:]]
    starts = np.unique(np.concatenate([basket_starts(seq), queries.position, pending]))
    ends = np.append(starts[1:], len(seq.item))
    unknown = starts >= start[seq.user[starts]]
    starts, ends = starts[unknown], ends[unknown]
    steps: list[Step] = []
    left = len(queries)
    for block in order_of_blocks(seq, starts).tolist():
        if left == 0:
            break
        first = int(starts[block])
        if query_at[first] >= 0:
            steps.append(("query", int(query_at[first])))
            left -= 1
        steps.append(("events", first, int(ends[block])))
    return steps


def top_k(scores: npt.NDArray[np.floating], k: int) -> Int64:
    """Rows of the k best scores, best first, ties by lower row; fewer if fewer are above -inf. `scores`: (N,), no NaN."""
    if k < len(scores):
        # A partition alone would break ties at the edge at random: take all above the k-th value, then the first that equal it.
        edge = np.partition(scores, len(scores) - k)[len(scores) - k]
        above = np.flatnonzero(scores > edge)
        rows = np.concatenate([above, np.flatnonzero(scores == edge)[: k - len(above)]])
    else:
        rows = np.arange(len(scores))
    rows = rows[np.argsort(-scores[rows], kind="stable")]
    eligible: Int64 = rows[scores[rows] > -np.inf]
    return eligible


def seen_items(seq: Sequences, user: int, position: int, last: int | None = None) -> npt.NDArray[np.int32]:
    """Item rows of all events of the user's past, of whatever type: what `filter_seen` takes out of a ranking.

    `last`: of so many events before `position` alone; None is all.
    """
    first = int(seq.offsets[user])
    past = seq.item[first if last is None else max(first, position - last) : position]
    return past[past >= 0]


def replay(
    seq: Sequences,
    queries: Queries,
    baselines: Sequence[Baseline],
    *,
    known: Int64,
    k: int = 20,
    filter_seen: bool = False,
    live: bool = True,
) -> dict[str, npt.NDArray[np.int32]]:
    """`replay_each` by name.

    Raises:
        ValueError: two baselines have the same name.
    """
    names = [baseline.name for baseline in baselines]
    if len(set(names)) < len(names):
        raise ValueError(f"two baselines have the same name: {names}")
    lists = replay_each(seq, queries, baselines, known=known, k=k, filter_seen=filter_seen, live=live)
    return dict(zip(names, lists, strict=True))


def replay_each(
    seq: Sequences,
    queries: Queries,
    baselines: Sequence[Baseline],
    *,
    known: Int64,
    k: int = 20,
    filter_seen: bool = False,
    live: bool = True,
    last: int | None = None,
) -> list[npt.NDArray[np.int32]]:
    """Fit the baselines on what is known and let them answer every query.

    Args:
        seq: the events.
        queries: Q queries.
        baselines: fitted here, on the rows before `known`.
        known: (U,) row after each user's last event before the replay, `Split.train_end` as a rule.
        k: length of the lists.
        filter_seen: leave out the items of the user's past.
        live: True: at a query a baseline has met exactly the events that stand before it in `live_schedule`. False
            (leave-one-out): what is common to all users stays as fitted, only the asking user's own past moves on to the query.
        last: leave out the items of the user's last so many events alone; None is all. (What a baseline reads is its own matter.)

    Returns:
        Per baseline (Q, k) item rows in the order of `queries`, -1 from where a list ends.
    """
    lists = [np.full((len(queries), k), -1, np.int32) for _ in baselines]
    for baseline in baselines:
        baseline.fit(seq, known)
    steps: list[Step] = [("query", q) for q in range(len(queries))]
    if live:
        steps = live_schedule(seq, queries, known)
    for step in steps:
        if step[0] == "events":
            for baseline in baselines:
                baseline.observe(step[1], step[2])
            continue
        q = step[1]
        user, position, as_of = int(queries.user[q]), int(queries.position[q]), int(queries.as_of[q])
        seen = seen_items(seq, user, position, last) if filter_seen else None
        for baseline, ranked in zip(baselines, lists, strict=True):
            scores = baseline.score(user, position, as_of)
            if seen is not None:
                scores[seen] = -np.inf
            best = top_k(scores, k)
            ranked[q, : len(best)] = best
    return lists
