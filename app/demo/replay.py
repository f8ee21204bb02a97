"""Held-out weeks, live: before each basket the service is asked, then it is told what was taken, strictly in order."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

from app.demo.errors import DemoError
from app.demo.rehearsal import Question, ReplayEvent, Step
from app.recommend.answer import Recommendations


class Client(Protocol):
    """What a replay needs of a service."""

    def recommend(self, user_id: str, k: int, as_of_ms: int, platform: str | None) -> Recommendations: ...

    def send(self, events: list[ReplayEvent]) -> None: ...


@dataclass(frozen=True)
class Answer:
    """What was recommended, and, for the customers that were watched, what was recommended right after they took something.

    Attributes:
        items: item ids, best first. after: the same, as of the last event that followed; None where nobody watched.
    """

    question: Question
    items: list[str]
    after: list[str] | None = None


def replay(
    client: Client,
    steps: Iterable[Step],
    events_before: Mapping[str, int],
    k: int,
    watched: Collection[str] = (),
    on_answer: Callable[[], None] = lambda: None,
) -> list[Answer]:
    """Run all steps and return the answers in the order of the questions.

    Args:
        events_before: customer -> number of events that the service knows already.
        k: length of the lists.
        watched: customers for whom the service is asked once more right after the events that follow a question.
        on_answer: called after each question.

    Raises:
        DemoError: the service refused a call, or an answer reflects other events than were sent.
    """
    answers: list[Answer] = []
    sent = dict(events_before)
    asked: dict[str, int] = {}  # watched customer -> their latest question, until events follow it

    def ask(user_id: str, as_of_ms: int, platform: str | None) -> list[str]:
        answer = client.recommend(user_id, k, as_of_ms, platform)
        if answer.applied_events != sent.get(user_id, 0):
            raise DemoError(
                f"the service is not fresh: its answer for customer {user_id} reflects {answer.applied_events} events, and it "
                f"was told {sent.get(user_id, 0)}"
            )
        return [item.item_id for item in answer.items]

    for step in steps:
        if step.query is not None:
            question = step.query
            answers.append(Answer(question, ask(question.user_id, question.as_of, question.platform)))
            if question.user_id in watched:
                asked[question.user_id] = len(answers) - 1
            on_answer()
        if step.events is not None:
            user_id = step.events[0].user_id
            client.send(step.events)
            sent[user_id] = sent.get(user_id, 0) + len(step.events)
            index = asked.pop(user_id, None)
            if index is not None:
                before = answers[index]
                latest = max(event.timestamp for event in step.events)
                answers[index] = Answer(before.question, before.items, ask(user_id, latest, before.question.platform))
    return answers
