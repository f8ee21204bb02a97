"""The made-up world whose users' interests turn."""

import numpy as np
import polars as pl
import pytest

from model.data import turning
from model.data.turning import turning_world


@pytest.fixture(scope="module")
def world():
    return turning_world(0, 80)


def test_every_other_user_turns_by_as_much_as_is_said_and_the_others_not_at_all(world):
    assert (world.amount[1::2] == 0).all()
    assert (world.amount[::2] > 0).all()
    apart = []
    for user, turn in zip(world.user_ids, world.turn, strict=True):
        topic = of(world, user)["item_id"].str.split("-").list.first().cast(pl.Int64).to_numpy()
        assert turn >= turning.BEFORE[0]
        assert len(topic) - turn >= turning.AFTER
        early, late = (np.bincount(part, minlength=turning.TOPICS) / len(part) for part in (topic[:turn], topic[turn:]))
        apart.append(np.abs(late - early).sum() / 2)
    # Some twenty visits on either side: frequencies differ a little by chance alone.
    assert np.corrcoef(apart, world.amount)[0, 1] > 0.7
    assert np.mean(apart[1::2]) < 0.35
    assert abs(np.mean(apart[::2]) - np.mean(world.amount[::2])) < 0.15


def test_a_visit_is_over_before_the_turn_or_begins_after_it(world):
    for user, turn in zip(world.user_ids, world.turn, strict=True):
        time = of(world, user)["timestamp"].to_numpy()
        assert (np.diff(time) >= 0).all()
        assert time[turn] - time[turn - 1] != 20_000  # events of a visit are so far apart


def test_other_seeds_give_other_users_of_the_same_items(world):
    again, other = turning_world(0, 80), turning_world((0, 1), 80)
    assert again.dataset.manifest.fingerprint == world.dataset.manifest.fingerprint != other.dataset.manifest.fingerprint
    assert again.dataset.items.equals(other.dataset.items)
    assert set(other.dataset.events["item_id"]) <= set(other.dataset.items["item_id"])


def of(world, user):
    return world.dataset.events.filter(pl.col("user_id") == user)
