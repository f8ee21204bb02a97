"""Lanes: every user whole, every question once, every state carried."""

from collections import defaultdict

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from random_world import build, random_world

from model.data.splits import select
from model.inputs import Inputs
from model.lanes import lane_batches
from model.predict import Carried

worlds = st.tuples(st.integers(0, 50), st.integers(1, 9), st.integers(2, 9), st.booleans(), st.floats(0.1, 1))
examples = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def drawn(every_moment, world):
    seed, lanes, length, shuffled, share = world
    seq = random_world(seed, users=7)
    queries = every_moment(seq)
    queries = select(queries, np.random.default_rng(seed).random(len(queries)) < share)
    rng = np.random.default_rng(seed) if shuffled else None
    return seq, queries, list(lane_batches(seq.offsets, seq.offsets[1:], queries, lanes, length, rng))


@given(worlds)
@examples
def test_every_query_is_asked_once_right_after_the_event_before_it(every_moment, world):
    seq, queries, batches = drawn(every_moment, world)
    asked = []
    for batch in batches:
        assert ((batch.positions >= 0) == (batch.query >= 0)).all()
        for lane, column in zip(*np.nonzero(batch.query >= 0), strict=True):
            q, position = int(batch.query[lane, column]), int(batch.positions[lane, column])
            asked.append(q)
            assert batch.user[lane] == queries.user[q]
            assert batch.valid[lane, :position].all()
            before = batch.rows[lane, position - 1] if position else seq.offsets[queries.user[q]] - 1
            assert before == queries.position[q] - 1
    assert sorted(asked) == list(range(len(queries)))


@given(worlds)
@examples
def test_each_user_is_read_once_from_the_first_event_to_the_last_query_without_a_gap(every_moment, world):
    seq, queries, batches = drawn(every_moment, world)
    rows, fresh, last, ended = defaultdict(list), defaultdict(list), defaultdict(list), set()
    for batch in batches:
        assert len(set(batch.user.tolist())) == len(batch.user)
        assert batch.valid.size <= world[1] * world[2]
        for lane, user in enumerate(batch.user.tolist()):
            count = int(batch.valid[lane].sum())
            assert batch.valid[lane, :count].all()
            assert user not in ended, "a chunk follows padding"
            # Width is the longest row of the batch, so what is shorter has ended.
            if count < batch.valid.shape[1]:
                ended.add(user)
            rows[user] += batch.rows[lane, :count].tolist()
            fresh[user].append(bool(batch.fresh[lane]))
            last[user].append(bool(batch.last[lane]))
    assert rows.keys() == set(queries.user.tolist())
    for user, read in rows.items():
        assert read == list(range(int(seq.offsets[user]), int(queries.position[queries.user == user].max())))
        assert fresh[user] == [True] + [False] * (len(fresh[user]) - 1)
        assert last[user] == [False] * (len(last[user]) - 1) + [True]


def test_in_training_hardly_anything_is_padding_and_batches_ask_alike(every_moment):
    rng = np.random.default_rng(0)
    lengths = np.minimum(400, rng.pareto(1.2, 600) * 30 + 5).astype(int)
    seq = build([(user, event % 12, 0, event * 1000, event) for user, n in enumerate(lengths) for event in range(n)], items=12)
    batches = list(lane_batches(seq.offsets, seq.offsets[1:], every_moment(seq), 16, 100, rng))
    assert sum(batch.valid.sum() for batch in batches) > 0.75 * sum(batch.valid.size for batch in batches)
    asked = [batch.asked for batch in batches[:-2]]  # the last ones are what is left
    assert min(asked) > 0.2 * max(asked)
    assert all(batch.valid.size <= 1600 for batch in batches)


def test_nobody_is_left_alone_for_half_of_an_epoch(every_moment):
    """One history as long as all others together: alone at the end of an epoch, it undid what had been learned (Retail)."""
    lengths = [3000, *[60] * 50]
    seq = build([(user, event % 12, 0, event * 1000, event) for user, n in enumerate(lengths) for event in range(n)], items=12)
    batches = list(lane_batches(seq.offsets, seq.offsets[1:], every_moment(seq), 8, 50, np.random.default_rng(0)))
    assert all(0 in batch.user for batch in batches)
    assert len(batches) < 3000 / 50 * 1.5


def test_no_row_after_the_end_that_is_given_is_read(every_moment):
    seq = random_world(2)
    queries = every_moment(seq)
    end = seq.offsets[:-1] + np.diff(seq.offsets) // 2
    queries = select(queries, queries.position <= end[queries.user])
    for batch in lane_batches(seq.offsets, end, queries, 3, 4, np.random.default_rng(0)):
        assert (batch.rows < end[batch.user][:, None])[batch.valid].all()


def test_cuts_fall_elsewhere_in_every_epoch_and_at_full_length_in_evaluation(every_moment):
    seq = build([(0, event % 12, 0, event * 1000, event) for event in range(40)], items=12)
    queries = every_moment(seq)

    def cuts(rng, length=6):
        return [tuple(batch.valid.sum(1)) for batch in lane_batches(seq.offsets, seq.offsets[1:], queries, 1, length, rng)]

    rng = np.random.default_rng(0)
    first, second = cuts(rng), cuts(rng)
    assert first != second
    assert all(sum(sizes) <= 6 for sizes in first + second)
    assert cuts(None) == [(6,)] * 6 + [(3,)]  # nobody asks after the last event


@pytest.mark.parametrize("shuffled", [True, False])
def test_a_lane_enters_a_chunk_with_the_fold_of_everything_before_it(net, every_moment, shuffled):
    seq = random_world(4, users=6, late=True)
    inputs, queries = Inputs.of(seq), every_moment(seq)
    matrix = torch.randn(12, 8, generator=torch.Generator().manual_seed(0))
    carried, continued = Carried(), 0
    nothing = torch.zeros(0, dtype=torch.int64)
    rng = np.random.default_rng(0) if shuffled else None
    for batch in lane_batches(seq.offsets, seq.offsets[1:], queries, 3, 5, rng):
        state = carried.enter(net, inputs, batch)
        for lane, user in enumerate(batch.user.tolist()):
            rows = torch.arange(int(seq.offsets[user]), int(batch.rows[lane, 0]) if batch.valid[lane, 0] else 0)[None]
            if batch.fresh[lane] or not rows.numel():
                assert int(state["count"][lane]) == 0
                continue
            continued += 1
            start = net.initial_state(torch.zeros(1, 0))
            whole = net.encode(inputs.events(rows, matrix), torch.ones_like(rows, dtype=torch.bool), start)
            for name in ("h", "c", "last", "ring", "ring_time", "acc", "acc_weight", "clock", "count"):
                assert torch.allclose(state[name][lane], whole[name][0], atol=1e-5), name
        events = inputs.events(torch.as_tensor(batch.rows), matrix)
        none = torch.full((len(batch.user), 1), -1)
        _, state = net(events, torch.as_tensor(batch.valid), state, none, nothing, nothing)
        carried.leave(batch, state)
    assert continued > 5
