"""Both accounts of a list, against folding by hand and against a world whose causes are known; and the words for them."""

import asyncio
import random
import warnings

import numpy as np
import pytest

from app.catalogue.popularity import LivePopularity
from app.errors import OverloadedError
from app.fold import Fold, Unfolded
from app.fold.tensors import EventTensors
from app.models.served import catalogue_of
from app.recommend.answer import Query
from app.recommend.explain import MOST_WAITING, Explainer
from app.recommend.interests import Shares
from app.recommend.listing import Lister, Plan
from app.recommend.quick import Quick
from app.recommend.refold import LAST, Refold
from app.recommend.score import Question, Scorer
from app.recommend.some import SomeScores, places_of
from app.recommend.words import Reason, sentence
from app.runtime.bundle import read_bundle
from app.runtime.session import open_runtime
from app.state.codec import StateCodec
from app.state.events import StoredEvent

START_MS = 1_300_000_000_000
EPOCH = b"epoch-01"


class Model:
    """The parts of a served model that explanations need, on no store."""

    def __init__(self, folder):
        self.runtime = open_runtime(read_bundle(folder), "cpu", 1)
        self.manifest = self.runtime.bundle.manifest
        self.catalogue = catalogue_of(self.runtime.bundle)
        about = self.manifest.popularity
        popularity = LivePopularity(self.catalogue, about.half_lives_s, self.runtime.bundle.popularity, about.as_of_ms, 0.0)
        self.tensors = EventTensors(self.manifest, self.catalogue, None)
        self.fold = Fold(self.runtime, self.catalogue, StateCodec(self.manifest.state), self.tensors)
        self.scores = SomeScores(self.runtime, self.catalogue, popularity, self.fold)
        self.scorer = Scorer(self.runtime, self.catalogue, popularity, self.fold)
        self.lister = Lister(self.scorer, self.catalogue, popularity)
        self.quick = Quick(self.manifest, self.catalogue, self.tensors)
        self.refold = Refold(self.fold, self.tensors, self.scores)
        shares = Shares(self.runtime, self.catalogue, popularity)
        self.explainer = Explainer(self.manifest, self.catalogue, self.fold, self.tensors, self.scores, shares, None)

    def told(self, events, **attributes):
        return Unfolded(EPOCH, attributes, None, events, 0)

    def ranked(self, events, as_of_ms, k=20, **attributes):
        ((_, blob),) = self.fold([self.told(events, **attributes)])
        return asyncio.run(self.lister.lists([Plan(Question(blob, k, as_of_ms, 0, (), keeps=True))]))[0]

    def scores_of_all(self, events, as_of_ms, **attributes):
        ranked = self.ranked(events, as_of_ms, len(self.catalogue), **attributes)
        scores = np.empty(len(self.catalogue))
        scores[ranked.rows] = ranked.scores
        return scores


@pytest.fixture(scope="module")
def model(tiny_bundle):
    return Model(tiny_bundle)


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch's own, of the exporter that we use on purpose
        from planted_cause import write_bundle

        return Model(write_bundle(tmp_path_factory.mktemp("planted-cause")))


def history(n, seed=0):
    rng = random.Random(seed)
    kinds = ["purchase", "purchase", "view", "cancellation"]
    return [StoredEvent(rng.choice(kinds), START_MS + i * 3_600_000, f"item-{rng.randrange(60):03d}") for i in range(n)]


