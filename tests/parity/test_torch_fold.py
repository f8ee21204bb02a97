"""I1 within PyTorch: a sequence at once, in pieces, and event by event are one and the same fold, with trained weights."""

import pytest
import torch
from folds import assert_same_state, initial, some_events, step_through, user
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from model.nets import EventBatch

DAY_MS = 86_400_000
few = settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def in_double(events):
    return EventBatch(*(part.double() if part is not None and part.is_floating_point() else part for part in events))


def ask(states, t):
    """The moments at which the tests ask: a day after, a moment before and long after the user's clock."""
    clock = states[t]["clock"][:, 0]
    return clock + (DAY_MS, -5_000, 400 * DAY_MS)[t % 3]


def assert_same_readout(one, other, tolerance):
    for name, tensor in one._asdict().items():
        apart = float((tensor - getattr(other, name)).abs().max())
        assert apart <= tolerance, f"{name}: {apart:.2e} apart"


@pytest.mark.parametrize(("double", "tolerance"), [(True, 1e-9), (False, 1e-5)])
def test_a_sequence_read_out_at_every_position_equals_the_folded_steps(trained, double, tolerance):
    users, length = 3, 70
    net, matrix, _ = trained.double() if double else trained
    events = some_events(trained.net, users, length, trained.matrix, grain=double)
    events = in_double(events) if double else events
    start = initial(net, users, matrix.dtype)
    states = step_through(net, events, start)
    positions = torch.arange(length + 1).expand(users, -1)
    as_of = torch.stack([ask(states, t) for t in range(length + 1)], 1)
    platform = positions % (net.config.platforms + 1)
    valid = torch.ones(users, length, dtype=torch.bool)
    readout, after = net(events, valid, start, positions, as_of.flatten(), platform.flatten())
    for t in range(length + 1):
        expected, _ = net.interest(states[t], as_of[:, t], platform[:, t])
        rows = torch.arange(users) * (length + 1) + t
        assert_same_readout(type(readout)(*(field[rows] for field in readout)), expected, tolerance)
    assert_same_state(after, {name: states[-1][name] for name in after}, tolerance)
    assert_same_state(net.encode(events, valid, start), states[-1], tolerance)


def test_a_state_carried_into_a_second_chunk_reads_out_like_the_steps(trained):
    net = trained.net
    events = some_events(net, 2, 50, trained.matrix, seed=3)
    states = step_through(net, events, initial(net, 2))
    nothing = torch.zeros(0, dtype=torch.int64)
    _, carried = net(
        events.along(slice(0, 17)), torch.ones(2, 17, dtype=torch.bool), states[0], torch.full((2, 1), -1), nothing, nothing
    )
    positions = torch.arange(34).expand(2, -1)
    as_of = torch.stack([ask(states, t) for t in range(17, 51)], 1)
    valid = torch.ones(2, 33, dtype=torch.bool)
    readout, _ = net(events.along(slice(17, 50)), valid, carried, positions, as_of.flatten(), torch.zeros(68, dtype=torch.int64))
    expected = [net.interest(states[17 + t], as_of[:, t], torch.zeros(2, dtype=torch.int64))[0] for t in range(34)]
    for t in range(34):
        rows = torch.tensor([t, 34 + t])
        assert_same_readout(type(readout)(*(field[rows] for field in readout)), expected[t], 1e-5)


@given(st.data())
@few
def test_encoding_in_any_pieces_batches_and_padding_gives_the_state_of_the_steps(trained, data):
    net = trained.net
    lengths = data.draw(st.lists(st.integers(0, 40), min_size=1, max_size=4), "events per user")
    seed = data.draw(st.integers(0, 3), "seed")
    events = some_events(net, len(lengths), 40, trained.matrix, seed)
    start = initial(net, len(lengths))
    state, done = start, 0
    while done < max(lengths, default=0):
        piece = data.draw(st.integers(1, 40), "piece")
        padding = data.draw(st.integers(0, 3), "padding")
        left = torch.tensor([max(0, min(piece, n - done)) for n in lengths])
        width = int(left.max()) + padding
        part = events.along(torch.arange(done, done + width).clamp(max=39))
        state = net.encode(part, torch.arange(width) < left[:, None], state)
        done += piece
    for row, length in enumerate(lengths):
        alone = {name: tensor[row : row + 1] for name, tensor in start.items()}
        expected = step_through(net, user(events, row).along(slice(0, length)), alone)[-1]
        assert_same_state({name: tensor[row : row + 1] for name, tensor in state.items()}, expected, 1e-5)


