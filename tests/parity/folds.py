"""The two forms of the fold, side by side, and events that reach every corner of it."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from model.export.golden import random_events
from model.nets import EventBatch, Longwave, State

GRAIN_MS = 65_536_000
"""Multiples of it pass through the nets' float32 seconds without rounding, so that float64 can be compared tightly."""


def some_events(net: Longwave, users: int, events: int, item_matrix: Tensor, seed: int = 0, grain: bool = False) -> EventBatch:
    """Known, unknown and absent items, missing numbers, queries, ties, pauses and late events; (users, events, ...)."""
    batch = random_events(net, users, events, item_matrix, seed)
    if grain:
        steps = np.random.default_rng(seed).choice([0, 0, 1, 2, 30, -3], (users, events)).cumsum(1)
        batch = batch._replace(time=torch.as_tensor(1_300_000_000_000 + steps * GRAIN_MS))
    return batch


def user(batch: EventBatch, row: int) -> EventBatch:
    """One user of a batch, as a batch."""
    return EventBatch(*(None if part is None else part[row : row + 1] for part in batch))


def initial(net: Longwave, users: int, dtype: torch.dtype = torch.float32) -> State:
    """Initial states of users with all kinds of attributes."""
    sizes = net.config.attribute_sizes
    rows = [[user % (size + 1) for size in sizes] for user in range(users)]
    state = net.initial_state(torch.tensor(rows, dtype=torch.int64).view(users, len(sizes)))
    return {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in state.items()}


def step_through(net: Longwave, events: EventBatch, state: State) -> list[State]:
    """The states before the first event and after each, by `step` alone."""
    states = [state]
    for t in range(events.time.shape[1]):
        states.append(net.step(events.along(t), states[-1]))
    return states


def assert_same_state(one: State, other: State, tolerance: float) -> None:
    """Whole numbers exactly, real ones to the tolerance, measured against values beyond 1 (decayed sums)."""
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        if tensor.is_floating_point():
            apart = (tensor - other[name]).abs() / tensor.abs().clamp(min=1)
            assert float(apart.max()) <= tolerance, f"{name}: {float(apart.max()):.2e} apart"
        else:
            assert torch.equal(tensor, other[name]), name
