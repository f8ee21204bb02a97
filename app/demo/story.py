"""One customer's story: whose it is, and what happened in it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from app.demo.histories import Past, past_of
from app.demo.rehearsal import History, Question, Step
from app.demo.replay import Answer
from app.recommend.answer import moment

_LEAST_BASKETS: Final = 5
_QUESTIONS: Final = range(2, 5)
_MOST_WATCHED: Final = 60  # each costs the replay a few more questions


@dataclass(frozen=True)
class Chosen:
    """A question whose basket changed the list for the better, and the same customer's next question."""

    answer: Answer
    following: Question


@dataclass(frozen=True)
class Story:
    """What is told of a customer. Items are ids, best first in the lists; the times are UTC.

    Attributes:
        baskets: before the replay. last_bought: their last purchases then, latest first.
        before: recommended at `asked`, just before they took `bought`. after: recommended right after that.
        next_bought: what they took at `next_time`.
    """

    user_id: str
    attributes: Mapping[str, str]
    baskets: int
    last_bought: list[tuple[datetime, str]]
    asked: datetime
    before: list[str]
    bought: list[str]
    after: list[str]
    next_time: datetime
    next_bought: list[str]

    @property
    def new(self) -> set[str]:
        """What stands in the list only since the purchase."""
        return set(self.after) - set(self.before)


def watch(steps: Iterable[Step], pasts: Mapping[str, Past]) -> set[str]:
    """The customers who may become the story: with 5 baskets before the replay or more, and 2 to 4 in it; the first 60."""
    questions = Counter(step.query.user_id for step in steps if step.query is not None)
    known = [user for user, count in questions.items() if count in _QUESTIONS and user in pasts]
    return set([user for user in known if pasts[user].baskets >= _LEAST_BASKETS][:_MOST_WATCHED])


def choose(answers: Iterable[Answer]) -> Chosen | None:
    """The story that shows most: something was recommended that was taken, and what was learnt from that served the next basket.

    Among the questions that were watched and followed by another one of the same customer, those with a hit come first; of them
    the one whose list, by the purchase, gained most items of the next basket; of them the one with most hits; then the earliest.
    """
    best: tuple[tuple[bool, int, int], Chosen] | None = None
    waiting: dict[str, Answer] = {}
    for answer in answers:
        user_id = answer.question.user_id
        earlier = waiting.pop(user_id, None)
        if earlier is not None and earlier.after is not None:
            following = set(answer.question.targets)
            gain = len(following.intersection(earlier.after)) - len(following.intersection(earlier.items))
            hits = len(set(earlier.question.targets).intersection(earlier.items))
            rank = (hits > 0, gain, hits)
            if best is None or rank > best[0]:
                best = rank, Chosen(earlier, answer.question)
        if answer.after is not None:
            waiting[user_id] = answer
    return None if best is None else best[1]


def tell(chosen: Chosen, histories: Iterable[History], positive: Collection[str], last: int = 5) -> Story:
    """The story with what the customer had bought before: events of the `positive` types."""
    question = chosen.answer.question
    history = next(history for history in histories if history.user_id == question.user_id)
    purchases = [event for event in history.events if event.type in positive and event.item_id is not None]
    assert chosen.answer.after is not None
    return Story(
        user_id=question.user_id,
        attributes=history.attributes,
        baskets=past_of(history, positive).baskets,
        last_bought=[(moment(event.timestamp), event.item_id or "") for event in reversed(purchases[-last:])],
        asked=moment(question.as_of),
        before=chosen.answer.items,
        bought=question.targets,
        after=chosen.answer.after,
        next_time=moment(chosen.following.as_of),
        next_bought=chosen.following.targets,
    )


def shown_ranks(items: Sequence[str], marked: Collection[str], first: int) -> list[int]:
    """Which places of a list are worth showing: the first ones, and every later one that is marked. Counted from 0."""
    return [rank for rank, item in enumerate(items) if rank < first or item in marked]
