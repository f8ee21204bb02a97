import numpy as np
import pytest

from model.data.splits import by_time, clock, global_order, leave_one_out, next_basket, select

SEEDS = range(40)


def as_tuples(queries):
    return [
        (int(queries.user[q]), int(queries.position[q]), int(queries.as_of[q]), queries.targets(q).tolist())
        for q in range(len(queries))
    ]


def running_clock(seq):
    now = []
    for user in range(seq.users):
        latest = None
        for row in range(seq.offsets[user], seq.offsets[user + 1]):
            latest = seq.time[row] if latest is None else max(latest, seq.time[row])
            now.append(int(latest))
    return now


def baskets(seq):
    """(user, rows) of every basket, by rows."""
    found = {}
    for user in range(seq.users):
        for row in range(seq.offsets[user], seq.offsets[user + 1]):
            found.setdefault((user, int(seq.basket[row])), []).append(row)
    return [(user, rows) for (user, _), rows in found.items()]


@pytest.mark.parametrize("seed", SEEDS)
def test_next_baskets_agree_with_a_slow_reference(world, seed):
    seq = world(seed, late=seed % 2 == 1)
    split = next_basket(seq, 0.7, 0.4)
    now = running_clock(seq)
    valid, test, train_end = [], [], seq.offsets[1:].copy()
    for user, rows in baskets(seq):
        if now[rows[0]] >= split.valid_cut_ms:
            train_end[user] = min(train_end[user], rows[0])
            targets = sorted({int(seq.item[row]) for row in rows if seq.positive[row]})
            if targets:
                part = test if now[rows[0]] >= split.cut_ms else valid
                part.append((user, rows[0], now[rows[0]], targets))
    assert as_tuples(split.valid) == sorted(valid, key=lambda q: (q[2], q[0]))
    assert as_tuples(split.test) == sorted(test, key=lambda q: (q[2], q[0]))
    np.testing.assert_array_equal(split.train_end, train_end)


@pytest.mark.parametrize("seed", SEEDS)
def test_successive_queries_agree_with_a_slow_reference(world, seed):
    seq = world(seed, late=seed % 2 == 1)
    split = by_time(seq, 0.7, 0.4)
    now = running_clock(seq)
    later = [row for row in range(len(seq.item)) if now[row] >= split.valid_cut_ms]
    expected = sorted((now[row], int(seq.user[row]), row) for row in later if seq.positive[row])
    queries = [(user, row, at, [int(seq.item[row])]) for at, user, row in expected]
    assert as_tuples(split.valid) == [q for q in queries if q[2] < split.cut_ms]
    assert as_tuples(split.test) == [q for q in queries if q[2] >= split.cut_ms]
    for user in range(seq.users):
        own = [row for row in later if seq.user[row] == user]
        assert split.train_end[user] == min(own, default=seq.offsets[user + 1])


@pytest.mark.parametrize("seed", SEEDS)
def test_leave_one_out_agrees_with_a_slow_reference(world, seed):
    seq = world(seed)
    split = leave_one_out(seq)
    now, valid, test = running_clock(seq), [], []
    for user in range(seq.users):
        own = [row for row in range(seq.offsets[user], seq.offsets[user + 1]) if seq.positive[row]]
        if len(own) < 3:
            assert split.train_end[user] == seq.offsets[user + 1]
            continue
        assert split.train_end[user] == own[-2]
        valid.append((user, own[-2], now[own[-2]], [int(seq.item[own[-2]])]))
        test.append((user, own[-1], now[own[-1]], [int(seq.item[own[-1]])]))
    assert as_tuples(split.valid) == valid
    assert as_tuples(split.test) == test


def test_a_basket_lies_where_it_begins_and_asks_only_for_what_was_bought(sequences):
    # Basket 1 begins before the cut (0.5 quantile: time 20) and ends after it; item 3 is cancelled, item 2 bought twice.
    first_user = [(0, 0, 0, 0, 0), (0, 1, 0, 10, 1), (0, 4, 0, 30, 1)]
    second_user = [(1, 5, 0, 15, 0), (1, 2, 0, 20, 1), (1, 3, 2, 20, 1), (1, 2, 0, 20, 1), (1, 0, 0, 20, 1), (1, 3, 2, 40, 2)]
    seq = sequences(first_user + second_user, 6)
    split = next_basket(seq, 0.5, 0.25)
    assert split.cut_ms == 20
    assert as_tuples(split.test) == [(1, 4, 20, [0, 2])]
    assert as_tuples(split.valid) == [(1, 3, 15, [5])]


def test_the_cut_does_not_move_when_items_leave_the_vocabulary(sequences):
    events = [(0, item, 0, item * 10, item) for item in range(10)]
    whole = by_time(sequences(events, 10))
    small = by_time(sequences([(u, -1 if i > 6 else i, k, t, b) for u, i, k, t, b in events], 7))
    assert (small.cut_ms, small.valid_cut_ms) == (whole.cut_ms, whole.valid_cut_ms)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_global_order_keeps_baskets_whole_and_users_in_arrival_order(world, seed):
    seq = world(seed, late=True)
    now = running_clock(seq)
    assert clock(seq).tolist() == now
    expected = [row for _, rows in sorted(baskets(seq), key=lambda b: (now[b[1][0]], b[0], b[1][0])) for row in rows]
    assert global_order(seq).tolist() == expected


def test_selected_queries_keep_their_targets(world):
    queries = next_basket(world(1), 0.7, 0.4).test
    chosen = np.array([2, 0])
    assert as_tuples(select(queries, chosen)) == [as_tuples(queries)[2], as_tuples(queries)[0]]


@pytest.mark.parametrize("split", [by_time, next_basket])
def test_cuts_out_of_order_are_refused(world, split):
    with pytest.raises(ValueError, match="valid_quantile < quantile"):
        split(world(0), 0.8, 0.8)