@pytest.mark.parametrize("n", [1, 2, LAST - 1, LAST, LAST + 1, 3 * LAST])
def test_a_drop_is_the_difference_of_two_histories_that_are_folded_by_hand(model, n):
    events, as_of = history(n, n), START_MS + 10**9
    ranked = model.ranked(events, as_of, country="France")
    found = model.refold(model.told(events, country="France"), model.scores.take(ranked.rows, as_of, 0))
    assert (list(found.events), found.more) == (events[-LAST:], n > LAST)
    for place in range(len(found.events)):
        left = n - len(found.events) + place
        without = [*events[:left], *events[left + 1 :]]
        if not without:
            continue  # nobody asks the scorer for a user without events
        by_hand = model.scores_of_all(events, as_of, country="France") - model.scores_of_all(without, as_of, country="France")
        np.testing.assert_allclose(found.drops[:, place], by_hand[ranked.rows], atol=1e-4)
    if n > LAST:
        before = model.scores_of_all(events[:-LAST], as_of, country="France")
        by_hand = model.scores_of_all(events, as_of, country="France") - before
        np.testing.assert_allclose(found.together, by_hand[ranked.rows], atol=1e-4)
    assert np.abs(found.drops).max() > 0.01


def test_events_that_the_model_cannot_read_are_no_candidates_and_change_nothing(model):
    events, as_of = history(30), START_MS + 10**9
    strange = [one for event in events for one in (event, StoredEvent("teleported", event.time_ms, "item-001"))]
    items = model.scores.take([3, 1, 2], as_of, 0)
    plain, mixed = model.refold(model.told(events), items), model.refold(model.told(strange), items)
    assert list(mixed.events) == list(plain.events)
    np.testing.assert_allclose(mixed.drops, plain.drops, atol=1e-5)


def test_what_some_items_score_is_what_they_score_among_all(model):
    events, as_of = [*history(40), StoredEvent("purchase", START_MS + 10**9, "item-007")], START_MS + 2 * 10**9
    ((_, blob),) = model.fold([model.told(events)])
    rows = [59, 7, 0, 31]  # one of them is in the own-repeat memory for certain
    scores = model.scores([blob, blob], model.scores.take(rows, as_of, 0))
    np.testing.assert_allclose(scores, np.tile(model.scores_of_all(events, as_of)[rows], (2, 1)), atol=1e-4)


def test_places_of_rows():
    rows = np.asarray([7, 3, 9])
    np.testing.assert_array_equal(places_of(np.asarray([[3, -1], [9, 8], [100, 7]]), rows), [[1, -1], [2, -1], [-1, 0]])


def test_the_quick_account_knows_what_was_had_before_attention_reaches(model):
    events = [StoredEvent("purchase", START_MS, "item-007")]
    events += [StoredEvent("view", START_MS + 1000 * n, f"item-{20 + n:03d}") for n in range(1, model.quick.most + 1)]
    read = model.ranked(events, START_MS + 10**7).read
    key = model.catalogue.keys[7]
    slot = int(np.flatnonzero(read.interest["repeat_keys"][0] == key)[0])
    read.interest["repeat_scores"][0, slot] = 50.0  # the net is not trained, and may think that nobody comes back
    found = model.quick(events, read, [7, 8])
    assert len(found.events) == model.quick.most
    assert found.own[0] > 20
    assert found.own[1] == 0
    assert found.own_ms[0] == START_MS
    again = model.quick([*events[1:], StoredEvent("purchase", START_MS + 10**6, "item-007")], read, [7])
    assert again.own[0] == 0
    assert int(np.argmax(again.weights[0])) == model.quick.most - 1


@pytest.mark.parametrize("n", [1, 5, 8, 30])
def test_what_attention_looks_at_is_the_event_of_that_slot(model, n):
    events = [StoredEvent("view", START_MS + 1000 * row, f"item-{row:03d}") for row in range(n)]
    read, seen = model.ranked(events, START_MS + 10**7).read, min(n, model.quick.most)
    for back in range(1, seen + 1):  # from the newest event on
        read.interest["attention"][0] = 0
        read.interest["attention"][0, -back] = 1
        found = model.quick(events, read, [50, 51])
        assert list(found.events) == events[-seen:]
        assert (np.argmax(found.weights, 1) == seen - back).all()


