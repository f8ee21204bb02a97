"""The order of a replay, and when it must stop."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from app.demo.errors import DemoError
from app.demo.rehearsal import Question, ReplayEvent, Step
from app.demo.replay import replay
from app.recommend.answer import Recommendations, RecommendedItem


class Recorder:
    """Answers what a fresh service would, and writes down every call; `lag` events are missing from its answers."""

    def __init__(self, counts, lag=0):
        self.counts = dict(counts)
        self.lag = lag
        self.calls = []

    def recommend(self, user_id, k, as_of_ms, platform):
        self.calls.append(("ask", user_id, k, as_of_ms, platform))
        applied = max(0, self.counts.get(user_id, 0) - self.lag)
        items = [RecommendedItem(f"item-{applied}", 1.0, None)]
        return Recommendations("r", user_id, "m", "model", None, False, applied, None, datetime.now(UTC), items)

    def send(self, events):
        self.calls.append(("send", events[0].user_id, len(events)))
        self.counts[events[0].user_id] = self.counts.get(events[0].user_id, 0) + len(events)


def question(user, at, platform=None):
    return Step(query=Question(user, at, ["a"], platform))


def events(user, *times):
    made = [ReplayEvent(type="purchase", timestamp=at, item_id="a", user_id=user, event_id=f"{user}{at}") for at in times]
    return Step(events=made)


STEPS = [question("u", 10, "app"), events("u", 10, 12), question("v", 13), events("v", 13), events("u", 14), question("u", 15)]


def test_calls_go_out_in_the_order_of_the_steps():
    service = Recorder({"u": 3})
    answers = replay(service, STEPS, {"u": 3}, k=7)
    assert service.calls == [
        ("ask", "u", 7, 10, "app"),
        ("send", "u", 2),
        ("ask", "v", 7, 13, None),
        ("send", "v", 1),
        ("send", "u", 1),
        ("ask", "u", 7, 15, None),
    ]
    assert [(answer.question.user_id, answer.items) for answer in answers] == [
        ("u", ["item-3"]),
        ("v", ["item-0"]),
        ("u", ["item-6"]),
    ]


def test_a_watched_customer_is_asked_once_more_right_after_each_purchase_as_of_its_last_event():
    service = Recorder({"u": 3})
    answers = replay(service, STEPS, {"u": 3}, k=7, watched={"u"})
    assert service.calls[1:4] == [("send", "u", 2), ("ask", "u", 7, 12, "app"), ("ask", "v", 7, 13, None)]
    assert service.calls[-2:] == [("send", "u", 1), ("ask", "u", 7, 15, None)]  # events without a question before them
    assert [answer.after for answer in answers] == [["item-5"], None, None]


def test_an_answer_that_lags_behind_what_was_sent_stops_the_replay():
    service = Recorder({"u": 3}, lag=1)
    with pytest.raises(DemoError, match="customer u reflects 2 events, and it was told 3"):
        replay(service, STEPS, {"u": 3}, k=7)
    assert len(service.calls) == 1


def test_a_service_that_knows_more_than_it_was_told_stops_the_replay():
    with pytest.raises(DemoError, match="not fresh"):
        replay(Recorder({"v": 4}), STEPS, {}, k=7)
