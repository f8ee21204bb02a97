"""TIFU-KNN and session kNN against the same formulas written down plainly, over dictionaries and without an index."""

import math

import numpy as np
import pytest

from model.baselines.tifu_knn import DECIMALS, TifuKnn
from model.baselines.tuning import SESSION_SPANS, TIFU_NEIGHBOURS, tune
from model.baselines.vmis_knn import VmisKnn
from model.data.splits import clock, leave_one_out, next_basket
from model.replay import live_schedule

SEEDS = range(15)


def baskets(seq, user, end):
    """The user's baskets of purchases before row `end`, oldest first, as lists of rows."""
    found = {}
    for row in range(seq.offsets[user], end):
        if seq.positive[row]:
            found.setdefault(int(seq.basket[row]), []).append(row)
    return [found[number] for number in sorted(found)]


def following(seq, split):
    """Every test query, with how far each user is known at that moment of a live replay."""
    known = split.train_end.copy()
    for step in live_schedule(seq, split.test, split.train_end):
        if step[0] == "query":
            yield step[1], known
        else:
            known[seq.user[step[1]]] = step[2]


def tifu_vector(seq, user, end, group, within, between):
    groups, rest = [], baskets(seq, user, end)
    while rest:
        groups.insert(0, rest[-group:])
        rest = rest[:-group]
    vector = np.zeros(seq.items)
    for age, members in enumerate(reversed(groups)):
        for place, rows in enumerate(members):
            for item in {int(seq.item[row]) for row in rows}:
                vector[item] += between**age * within ** (len(members) - 1 - place) / (len(members) * len(groups))
    return vector


def tifu_scores(seq, user, position, known, settings):
    group, within, between, neighbours, own = settings
    mine = tifu_vector(seq, user, position, group, within, between)
    others = []
    for other in range(seq.users):
        vector = tifu_vector(seq, other, known[other], group, within, between)
        if other != user and vector.any():
            others.append((round(float(vector @ vector - 2 * vector @ mine), DECIMALS), other, vector))
    nearest = [vector for _, _, vector in sorted(others, key=lambda each: each[:2])[:neighbours]]
    return own * mine + (1 - own) * (np.mean(nearest, axis=0) if nearest else 0)


@pytest.mark.parametrize("seed", SEEDS)
def test_tifu_knn_follows_its_formula_live(world, seed):
    seq = world(seed, users=12, late=seed % 2 == 1)
    split = next_basket(seq, 0.7, 0.4)
    settings = (2, 0.8, 0.6, 3, 0.4)
    baseline = TifuKnn(*settings)
    baseline.fit(seq, split.train_end)
    before = split.train_end.copy()
    compared = 0
    for q, known in following(seq, split):
        for user in np.flatnonzero(known > before).tolist():
            baseline.observe(int(before[user]), int(known[user]))
        before = known.copy()
        user, position = int(split.test.user[q]), int(split.test.position[q])
        if baskets(seq, user, position):
            found = baseline.score(user, position, 0)
            np.testing.assert_allclose(found, tifu_scores(seq, user, position, known, settings), atol=1e-12)
            compared += 1
    assert compared > 5


def sessions(seq, known, span):
    """(beginning, user, place) -> rows, of all sessions that are known, in the order in which they begin."""
    found = {}
    for user in range(seq.users):
        mine = baskets(seq, user, known[user])
        for start in range(0, len(mine), span):
            rows = [row for basket in mine[start : start + span] for row in basket]
            found[int(clock(seq)[rows[0]]), user, start] = rows
    return [found[key] for key in sorted(found)]


