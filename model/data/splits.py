"""What may be learned from and what is asked: leave-one-out, successive in time, and the next basket.

Time here is the user's clock: the running maximum of the user's event times in arrival order, so a late event never turns it back
and the order of one user's rows is never changed. Without late events it is the time of the event itself.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from model.data.sequences import Int32, Int64, Queries, Sequences, Split


def clock(seq: Sequences) -> Int64:
    """(E,) unix milliseconds: the latest time among the user's events up to and including this one."""
    first = np.zeros(len(seq.time), bool)
    first[seq.offsets[:-1][np.diff(seq.offsets) > 0]] = True
    if not np.any((np.diff(seq.time) < 0) & ~first[1:]):
        return seq.time
    # Ranks instead of times: user * ranks stays far below 2^63 whatever the times are.
    times, rank = np.unique(seq.time, return_inverse=True)
    base = seq.user.astype(np.int64) * len(times)
    return times[np.maximum.accumulate(base + rank) - base]


def basket_starts(seq: Sequences) -> Int64:
    """(baskets,) first row of every basket of every user, ascending."""
    starts = np.ones(len(seq.item), bool)
    starts[1:] = (np.diff(seq.basket) != 0) | (np.diff(seq.user) != 0)
    return np.flatnonzero(starts).astype(np.int64)


def global_order(seq: Sequences) -> Int64:
    """(E,) all rows in the order in which they become known: baskets by (clock of the first event, user), each basket whole."""
    starts = basket_starts(seq)
    return expand(starts, np.append(starts[1:], len(seq.item)), order_of_blocks(seq, starts))


def order_of_blocks(seq: Sequences, starts: Int64) -> Int64:
    """(blocks,) the blocks that begin at rows `starts` (ascending) by (clock, user, row): the one order of every live replay."""
    # Rows ascend with the user and then with arrival, so a stable sort on the clock alone leaves ties by (user, row).
    return np.argsort(clock(seq)[starts], kind="stable")


def expand(first: Int64, last: Int64, order: Int64) -> Int64:
    """Rows `first[b]:last[b]` of each block b, one block after another in `order`."""
    length = (last - first)[order]
    begin = np.cumsum(length) - length
    return np.repeat(first[order] - begin, length) + np.arange(int(length.sum()), dtype=np.int64)


def leave_one_out(seq: Sequences, *, filter_seen: bool = True) -> Split:
    """The last positive event of each user is the test target, the one before it the validation target.

    The input of the test query includes the validation target; nothing from the validation target on is trained on. A user with
    fewer than three positive events is not asked and only trains. Queries are in order of users.

    Source: the protocol of SASRec (Kang & McAuley 2018, arXiv:1808.09781), ranking all items (Krichene & Rendle 2020).
    """
    rows = np.flatnonzero(seq.positive).astype(np.int64)
    ends = np.searchsorted(rows, seq.offsets[1:])  # one past each user's last positive event, as an index into `rows`
    asked = np.flatnonzero(ends - np.searchsorted(rows, seq.offsets[:-1]) >= 3)
    test, valid = rows[ends[asked] - 1], rows[ends[asked] - 2]
    train_end = seq.offsets[1:].copy()
    train_end[asked] = valid
    users = asked.astype(np.int32)
    return Split("loo", train_end, _single(seq, users, valid), _single(seq, users, test), 0, 0, filter_seen)


def by_time(seq: Sequences, quantile: float = 0.9, valid_quantile: float = 0.85, *, filter_seen: bool = True) -> Split:
    """Train before `valid_quantile`, validate up to `quantile`, test after it; one query per positive event, from all before it.

    The cuts are quantiles of the times of the positive events, whatever the vocabulary, and the same moment for every user; an
    event at the cut is after it.
    Queries come in global order of time.

    Raises:
        ValueError: the quantiles are not 0 < valid_quantile < quantile < 1, or no positive event has an item.
    """
    valid_cut, cut = _cuts(seq, quantile, valid_quantile)
    now = clock(seq)
    rows = np.flatnonzero(seq.positive & (now >= valid_cut)).astype(np.int64)
    rows = rows[np.argsort(now[rows], kind="stable")]
    queries = _single(seq, seq.user[rows], rows)
    train_end = _train_end(seq, np.arange(len(seq.item), dtype=np.int64), valid_cut)
    return _at_cut("time", train_end, queries, valid_cut, cut, filter_seen)


def next_basket(seq: Sequences, quantile: float = 0.9, valid_quantile: float = 0.85, *, filter_seen: bool = False) -> Split:
    """Train before `valid_quantile`, validate up to `quantile`, test after it; one query per basket, from all before its start.

    A basket lies where its first event lies, and is asked for at that moment. Its targets are its distinct items of positive
    events (cancellations are never targets); a basket without one is only an input. Queries come in order of (as_of, user).

    Raises:
        ValueError: the quantiles are not 0 < valid_quantile < quantile < 1, or no positive event has an item.
    """
    valid_cut, cut = _cuts(seq, quantile, valid_quantile)
    queries = baskets(seq)
    train_end = _train_end(seq, basket_starts(seq), valid_cut)
    return _at_cut("basket", train_end, select(queries, queries.as_of >= valid_cut), valid_cut, cut, filter_seen)


