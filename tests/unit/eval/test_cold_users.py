"""Cold users: asked from exactly so many events, by the model and by the baselines beside it."""

import numpy as np
import pytest
from random_world import random_world

from model.assess import load_run, own_lists
from model.baselines.own_frequency import OwnFrequency
from model.baselines.recent_popularity import RecentPopularity
from model.benchmark.cold_users import EVENTS, OwnFrequencyOfLast, measure_cold_users
from model.data.newcomers import last_events
from model.data.splits import next_basket, select


@pytest.fixture(scope="module")
def asked(tiny_run):
    """The tiny world's run and task."""
    return load_run(tiny_run.run, tiny_run.data)


def test_every_query_gets_a_user_with_exactly_so_many_events():
    seq = random_world(3, users=20)
    queries = next_basket(seq, 0.7, 0.4).test
    queries = select(queries, queries.position - seq.offsets[queries.user] >= 3)
    own, moved, rows = last_events(seq, queries, 3)
    assert own.users == len(queries) > 5
    for q in range(len(queries)):
        place = slice(int(own.offsets[q]), int(own.offsets[q]) + 3)
        past = slice(int(queries.position[q]) - 3, int(queries.position[q]))
        assert moved.position[q] == place.stop
        for name in ("item", "item_key", "type", "time", "platform"):
            np.testing.assert_array_equal(getattr(own, name)[place], getattr(seq, name)[past])
        np.testing.assert_array_equal(own.attributes[q], seq.attributes[queries.user[q]])
        assert {row: text for row, text in own.text.items() if place.start <= row < place.stop} == {
            place.start + i: seq.text[past.start + i] for i in range(3) if past.start + i in seq.text
        }
        assert rows[place.stop] == queries.position[q]
        np.testing.assert_array_equal(moved.targets(q), queries.targets(q))


def test_a_query_with_fewer_events_before_it_is_refused():
    seq = random_world(3, users=20)
    queries = next_basket(seq, 0.7, 0.4).test
    with pytest.raises(ValueError, match="fewer than 10000 events"):
        last_events(seq, queries, 10_000)


def test_a_user_who_has_made_just_so_many_events_gets_the_same_list_as_ever(asked):
    checkpoint, task = asked
    split = task.split
    lists = own_lists(checkpoint, task, split)
    past = split.test.position - task.seq.offsets[split.test.user]
    shortest = int(past.min())
    cut = own_lists(checkpoint, task, split, last=shortest)
    whole = past == shortest
    assert 0 < whole.sum() < len(past)
    np.testing.assert_array_equal(cut[whole], lists[whole])
    assert (cut[~whole] != lists[~whole]).any()


def test_without_an_event_the_model_says_what_is_popular(asked):
    checkpoint, task = asked
    lists = own_lists(checkpoint, task, task.split, last=0)
    same_moment = task.split.test.as_of == task.split.test.as_of[0]
    assert (lists[same_moment] == lists[0]).all()


@pytest.mark.parametrize("last", [0, 2, 5, 10_000])
def test_own_frequency_of_the_last_events_counts_these_alone(last):
    seq = random_world(5, users=20)
    split = next_basket(seq, 0.7, 0.4)
    of_last, whole, recent = OwnFrequencyOfLast(last, own_weight=0.7), OwnFrequency(own_weight=0.7), RecentPopularity()
    for baseline in (of_last, whole, recent):
        baseline.fit(seq, split.train_end)
    for q in range(len(split.test)):
        user, position, now = int(split.test.user[q]), int(split.test.position[q]), int(split.test.as_of[q])
        scores = of_last.score(user, position, now)
        if last > position - seq.offsets[user]:
            np.testing.assert_allclose(scores, whole.score(user, position, now))
        known = seq.item[max(int(seq.offsets[user]), position - last) : position]
        unknown = np.setdiff1d(np.arange(seq.items), known)
        popular = recent.score(user, position, now)[unknown]
        order = np.argsort(-scores[unknown], kind="stable")
        np.testing.assert_array_equal(order, np.argsort(-popular, kind="stable"))


def test_the_same_queries_are_asked_after_every_number_of_events(asked):
    checkpoint, task = asked
    chosen = {"recent popularity": RecentPopularity().parameters(), "own frequency": OwnFrequency().parameters()}
    found = measure_cold_users(task, lambda of, last: own_lists(checkpoint, of, of.split, last=last), chosen, 0)
    assert list(found["after"]) == [str(count) for count in EVENTS]
    popular = [after["models"]["recent popularity"]["ndcg@20"]["mean"] for after in found["after"].values()]
    assert len(set(popular)) == 1  # who asks is nothing to it
    assert found["queries"] == (task.split.test.position - task.seq.offsets[task.split.test.user] >= max(EVENTS)).sum() > 0
    nothing = found["after"]["0"]["models"]
    assert nothing["own frequency"] == nothing["recent popularity"]
    assert {"longwave", "recent popularity", "own frequency"} == set(nothing)
    assert 0 < found["after"]["10"]["comparisons"]["own frequency"]["ndcg@20"]["p"] <= 1
