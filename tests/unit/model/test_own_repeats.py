"""The own-repeat memory: which slot an event touches and what stands there afterwards."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model.nets.block import BLOCK
from model.nets.repeats import RepeatScorer, remember, remember_all, seconds
from model.nets.slots import Moment, RepeatState

HALF_LIVES_S = (100.0, 1000.0)


@pytest.fixture
def scorer():
    torch.manual_seed(0)
    return RepeatScorer(HALF_LIVES_S, width=4, hidden=4).requires_grad_(False)


def empty(slots, users=1):
    kinds = {"key": torch.int64, "count": torch.float32}
    shape = {"count": (users, slots, len(HALF_LIVES_S) + 1)}
    return RepeatState(*(torch.zeros(shape.get(f, (users, slots)), dtype=kinds.get(f, torch.int32)) for f in RepeatState._fields))


def moment(now_s, event, visit=None):
    return Moment(*(torch.tensor([[n]]) for n in (now_s, event, event if visit is None else visit)))


def buy(scorer, state, key, now_s, event, weight=1.0, visit=None):
    return remember(
        state, torch.tensor([[key]]), scorer.additions(torch.tensor([[weight]])), moment(now_s, event, visit), scorer.rates
    )


def slot_of(state, key):
    return state.key[0].tolist().index(key)


def test_a_new_item_takes_an_empty_slot_and_notes_when_it_was_had(scorer):
    state = buy(scorer, empty(3), 7, 50, 1)
    state = buy(scorer, state, 8, 60, 2, visit=2)
    assert sorted(state.key[0].tolist()) == [0, 7, 8]
    slot = slot_of(state, 8)
    assert state.count[0, slot].tolist() == [1, 1, 0]
    assert [int(part[0, slot]) for part in (state.time, state.seen, state.visit)] == [60, 2, 2]


def test_an_item_had_again_keeps_its_slot_and_its_count_fades_by_each_half_life(scorer):
    state = buy(scorer, empty(3), 7, 50, 1)
    again = buy(scorer, state, 7, 150, 2, weight=0.5)
    slot = slot_of(again, 7)
    assert again.key[0].tolist().count(7) == 1
    assert again.count[0, slot].tolist() == pytest.approx([0.5 + 0.5, 2**-0.1 + 0.5, 0])


def test_the_least_recently_had_item_is_given_up_however_often_it_was_had(scorer):
    state = empty(3)
    for event, key in enumerate((1, 1, 1, 2, 3, 2), start=1):
        state = buy(scorer, state, key, event, event)
    state = buy(scorer, state, 4, 7, 7)
    assert sorted(state.key[0].tolist()) == [2, 3, 4]
    # What was given up begins anew: nothing is left of its three times, nor of what stood in its new slot.
    state = buy(scorer, state, 1, 8, 8)
    assert sorted(state.key[0].tolist()) == [1, 2, 4]
    assert state.count[0, slot_of(state, 1)].tolist() == [1, 1, 0]


def test_items_had_at_one_moment_are_given_up_in_the_order_of_their_events(scorer):
    state = empty(2)
    for event, key in enumerate((1, 2, 1, 3), start=1):
        state = buy(scorer, state, key, 100, event, visit=1)
    assert sorted(state.key[0].tolist()) == [1, 3]


def test_a_cancellation_counts_in_a_channel_of_its_own(scorer):
    state = buy(scorer, buy(scorer, empty(2), 7, 0, 1), 7, 100, 2, weight=-2.0)
    assert state.count[0, slot_of(state, 7)].tolist() == pytest.approx([0.5, 2**-0.1, 2])
    # It fades at the longest half-life.
    later = buy(scorer, state, 7, 1100, 3, weight=0.0)
    assert float(later.count[0, slot_of(later, 7), -1]) == pytest.approx(1)


def test_an_event_without_an_item_leaves_the_memory_as_it_is(scorer):
    state = buy(scorer, buy(scorer, empty(2), 7, 0, 1), 8, 5, 2)
    after = buy(scorer, state, 0, 500, 3)
    assert all(torch.equal(a, b) for a, b in zip(state, after, strict=True))


def test_nothing_grows_when_the_clock_stands_behind_a_slot(scorer):
    state = buy(scorer, empty(2), 7, 1000, 1)
    assert buy(scorer, state, 7, 0, 2, weight=0.0).count[0, slot_of(state, 7)].tolist() == [1, 1, 0]


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_a_sequence_at_once_is_remembered_as_event_by_event(data):
    # More items than slots and fewer, events without item, blocks that are full and that are not, and a memory carried over.
    users, slots, items = (data.draw(st.integers(*bounds)) for bounds in ((1, 3), (1, 9), (1, 20)))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**32)))
    rates = torch.tensor([1e-2, 1e-3, 1e-3])
    at_once = one_by_one = empty(slots, users)
    now, number = torch.zeros(users, 1, dtype=torch.int64), 0
    for events in data.draw(st.lists(st.sampled_from([1, 2, 17, BLOCK - 1, BLOCK, 2 * BLOCK + 3]), min_size=1, max_size=3)):
        key = torch.randint(0, items + 1, (users, events), generator=generator)
        key = torch.where(key > 0, key + 2**60, key)  # such keys differ in what a float would not hold
        add = torch.rand(users, events, 3, generator=generator)
        times = now + torch.randint(0, 100, (users, events), generator=generator).cumsum(1)
        numbers = torch.arange(number + 1, number + events + 1).expand(users, -1)
        now, number = times[:, -1:], number + events
        at_once = remember_all(at_once, key, add, Moment(times, numbers, numbers // 2), rates)
        for t in range(events):
            one = slice(t, t + 1)
            when = Moment(times[:, one], numbers[:, one], numbers[:, one] // 2)
            one_by_one = remember(one_by_one, key[:, one], add[:, one], when, rates)
        for name, part in at_once._asdict().items():
            if name == "count":
                assert torch.allclose(part, one_by_one.count, rtol=1e-5, atol=1e-6)
            else:
                assert torch.equal(part, getattr(one_by_one, name)), name


def test_an_empty_slot_scores_nothing_and_a_filled_one_does_not_depend_on_its_place(scorer):
    state = empty(3)
    for event, key in enumerate((5, 6), start=1):
        state = buy(scorer, state, key, event * 10, event)
    turned = RepeatState(*(part.flip(1) for part in state))
    visits, context = torch.ones(1, len(HALF_LIVES_S)), torch.randn(1, 4)
    asked = moment(400, 2)
    scores = scorer(state, visits, context, asked)
    assert (scores == 0).tolist() == [[False, False, True]]
    assert torch.allclose(scorer(turned, visits, context, asked).flip(1), scores)


@pytest.mark.parametrize(
    ("time_ms", "expected"), [(946_684_800_999, 0), (10**17, 2**31 - 1), (-(10**17), -(2**31) + 1), (946_684_801_000, 1)]
)
def test_seconds_count_from_2000_and_stay_within_32_bits(time_ms, expected):
    assert seconds(torch.tensor([time_ms])).tolist() == [expected]
