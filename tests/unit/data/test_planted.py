"""The made-up world that asks for a long memory."""

import numpy as np
import polars as pl

from model.data import planted
from model.data.planted import planted_world


def test_users_come_back_to_their_topic_after_so_many_views_that_say_nothing():
    events = planted_world().events
    of_user = events.partition_by("user_id", as_dict=True)
    assert len(of_user) == planted.USERS
    long = 0
    for history in of_user.values():
        bought = np.flatnonzero(history["type"] == "purchase")
        items = history["item_id"].gather(bought)
        assert items.n_unique() == planted.FIRST + planted.FURTHER
        assert items.str.split("-").list.first().n_unique() == 1  # one topic
        views = np.diff(bought)[planted.FIRST - 1 :] - 1
        if views[-1] == planted.DISTANCE:
            assert views[-2] == planted.DISTANCE
            views, long = views[:-2], long + 1
        assert views.sum() < planted.MOST
    assert long == planted.LONG_USERS


def test_views_do_not_depend_on_the_topic():
    events = planted_world().events
    topic = pl.col("item_id").filter(pl.col("type") == "purchase").first().str.split("-").list.first()
    views = events.with_columns(topic.over("user_id").alias("topic")).filter(pl.col("type") == "view")
    share = views.group_by("topic", "item_id").len().with_columns(pl.col("len") / pl.col("len").sum().over("topic"))
    assert share.height == planted.TOPICS * planted.VIEWED
    # No item is viewed by the users of one topic more than by others, but for chance: each topic has some 40,000 views.
    assert (share["len"] * planted.VIEWED - 1).abs().max() < 0.25


def test_the_same_seed_draws_the_same_world():
    one, again, other = (planted_world(seed).manifest.fingerprint for seed in (0, 0, 1))
    assert one == again != other
