import dataclasses

import numpy as np
import pytest

from model.baselines.co_transition import CoTransition
from model.baselines.own_frequency import OwnFrequency
from model.baselines.popularity import Popularity
from model.baselines.recent_popularity import RecentPopularity
from model.baselines.tifu_knn import TifuKnn
from model.baselines.vmis_knn import VmisKnn
from model.data.splits import by_time, clock, global_order, next_basket
from model.replay import live_schedule, replay, top_k

SEEDS = range(20)


def baselines():
    return [
        Popularity(),
        RecentPopularity(3),
        OwnFrequency(30, 2, 0.4, 3),
        CoTransition(2, 3),
        TifuKnn(2, 0.8, 0.6, 3, 0.4),
        VmisKnn(2, 3, 6, 4),
    ]


class Witness:
    """Remembers which rows were known at each query."""

    name = "witness"

    def fit(self, seq, known):
        self.items = seq.items
        self.rows = [row for user in range(seq.users) for row in range(seq.offsets[user], known[user])]
        self.seen = {}

    def observe(self, start, end):
        self.rows.extend(range(start, end))

    def score(self, user, position, as_of_ms):
        self.seen[position] = set(self.rows)
        return np.zeros(self.items)

    def parameters(self):
        return {}


@pytest.mark.parametrize("seed", SEEDS)
def test_at_a_query_exactly_the_baskets_before_it_are_known(world, seed):
    seq = world(seed, late=seed % 2 == 1)
    split = next_basket(seq, 0.7, 0.4)
    witness = Witness()
    replay(seq, split.test, [witness], known=split.train_end, k=3)
    order = global_order(seq).tolist()
    for position in split.test.position.tolist():
        # Baskets of others that begin at the same moment: those of lower users are known, whole; those of higher ones are not.
        assert witness.seen[position] == set(order[: order.index(position)])


@pytest.mark.parametrize("seed", SEEDS)
def test_a_query_inside_a_basket_is_asked_between_its_events(world, seed):
    seq = world(seed)
    split = by_time(seq, 0.7, 0.4)
    steps = live_schedule(seq, split.test, split.train_end)
    known = set()
    for user in range(seq.users):
        known |= set(range(seq.offsets[user], split.train_end[user]))
    asked = []
    for step in steps:
        if step[0] == "query":
            q = step[1]
            user, position = split.test.user[q], split.test.position[q]
            asked.append(q)
            assert set(range(seq.offsets[user], position)) <= known
            assert known.isdisjoint(range(position, seq.offsets[user + 1]))
        else:
            assert known.isdisjoint(range(step[1], step[2]))
            known |= set(range(step[1], step[2]))
    assert sorted(asked) == list(range(len(split.test)))
    # Nothing later than the last question is waited for.
    assert steps[-2] == ("query", asked[-1])


def test_the_schedule_posts_each_basket_right_after_its_own_query(sequences):
    # Two users buy at the same moment; user 0 cancels between; user 1's second basket comes last.
    seq = sequences(
        [(0, 0, 0, 0, 0), (0, 1, 0, 50, 1), (0, 2, 0, 51, 1), (0, 1, 2, 60, 2), (1, 0, 0, 50, 0), (1, 3, 0, 90, 1)],
        4,
    )
    split = next_basket(seq, 0.3, 0.2)
    assert split.test.position.tolist() == [1, 4, 5]
    assert live_schedule(seq, split.test, split.train_end) == [
        ("query", 0),
        ("events", 1, 3),
        ("query", 1),
        ("events", 4, 5),
        ("events", 3, 4),
        ("query", 2),
        ("events", 5, 6),
    ]


def test_a_query_about_what_is_known_already_is_refused(world):
    seq = world(0)
    split = next_basket(seq, 0.7, 0.4)
    with pytest.raises(ValueError, match="yet to make"):
        live_schedule(seq, split.test, seq.offsets[1:])


@pytest.mark.parametrize("seed", SEEDS)
def test_no_baseline_changes_its_answer_when_the_future_changes(world, seed):
    seq = world(seed)
    split = next_basket(seq, 0.7, 0.4)
    before = replay(seq, split.test, baselines(), known=split.train_end, k=5)
    middle = len(split.test) // 2
    moment = int(split.test.as_of[middle])
    order = global_order(seq)
    future = order[order.tolist().index(int(split.test.position[middle])) :]
    item = seq.item.copy()
    rng = np.random.default_rng(seed)
    # Everything from the basket in question on becomes something else, also in what was bought and what was cancelled.
    item[future] = rng.integers(0, seq.items, len(future))
    kind = seq.type.copy()
    kind[future] = rng.integers(0, 3, len(future))
    changed = dataclasses.replace(seq, item=item, type=kind)
    assert clock(seq)[future].min() >= moment
    after = replay(changed, split.test, baselines(), known=split.train_end, k=5)
    for name, lists in before.items():
        np.testing.assert_array_equal(lists[: middle + 1], after[name][: middle + 1], err_msg=name)


@pytest.mark.parametrize("seed", SEEDS)
def test_following_events_live_equals_fitting_on_them(world, seed):
    seq = world(seed, late=True)
    split = next_basket(seq, 0.7, 0.4)
    last = len(split.test) - 1
    live, fitted = baselines(), baselines()
    nothing = seq.offsets[:-1]
    for baseline in live:
        baseline.fit(seq, nothing)
    for step in live_schedule(seq, split.test, nothing):
        if step[0] == "events":
            for baseline in live:
                baseline.observe(step[1], step[2])
    known = nothing.copy()
    for step in live_schedule(seq, split.test, nothing):
        if step[0] == "events":
            known[seq.user[step[1]]] = step[2]
    for baseline in fitted:
        baseline.fit(seq, known)
    user, position, as_of = int(split.test.user[last]), int(split.test.position[last]), int(split.test.as_of[last])
    for one, other in zip(live, fitted, strict=True):
        np.testing.assert_allclose(one.score(user, position, as_of), other.score(user, position, as_of), rtol=1e-9)


def test_frozen_baselines_learn_nothing_from_other_users_later_events(sequences):
    # Item 3 is bought by user 1 alone, after training and before user 0 asks.
    seq = sequences([(0, 0, 0, 0, 0), (0, 1, 0, 90, 1), (1, 0, 0, 0, 0)] + [(1, 3, 0, 50 + n, 1 + n) for n in range(3)], 4)
    split = next_basket(seq, 0.9, 0.3)
    lists = {
        live: replay(seq, split.test, [Popularity()], known=split.train_end, k=1, live=live)["popularity"].tolist()
        for live in (True, False)
    }
    assert lists == {True: [[3]], False: [[0]]}


def test_seen_items_leave_a_short_list(sequences):
    seq = sequences([(0, item, 0, item * 10, item) for item in range(3)], 4)
    split = by_time(seq, 0.9, 0.4)
    ranked = replay(seq, split.test, [Popularity()], known=split.train_end, k=4, filter_seen=True)["popularity"]
    assert ranked.tolist() == [[2, 3, -1, -1]]


def test_ties_are_broken_by_the_lower_row_also_at_the_edge():
    assert top_k(np.array([1.0, 2.0, 1.0, 2.0, 1.0, -np.inf]), 4).tolist() == [1, 3, 0, 2]
    assert top_k(np.array([1.0, -np.inf, 1.0]), 5).tolist() == [0, 2]
    assert top_k(np.array([-np.inf, -np.inf, 0.0]), 2).tolist() == [2]
