"""The memories that training reads out of a table are those that the net's own steps would have made."""

import numpy as np
import pytest
import torch
from random_world import build, random_world

from model import memory
from model.data.sequences import Queries
from model.data.splits import select
from model.inputs import Inputs
from model.memory import fold_memories


def none_asked():
    return Queries(*(np.zeros(0, kind) for kind in (np.int32, np.int64, np.int64)), np.zeros(1, np.int64), np.zeros(0, np.int32))


@pytest.mark.parametrize("seed", range(4))
def test_memories_are_the_slots_of_the_stepped_state_at_every_moment(net, every_moment, seed):
    seq = random_world(seed, users=6, late=True)
    queries = every_moment(seq)
    memories = fold_memories(net, seq, queries)
    events = Inputs.of(seq).events(torch.arange(len(seq.item))[None], torch.zeros(12, 8))
    at = {int(position): q for q, position in enumerate(queries.position)}
    overflowed = 0
    for user in range(seq.users):
        state = net.initial_state(torch.zeros(1, 0, dtype=torch.int64))
        for row in range(int(seq.offsets[user]), int(seq.offsets[user + 1])):
            q = at[row]
            slots, items = memories.at(torch.tensor([q]))
            found = {int(key): place for place, key in enumerate(slots.key[0]) if key}
            expected = {int(key): place for place, key in enumerate(state["repeat_key"][0]) if key}
            assert found.keys() == expected.keys()
            for key, place in expected.items():
                for name, part in slots._asdict().items():
                    assert torch.allclose(part[0, found[key]], state[f"repeat_{name}"][0, place], rtol=1e-6), name
                assert int(items[0, found[key]]) == (key - 1 if key <= 12 else -1)
            assert int(memories.number[q]) == int(state["count"])
            assert int(memories.clock[q]) == int(state["clock"])
            assert int(memories.visit_number[q]) == int(state["visit"])
            assert torch.allclose(memories.visits[q], state["visits"][0], rtol=1e-5)
            overflowed += len(expected) == net.config.repeats
            state = net.step(events.along(row), state)
    assert overflowed  # else nothing was ever given up


@pytest.mark.parametrize("ended", [False, True])
def test_a_long_life_taken_in_blocks_is_what_its_single_steps_leave(net, every_moment, monkeypatch, ended):
    rng = np.random.default_rng(ended)
    day, events = 86_400_000, []
    for user, length in enumerate((700, 431, 300, 9)):
        now = 0
        for row in range(length):
            now += int(rng.integers(-2, 4)) * day  # late events among them
            events.append((user, int(rng.integers(-1, 12)), int(rng.choice(3, p=[0.7, 0.15, 0.15])), now, row))
    seq = build(events, 12)
    every = every_moment(seq)
    # Asked now and then, never in the first hundred; `ended`: one life goes on when another is over in the midst of a block.
    depth = every.position - seq.offsets[every.user]
    queries = select(every, (depth % 97 == 5) & (depth > 100) & ((every.user != 1) | (not ended) | (depth < 300)))
    taken = []
    blocks = memory.remember_all
    monkeypatch.setattr(memory, "remember_all", lambda *given: taken.append(given[1].shape) or blocks(*given))
    found = fold_memories(net, seq, queries)
    assert sum(shape[1] for shape in taken) > 500
    assert max(shape[0] for shape in taken) > 1
    monkeypatch.setattr(memory, "FEW", 0)
    taken.clear()
    expected = fold_memories(net, seq, queries)
    assert not taken
    for name in ("offsets", "key", "item", "time", "seen", "visit", "number", "clock", "visit_number"):
        assert torch.equal(getattr(found, name), getattr(expected, name)), name
    for name in ("count", "visits"):
        assert torch.allclose(getattr(found, name), getattr(expected, name), rtol=1e-5, atol=1e-6), name


def test_queries_of_one_batch_are_padded_with_empty_slots(net, every_moment):
    seq = random_world(0)
    queries = every_moment(seq)
    memories = fold_memories(net, seq, queries)
    together, items = memories.at(torch.arange(len(queries)))
    for q in range(len(queries)):
        alone, rows = memories.at(torch.tensor([q]))
        size = int(memories.offsets[q + 1] - memories.offsets[q])
        for one, all_of_them in zip((*alone, rows), (*together, items), strict=True):
            assert torch.equal(one[0, :size], all_of_them[q, :size])
        assert (together.key[q, size:] == 0).all()
        assert (together.count[q, size:] == 0).all()
        assert (items[q, size:] == -1).all()


def test_nobody_asking_gives_no_memories(net):
    memories = fold_memories(net, random_world(1), none_asked())
    assert memories.offsets.tolist() == [0]
    assert len(memories.key) == 0