def test_a_changed_future_event_changes_nothing_before_it_and_everything_after(trained):
    net, length, changed = trained.net, 30, 12
    events = some_events(net, 2, length, trained.matrix)
    other = some_events(net, 2, length, trained.matrix, seed=9)
    parts = zip(events, other, strict=True)
    mixed = EventBatch(*(torch.cat([a[:, :changed], b[:, changed:]], 1) for a, b in parts))
    positions = torch.arange(length + 1).expand(2, -1)
    as_of = torch.full((2 * (length + 1),), 1_400_000_000_000)
    valid, start = torch.ones(2, length, dtype=torch.bool), initial(net, 2)
    before, after = (
        net(batch, valid, start, positions, as_of, torch.zeros_like(as_of))[0].interests.view(2, length + 1, -1)
        for batch in (events, mixed)
    )
    # Products over a whole chunk may be summed in another order: float noise, no more.
    assert torch.allclose(before[:, : changed + 1], after[:, : changed + 1], atol=1e-6)
    assert ((before - after)[:, changed + 1 :].abs().amax(2) > 1e-3).all()


def test_padding_holds_nothing_that_reaches_a_readout_or_a_state(trained):
    net = trained.net
    events = some_events(net, 2, 20, trained.matrix)
    garbage = some_events(net, 2, 20, trained.matrix, seed=5)
    valid = torch.arange(20) < torch.tensor([[20], [11]])
    parts = zip(events, garbage, strict=True)
    spoiled = EventBatch(*(torch.where(valid.view(2, 20, *[1] * (a.dim() - 2)), a, b) for a, b in parts))
    assert not torch.equal(spoiled.time, events.time)
    start = initial(net, 2)
    assert_same_state(net.encode(events, valid, start), net.encode(spoiled, valid, start), 0.0)
    positions = torch.tensor([[20, 4], [11, 0]])
    as_of = torch.full((4,), 1_400_000_000_000)
    one, other = (net(batch, valid, start, positions, as_of, torch.zeros(4, dtype=torch.int64))[0] for batch in (events, spoiled))
    assert_same_readout(one, other, 1e-6)


def test_a_late_event_counts_as_now(trained):
    net = trained.net
    state = step_through(net, some_events(net, 1, 15, trained.matrix), initial(net, 1))[-1]
    event = some_events(net, 1, 1, trained.matrix, seed=7).along(0)
    late = net.step(event._replace(time=state["clock"][:, 0] - 90 * DAY_MS), state)
    now = net.step(event._replace(time=state["clock"][:, 0]), state)
    assert torch.equal(late["clock"], state["clock"])
    assert_same_state(late, now, 0.0)


def test_a_user_without_events_keeps_the_initial_state_and_gets_an_answer(trained):
    net = trained.net
    start = initial(net, 2)
    events = some_events(net, 2, 6, trained.matrix)
    after = net.encode(events, torch.zeros(2, 6, dtype=torch.bool), start)
    assert_same_state(after, start, 0.0)
    readout, attention = net.interest(after, torch.full((2,), 1_400_000_000_000), torch.zeros(2, dtype=torch.int64))
    assert all(torch.isfinite(field).all() for field in readout)
    assert (attention == 0).all()
    scores = net.repeat_scores(after, readout.context, torch.full((2,), 1_400_000_000_000))
    assert (scores == 0).all()


def test_an_unknown_item_is_known_as_such_whatever_vector_comes_with_it(trained):
    net = trained.net
    state = step_through(net, some_events(net, 1, 5, trained.matrix), initial(net, 1))[-1]
    event = some_events(net, 1, 1, trained.matrix).along(0)
    unknown = event._replace(item_known=torch.tensor([False]), item_key=torch.tensor([77]))
    garbage = unknown._replace(item_vector=torch.full_like(event.item_vector, 1e3))
    absent = unknown._replace(item_key=torch.tensor([0]))
    assert_same_state(net.step(unknown, state), net.step(garbage, state), 0.0)
    assert not torch.equal(net.step(unknown, state)["last"], net.step(absent, state)["last"])
    assert 77 in net.step(unknown, state)["repeat_key"]
    assert torch.equal(net.step(absent, state)["repeat_key"], state["repeat_key"])


def test_a_missing_number_is_no_number(trained):
    net = trained.net
    state = initial(net, 1)
    event = some_events(net, 1, 1, trained.matrix).along(0)
    missing, zero = (net.step(event._replace(numbers=torch.full((1, 3), x)), state)["last"] for x in (torch.nan, 0.0))
    assert torch.isfinite(missing).all()
    assert not torch.equal(missing, zero)
