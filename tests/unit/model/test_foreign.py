"""Late in training some users begin with another's state."""

import dataclasses

import numpy as np
import pytest
import torch
from tiny_run import tiny_settings

from model.data.synthetic import synthetic_world
from model.foreign import Foreign
from model.predict import Carried
from model.task import make_task
from model.train import Trainer


@pytest.fixture(scope="module")
def task():
    return make_task(synthetic_world("tiny").dataset, tiny_settings().data)


def trainer(task, folder, **changes):
    settings = tiny_settings()
    return Trainer(task, dataclasses.replace(settings, train=dataclasses.replace(settings.train, lanes=2, **changes)), folder)


def test_a_fresh_user_begins_with_what_another_left_as_if_it_had_only_just_ended(task, tmp_path):
    run = trainer(task, tmp_path)
    run.carried = Foreign(1.0, np.random.default_rng(0))
    begun = 0
    for batch in run.batches(np.random.default_rng(0)):
        left = list(run.carried.left)
        state = run.carried.enter(run.net, run.inputs, batch)
        for lane in np.flatnonzero(batch.fresh & batch.valid[:, 0]) if left else []:
            (other,) = [each for each in left if torch.equal(each["h"], state["h"][lane])]
            assert not any(tensor.requires_grad for tensor in other.values())
            for name in set(other) - {"clock", "ring_time"}:
                assert torch.equal(state[name][lane], other[name]), name
            # Its ages are what they were, a second aside, at the moment of the user's first event.
            assert int(state["clock"][lane]) == int(run.inputs.time[batch.rows[lane, 0]])
            ages = [
                each["clock"] - each["ring_time"].to(torch.int64) * 1000
                for each in (other, {n: t[lane] for n, t in state.items()})
            ]
            assert (ages[0] - ages[1]).abs().max() <= 1000
            begun += 1
        own = Carried()
        own.state = run.carried.state
        kept = own.enter(run.net, run.inputs, batch)
        for lane in np.flatnonzero(~batch.fresh):  # who goes on goes on with their own
            assert all(torch.equal(state[name][lane], kept[name][lane]) for name in kept)
        with torch.no_grad():
            events = run.inputs.events(torch.as_tensor(batch.rows), run.net.item(None, None)[0])
            none, nothing = torch.full((len(batch.user), 1), -1), torch.zeros(0, dtype=torch.int64)
            _, after = run.net(events, torch.as_tensor(batch.valid), state, none, nothing, nothing)
        run.carried.leave(batch, after)
    assert begun > 5


def test_about_the_share_of_them_do_and_none_where_it_is_zero(task, tmp_path):
    run = trainer(task, tmp_path)
    first = next(run.batches(np.random.default_rng(0)))
    initial = Carried().enter(run.net, run.inputs, first)
    for share, low, high in ((0.0, 0.0, 0.0), (0.5, 0.3, 0.7), (1.0, 1.0, 1.0)):
        carried = Foreign(share, np.random.default_rng(0))
        carried.left.append({name: torch.ones_like(tensor[0]) for name, tensor in initial.items() if "repeat" not in name})
        states = [carried.enter(run.net, run.inputs, first)["h"] for _ in range(20)]
        others = torch.stack([(h == 1).flatten(1).all(1) for h in states]).float().mean()
        assert low <= float(others) <= high


@pytest.mark.parametrize(("foreign", "expected"), [(0.0, [Carried] * 8), (0.3, [Carried] * 6 + [Foreign] * 2)])
def test_it_is_so_in_the_last_quarter_of_the_epochs_alone(foreign, expected, task, tmp_path):
    run = trainer(task, tmp_path, epochs=8, foreign=foreign)
    found = []
    for run.epoch in range(8):
        run.begin_epoch()
        found.append(type(run.carried))
    assert found == expected


def test_a_run_with_it_differs_only_from_where_it_begins(task, tmp_path):
    own, foreign = (
        trainer(task, tmp_path / str(share), epochs=4, patience=4, foreign=share).run().history for share in (0.0, 0.5)
    )
    assert [each["loss"] for each in own[:3]] == [each["loss"] for each in foreign[:3]]
    assert own[3]["loss"] != foreign[3]["loss"]
