"""A small net, and questions at every moment of a world."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from model.data.sequences import Queries, Sequences
from model.nets import Longwave, ModelConfig

SMALL = {"width": 8, "heads": 2, "ring": 4, "ring_width": 4, "accumulator_width": 4, "repeats": 5, "repeat_hidden": 4}


@pytest.fixture
def net() -> Longwave:
    """Of 12 items and the three event types of the random worlds; its memory is smaller than its users' baskets."""
    torch.manual_seed(0)
    return Longwave(ModelConfig(items=12, event_types=3, type_weights=(1.0, 0.0, -1.0), **SMALL)).eval().requires_grad_(False)


@pytest.fixture
def every_moment() -> Callable[[Sequences], Queries]:
    """A query before each event of each user, in random order; each asks for item 0."""

    def make(seq: Sequences) -> Queries:
        order = np.random.default_rng(0).permutation(len(seq.item))
        return Queries(
            user=seq.user[order],
            position=order.astype(np.int64),
            as_of=seq.time[order] + 1,
            target_offsets=np.arange(len(order) + 1, dtype=np.int64),
            target=np.zeros(len(order), np.int32),
        )

    return make