def test_a_negative_event_is_no_reason_in_the_quick_account(model):
    events = history(8)
    weights = model.quick(events, model.ranked(events, START_MS + 10**9).read, [0, 1]).weights
    negative = [event.type == "cancellation" for event in events]
    assert any(negative)
    assert (weights[:, negative] == 0).all()
    assert (weights[:, ~np.asarray(negative)] > 0).all()


def test_both_accounts_find_the_planted_cause(planted):
    rng, found = random.Random(0), []
    for _ in range(40):
        pair, kinds = rng.randrange(5), ["view"] * rng.randrange(1, 5) + ["purchase"] + ["view"] * rng.randrange(1, 5)
        at = planted.manifest.popularity.as_of_ms
        events = [
            StoredEvent(kind, at + n * 60_000, f"cause-{pair}" if kind == "purchase" else f"viewed-{rng.randrange(10)}")
            for n, kind in enumerate(kinds)
        ]
        query = Query("t", "", 5, at + len(kinds) * 60_000, None)
        ranked, effect = planted.ranked(events, query.as_of_ms, 5), planted.catalogue.row(f"effect-{pair}")
        if effect not in ranked.rows[:2]:
            continue  # the model has not found it: then there is nothing to be explained
        place = ranked.rows.index(effect)
        for account in ("quick", "exact"):
            asked = Query(**{name: getattr(query, name) for name in query.__slots__} | {"explain": account})
            why = asyncio.run(planted.explainer.of_events(asked, ranked, (), planted.told(events)))[place]
            found.append(why.events[0].item_id == f"cause-{pair}" and why.text.startswith(f"Because you bought cause-{pair}"))
    assert len(found) > 60
    assert sum(found) >= 0.95 * len(found)


def test_exact_accounts_beyond_the_bound_are_refused_and_the_others_come(model):
    events, as_of = history(20), START_MS + 10**9
    ranked, query = model.ranked(events, as_of), Query("t", "", 20, as_of, None, explain="exact")

    async def many():
        asked = [model.explainer.of_events(query, ranked, (), model.told(events)) for _ in range(MOST_WAITING + 2)]
        answers = await asyncio.gather(*asked, return_exceptions=True)
        return answers, await model.explainer.of_events(query, ranked, (), model.told(events))

    answers, afterwards = asyncio.run(many())
    refused = [answer for answer in answers if isinstance(answer, OverloadedError)]
    assert len(refused) == 2
    assert all(answer == afterwards for answer in answers if not isinstance(answer, OverloadedError))


def test_interests_of_a_large_catalogue_come_from_a_sample_of_it(model, monkeypatch):
    monkeypatch.setattr("app.recommend.interests._SAMPLED", 30)
    popularity = LivePopularity(model.catalogue, (1.0, 2.0), np.ones((60, 2)), START_MS, 0.0)
    events = history(20)
    read = model.ranked(events, START_MS + 10**9).read
    matched = Shares(model.runtime, model.catalogue, popularity)(read, [0, 58, 32], START_MS + 10**9)
    assert [[interest.label for interest in interests] for interests in matched] == [["books"], ["cups"], ["lamps"]]
    assert sum(interest.weight for (interest,) in matched) == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize(
    ("reasons", "words"),
    [
        ([("purchase", "X")], "Because you bought X"),
        ([("purchase", "X"), ("purchase", "Y")], "Because you bought X and Y"),
        ([("purchase", "X"), ("view", "Y")], "Because you bought X and looked at Y"),
        ([("rating", "X"), ("like", "Y")], "Because you rated X and liked Y"),
        ([("purchase", "X", True)], "Because you bought it before"),
        ([("view", "X", True), ("view", "Y")], "Because you looked at it before and looked at Y"),
        ([("cart", "X"), ("search", "Y")], "Because you put X in your basket and searched for Y"),
        ([(None, "X", True)], "Because you had it before"),
        ([("teleported", "X")], "Because of X"),
        ([("purchase", "X"), ("teleported", "Y")], "Because of X and Y"),
    ],
)
def test_words(reasons, words):
    assert sentence([Reason(*reason) for reason in reasons]) == words
