"""Several lists for one user: each is made without the items of those before it, inside retrieval, so that none runs dry."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace

from app.errors import InvalidRequestError
from app.recommend.answer import NamedList, Query, Recommendations, SeveralLists


async def without_repeats(queries: Sequence[Query], make: Callable[[Query], Awaitable[Recommendations]]) -> list[Recommendations]:
    """One list for each question, in their order.

    Raises:
        InvalidRequestError: the rules of one of them cannot be followed; says of which.
    """
    listed: list[str] = []
    answers = []
    for place, query in enumerate(queries):
        try:
            answer = await make(replace(query, listed=tuple(listed)))
        except InvalidRequestError as error:
            error.detail = f"lists.{place}: {error.detail}"
            error.errors = [{**one, "field": f"lists.{place}.{one['field']}"} for one in error.errors]
            raise
        listed += (item.item_id for item in answer.items)
        answers.append(answer)
    return answers


def together(names: Sequence[str], answers: Sequence[Recommendations]) -> SeveralLists:
    """Lists of one user as one answer."""
    first = answers[0]
    return SeveralLists(
        user_id=first.user_id,
        model_id=first.model_id,
        source=first.source,
        reason=first.reason,
        degraded=first.degraded,
        applied_events=first.applied_events,
        last_event_time=first.last_event_time,
        as_of=first.as_of,
        lists=[
            NamedList(name, one.recommendation_id, one.items, one.scenario, one.gave_way, one.explored, one.debug)
            for name, one in zip(names, answers, strict=True)
        ],
        experiment=first.experiment,
        fallback_context=first.fallback_context,
    )
