from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from model.data.errors import DataError
from model.data.inhabitants import WorldSize
from model.data.synthetic import SIZES, synthetic_world


@pytest.fixture(scope="module")
def world():
    return synthetic_world("small")


def with_topics(world):
    topics = pl.DataFrame({"item_id": world.dataset.items.get_column("item_id"), "topic": world.item_topic})
    return world.dataset.events.join(topics, on="item_id", how="left", maintain_order="left")


def test_the_same_seed_gives_the_same_world_and_another_seed_another():
    first, again, other = (synthetic_world("tiny", seed).dataset.manifest.fingerprint for seed in (3, 3, 4))
    assert first == again != other


def test_a_world_has_the_size_it_was_asked_for():
    for name, size in SIZES.items():
        counts = synthetic_world(name).dataset.manifest.counts
        assert (counts.users, counts.items) == (size.users, size.items)
        assert counts.events == pytest.approx(size.events, rel=0.1)


def test_a_planted_interest_is_untouched_between_its_beginning_and_its_return(world):
    events = with_topics(world)
    assert len(world.planted) == SIZES["small"].planted_users
    for planted in world.planted:
        own = events.filter((pl.col("user_id") == planted.user_id) & pl.col("topic").is_not_null())
        when, about = own.get_column("timestamp"), own.get_column("topic") == planted.topic
        early, late = when < planted.until_ms, when >= planted.returns_ms
        assert about.filter(early).all()
        assert about.filter(late).all()
        assert early.any()
        assert late.any()
        between = about.filter(~early & ~late)
        assert len(between) > 100
        assert not between.any()


def test_a_burst_takes_over_what_its_user_does(world):
    events = with_topics(world).drop_nulls("topic")
    inside = []
    for burst in world.bursts:
        during = events.filter(
            (pl.col("user_id") == burst.user_id) & pl.col("timestamp").is_between(burst.start_ms, burst.end_ms, closed="left")
        )
        inside += (during.get_column("topic") == burst.topic).to_list()
    assert len(inside) > 200
    assert np.mean(inside) > 0.6


def test_what_users_do_follows_their_slow_interests(world):
    events = with_topics(world).drop_nulls("topic").filter(pl.col("type") == "view")
    busy = {planted.user_id for planted in world.planted} | {burst.user_id for burst in world.bursts}
    shares, expected = [], []
    for row, user in enumerate(world.dataset.users.get_column("user_id")):
        own = events.filter(pl.col("user_id") == user).get_column("topic").to_numpy()
        if user not in busy and len(own) > 60:
            shares.append(np.bincount(own, minlength=len(world.topic_names)) / len(own))
            expected.append(world.user_topic[row].mean(axis=0))
    assert len(shares) > 10
    assert np.corrcoef(np.ravel(shares), np.ravel(expected))[0, 1] > 0.9


def test_titles_are_distinct_and_made_of_their_topic():
    world = synthetic_world("demo")
    titles = world.dataset.items.get_column("title")
    assert titles.n_unique() == len(titles)
    assert world.dataset.items.get_column("categories").to_list() == [[world.topic_names[t]] for t in world.item_topic]


def test_purchases_of_a_visit_are_one_basket_and_cancellations_come_later(world):
    events = world.dataset.events
    bought = events.filter(pl.col("type") == "purchase")
    assert bought.group_by("basket_id").agg(pl.col("timestamp").n_unique()).get_column("timestamp").max() == 1
    assert not bought.select(pl.struct("basket_id", "item_id").is_duplicated().any()).item()
    returned = events.filter(pl.col("type") == "cancellation")
    first = bought.group_by("user_id", "item_id").agg(pl.col("timestamp").min().alias("bought"))
    joined = returned.join(first, on=["user_id", "item_id"], how="left")
    assert joined.height > 100
    assert (joined.get_column("timestamp") > joined.get_column("bought")).all()


def test_impossible_worlds_are_refused():
    with pytest.raises(DataError, match="size 'huge' is unknown; sizes are tiny, small, demo"):
        synthetic_world("huge")
    with pytest.raises(DataError, match="topics must be 2 to 12, not 13"):
        synthetic_world(WorldSize(users=5, items=100, events=100, topics=13))
