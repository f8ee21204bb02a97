"""Small worlds, and metric inputs written by hand."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from random_world import build, random_world

from model.data.sequences import Queries, Sequences


@pytest.fixture
def sequences() -> Callable[[list[tuple[int, int, int, int, int]], int], Sequences]:
    return build


@pytest.fixture
def world() -> Callable[..., Sequences]:
    return random_world


@pytest.fixture
def asked() -> Callable[[list[list[int]]], Queries]:
    """Queries that have nothing but their targets."""

    def make(targets: list[list[int]]) -> Queries:
        sizes = [len(each) for each in targets]
        return Queries(
            user=np.arange(len(targets), dtype=np.int32),
            position=np.zeros(len(targets), np.int64),
            as_of=np.zeros(len(targets), np.int64),
            target_offsets=np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64),
            target=np.array([item for each in targets for item in each], np.int32),
        )

    return make