def every_question(seq: Sequences, protocol: str) -> Queries:
    """All that a protocol, "time" or "basket", can ask, in order of time."""
    if protocol == "basket":
        return baskets(seq)
    rows = np.flatnonzero(seq.positive).astype(np.int64)
    rows = rows[np.argsort(clock(seq)[rows], kind="stable")]
    return _single(seq, seq.user[rows], rows)


def split_at(seq: Sequences, protocol: str, queries: Queries, since_ms: int, cut_ms: int, *, filter_seen: bool) -> Split:
    """Cut at given moments, for what goes on after a training: train before `cut_ms`, `valid` included, and test after it.

    Args:
        queries: as of `every_question`.
        since_ms: what came before it has been learned from already; `valid` has the questions from then on.
    """
    starts = basket_starts(seq) if protocol == "basket" else np.arange(len(seq.item), dtype=np.int64)
    train_end = _train_end(seq, starts, cut_ms)
    return _at_cut(protocol, train_end, select(queries, queries.as_of >= since_ms), since_ms, cut_ms, filter_seen)


def baskets(seq: Sequences) -> Queries:
    """One query per basket with a positive item, from all before its first event, in global order of (as_of, user)."""
    starts = basket_starts(seq)
    now = clock(seq)[starts]
    positive = np.flatnonzero(seq.positive)
    basket = np.searchsorted(starts, positive, side="right") - 1
    key = np.unique(basket.astype(np.int64) * seq.items + seq.item[positive])  # distinct items of a basket, ascending
    basket, target = key // seq.items, (key % seq.items).astype(np.int32)
    size = np.bincount(basket, minlength=len(starts))
    begin = np.cumsum(size) - size
    asked = np.flatnonzero(size > 0)
    asked = asked[np.argsort(now[asked], kind="stable")]
    return Queries(
        user=seq.user[starts[asked]],
        position=starts[asked],
        as_of=now[asked],
        target_offsets=np.concatenate([[0], np.cumsum(size[asked])]).astype(np.int64),
        target=target[expand(begin, begin + size, asked)],
    )


def training_queries(seq: Sequences, split: Split) -> Queries:
    """What a model may learn from: the same kind of query as the split asks, wherever the target is a training event."""
    if split.protocol == "basket":
        queries = baskets(seq)
    else:
        rows = np.flatnonzero(seq.positive).astype(np.int64)
        queries = _single(seq, seq.user[rows], rows)
    return select(queries, queries.position < split.train_end[queries.user])


def select(queries: Queries, chosen: npt.NDArray[np.integer] | npt.NDArray[np.bool_]) -> Queries:
    """The queries `chosen` (indices or a mask), in that order."""
    index = np.arange(len(queries))[chosen]
    size = np.diff(queries.target_offsets)[index]
    return Queries(
        user=queries.user[index],
        position=queries.position[index],
        as_of=queries.as_of[index],
        target_offsets=np.concatenate([[0], np.cumsum(size)]).astype(np.int64),
        target=queries.target[expand(queries.target_offsets[:-1], queries.target_offsets[1:], index)],
    )


def together(first: Queries, second: Queries) -> Queries:
    """The queries of both, one after another."""
    return Queries(
        np.concatenate([first.user, second.user]),
        np.concatenate([first.position, second.position]),
        np.concatenate([first.as_of, second.as_of]),
        np.concatenate([first.target_offsets, first.target_offsets[-1] + second.target_offsets[1:]]),
        np.concatenate([first.target, second.target]),
    )


def _single(seq: Sequences, user: Int32, rows: Int64) -> Queries:
    """One query before each of `rows`, whose item is the only target."""
    return Queries(user, rows, clock(seq)[rows], np.arange(len(rows) + 1, dtype=np.int64), seq.item[rows])


def _cuts(seq: Sequences, quantile: float, valid_quantile: float) -> tuple[int, int]:
    if not 0 < valid_quantile < quantile < 1:
        raise ValueError(f"expected 0 < valid_quantile < quantile < 1, got {valid_quantile} and {quantile}")
    # Items outside the vocabulary count too, so that the cut does not move when the vocabulary is then taken from before it.
    times = clock(seq)[(seq.polarity[seq.type] > 0) & (seq.item_key != 0)]
    if not len(times):
        raise ValueError("no positive event with an item: there is nothing to ask")
    # method="higher" gives a time that occurs, so the cut is an exact integer.
    valid_cut, cut = np.quantile(times, [valid_quantile, quantile], method="higher")
    return int(valid_cut), int(cut)


def _train_end(seq: Sequences, starts: Int64, valid_cut: int) -> Int64:
    """(U,) first row of each user's first block at or after the cut; the user's end without one."""
    before = clock(seq)[starts] < valid_cut
    # The clock never falls within a user, so the blocks before the cut come first.
    user = seq.user[starts]
    first = np.searchsorted(user, np.arange(seq.users))
    known = np.bincount(user[before], minlength=seq.users)
    train_end: Int64 = np.minimum(np.append(starts, len(seq.item))[first + known], seq.offsets[1:])
    return train_end


def _at_cut(protocol: str, train_end: Int64, queries: Queries, valid_cut: int, cut: int, filter_seen: bool) -> Split:
    later = queries.as_of >= cut
    return Split(protocol, train_end, select(queries, ~later), select(queries, later), valid_cut, cut, filter_seen)