def session_scores(seq, user, position, known, settings):
    span, context, recent, neighbours, idf = settings
    evolving = baskets(seq, user, position)[-context:]
    last = {int(seq.item[row]): place for place, rows in enumerate(evolving, start=1) for row in rows}
    evolving_rows = {row for rows in evolving for row in rows}
    everyone = sessions(seq, known, span)
    alike = []
    for number, rows in enumerate(everyone):
        shared = {int(seq.item[row]) for row in rows} & last.keys()
        if shared and not evolving_rows & set(rows):
            similarity = sum(last[item] / len(evolving) for item in shared)
            alike.append((similarity, number, max(last[item] for item in shared), rows))
    nearest = sorted(alike[-recent:], key=lambda each: (-round(each[0], 9), -each[1]))[:neighbours]
    scores = np.zeros(seq.items)
    for similarity, _, latest, rows in nearest:
        for item in {int(seq.item[row]) for row in rows}:
            scores[item] += similarity * max(0, 1 - 0.1 * (len(evolving) - latest))
    for item in range(seq.items):
        have = sum(item in {int(seq.item[row]) for row in rows} for rows in everyone)
        scores[item] *= math.log(len(everyone) / max(have, 1)) ** idf
    return scores


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("settings", [(2, 2, 6, 4, 1), (1, 4, 100, 2, 0), (3, 1, 100, 100, 1)])
def test_session_knn_follows_its_formula_live(world, seed, settings):
    seq = world(seed, users=12, late=seed % 2 == 1)
    split = next_basket(seq, 0.7, 0.4)
    baseline = VmisKnn(*settings)
    baseline.fit(seq, split.train_end)
    before = split.train_end.copy()
    compared = 0
    for q, known in following(seq, split):
        for user in np.flatnonzero(known > before).tolist():
            baseline.observe(int(before[user]), int(known[user]))
        before = known.copy()
        user, position = int(split.test.user[q]), int(split.test.position[q])
        expected = session_scores(seq, user, position, known, settings) if baskets(seq, user, position) else np.zeros(1)
        if expected.any():
            np.testing.assert_allclose(baseline.score(user, position, 0), expected, atol=1e-12)
            compared += 1
    assert compared > 5


@pytest.mark.parametrize("baseline", [TifuKnn(), VmisKnn()], ids=lambda baseline: baseline.name)
def test_a_user_without_purchases_gets_what_is_popular(sequences, baseline):
    seq = sequences([(0, 2, 0, 0, 0), (0, 2, 0, 1, 1), (1, 0, 1, 5, 0), (1, 1, 2, 6, 1)], 3)
    baseline.fit(seq, seq.offsets[1:])
    # User 1 has viewed item 0 and cancelled item 1: neither is a purchase.
    assert baseline.score(1, 4, 7).tolist() == [0, 0, 2]


def test_a_session_that_nobody_shares_is_answered_with_what_is_popular(sequences):
    seq = sequences([(0, 0, 0, 0, 0), (0, 0, 0, 1, 1), (1, 1, 0, 5, 0)], 3)
    baseline = VmisKnn()
    baseline.fit(seq, seq.offsets[1:])
    assert baseline.score(1, 3, 7).tolist() == [2, 1, 0]


def test_neighbours_are_tuned_on_validation_alone(world):
    seq = world(5, users=40)
    split = next_basket(seq, 0.7, 0.4)
    tuned = tune(seq, split, queries=10, neighbours=True)
    tifu, session = tuned.baselines[-2:]
    assert (tifu.name, session.name) == ("tifu-knn", "session kNN")
    assert tifu.parameters()["neighbours"] in TIFU_NEIGHBOURS
    assert session.parameters()["span"] in SESSION_SPANS["basket"]
    rng = np.random.default_rng(0)
    for user, position in zip(split.test.user, split.test.position, strict=True):
        rows = slice(position, seq.offsets[user + 1])
        seq.item[rows] = rng.integers(0, seq.items, rows.stop - rows.start)
    again = tune(seq, split, queries=10, neighbours=True)
    assert again.valid_ndcg == tuned.valid_ndcg
    assert [b.parameters() for b in again.baselines] == [b.parameters() for b in tuned.baselines]


def test_leave_one_out_asks_them_frozen_from_the_users_own_past(world):
    seq = world(2, users=20)
    tuned = tune(seq, leave_one_out(seq), neighbours=True)
    assert tuned.valid_ndcg["tifu-knn"] > 0
    assert tuned.baselines[-1].parameters()["span"] in SESSION_SPANS["one by one"]
