"""The own-repeat memory: which slot an event touches and what stands there afterwards."""

import pytest
import torch

from model.nets.repeats import Moment, RepeatScorer, RepeatState, remember, remember_all, seconds

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


def test_a_sequence_at_once_is_remembered_as_event_by_event(scorer):
    generator = torch.Generator().manual_seed(0)
    users, events = 4, 40
    key = torch.randint(0, 9, (users, events), generator=generator)
    add = scorer.additions(torch.randint(-1, 2, (users, events), generator=generator).float())
    now = torch.randint(0, 300, (users, events), generator=generator).cumsum(1)
    number = torch.arange(1, events + 1).expand(users, -1)
    at_once = remember_all(empty(5, users), key, add, Moment(now, number, number // 2), scorer.rates)
    state = empty(5, users)
    for t in range(events):
        one = slice(t, t + 1)
        state = remember(state, key[:, one], add[:, one], Moment(now[:, one], number[:, one], number[:, one] // 2), scorer.rates)
    assert all(torch.equal(a, b) for a, b in zip(at_once, state, strict=True))
    assert (state.key != 0).all()


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
