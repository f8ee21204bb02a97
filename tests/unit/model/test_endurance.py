"""What a long life does to a state: measured on users with long histories, and on one who never stops."""

import numpy as np
import pytest
import torch
from random_world import random_world
from tiny_run import TinyRun

from model import endurance as module
from model.assess import load_run
from model.data.sequences import Sequences
from model.endurance import endurance
from model.inputs import Inputs
from model.memory import fold_memories
from model.nets import Longwave
from model.predict import read_out


@pytest.fixture
def small(monkeypatch):
    """Histories of tens of events are long ones, and a life is short; many of them, since sums that fade within an event or two
    are as large as their last items are."""
    monkeypatch.setattr(module, "LANES", 64)
    monkeypatch.setattr(module, "LAST", 20)
    monkeypatch.setattr(module, "LONG", 40)
    monkeypatch.setattr(module, "EVENTS", 2_000)


def test_folding_from_a_row_on_is_folding_what_is_left_of_the_sequence(net: Longwave, every_moment):
    world = random_world(seed=3)
    begin = world.offsets[:-1] + np.random.default_rng(0).integers(0, np.diff(world.offsets) + 1)
    kept = np.concatenate([np.arange(b, e) for b, e in zip(begin, world.offsets[1:], strict=True)])
    cut = _only(world, kept)
    asked, whole = every_moment(cut), every_moment(cut)
    whole.position[:] = kept[asked.position]
    one = read_out(net, Inputs.of(cut), cut, asked).readout
    other = read_out(net, Inputs.of(world), world, whole, begin=begin).readout
    for name, expected, found in zip(one._fields, one, other, strict=True):
        torch.testing.assert_close(found, expected, msg=name)
    expected, found = vars(fold_memories(net, cut, asked)), vars(fold_memories(net, world, whole, begin))
    for name, tensor in expected.items():
        if name != "item":  # rows of items: those that only the longer world has are known there
            torch.testing.assert_close(found[name], tensor, msg=name)


def _only(seq: Sequences, rows: np.ndarray) -> Sequences:
    owner = seq.user[rows]
    offsets = np.concatenate([[0], np.cumsum(np.bincount(owner, minlength=seq.users))]).astype(np.int64)
    whole = {name: value for name, value in vars(seq).items() if isinstance(value, np.ndarray) and len(value) == len(seq.item)}
    return type(seq)(**vars(seq) | {name: value[rows] for name, value in whole.items()} | {"offsets": offsets})


def test_long_histories_are_asked_whole_and_by_their_last_events(tiny_run: TinyRun, small):
    found = endurance(*load_run(tiny_run.run, tiny_run.data))
    assert found.users > 10
    assert found.whole is not None
    assert found.last is not None
    assert found.difference is not None
    assert found.difference.mean == pytest.approx(found.whole - found.last)
    assert found.whole != found.last
    assert found.growth == pytest.approx(found.norm_late / found.norm_early)
    assert found.largest[1] < 1.5


def test_the_last_events_are_those_before_each_question(tiny_run: TinyRun, small, monkeypatch):
    """Of two questions of a user, each is asked from its own last events on."""
    folded = []
    ask = module._ndcg

    def follow(checkpoint, task, queries, begin):
        folded.append((queries, begin))
        return ask(checkpoint, task, queries, begin)

    monkeypatch.setattr(module, "_ndcg", follow)
    checkpoint, task = load_run(tiny_run.run, tiny_run.data)
    found = module.long_histories(checkpoint, task)
    (whole, start), *rounds = folded
    assert (start == task.seq.offsets[:-1]).all()
    assert len(whole) == found.queries == sum(len(queries) for queries, _ in rounds)
    assert 1 < len(rounds) <= module.MOST
    assert np.bincount(whole.user).max() == len(rounds)
    for queries, begin in rounds:
        assert len(np.unique(queries.user)) == len(queries)
        assert (queries.position - begin[queries.user] == 20).all()
    asked = {(user, position) for user, position in zip(whole.user, whole.position, strict=True)}
    valid = task.split.valid
    for user in np.unique(whole.user):  # the last one of each is among them
        assert (user, valid.position[valid.user == user].max()) in asked


def test_without_long_histories_nobody_is_asked(tiny_run: TinyRun, small, monkeypatch):
    monkeypatch.setattr(module, "LONG", 100_000)
    found = endurance(*load_run(tiny_run.run, tiny_run.data))
    assert (found.users, found.queries, found.whole, found.last, found.difference) == (0, 0, None, None, None)


def test_a_state_that_grows_with_every_event_is_found_out(tiny_run: TinyRun, small):
    checkpoint, task = load_run(tiny_run.run, tiny_run.data)
    lstm = checkpoint.net.recurrence.blocks[0].lstm
    with torch.no_grad():
        lstm.bias_ih_l0 += 100.0  # every gate open: the cell counts events
    found = endurance(checkpoint, task)
    assert found.largest[0] == "c"
    assert found.largest[1] > 10
    assert found.growth > 1.5
