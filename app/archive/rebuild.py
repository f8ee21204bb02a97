"""Archive -> states that remember from the very beginning: what a bounded sequence cannot give back once a state is lost.

States are folded from the archive's first event on, brought up to date with the stored sequence, and committed by the same
compare-and-set as any other; one that began earlier replaces one that began later, so workers take it over by themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Final

from app.archive.histories import History
from app.errors import DamagedError
from app.fold import Fold, Unfolded
from app.state.codec import deflate
from app.state.damage import OneOfManyError
from app.state.events import encode_event
from app.state.store import Held, StateStore

_USERS: Final = 64  # folded together
_EVENTS: Final = 50_000  # of them
_NO_MODEL: Final = "-"


@dataclass
class Rebuilt:
    """Users by what became of them.

    `stored`: committed. `current`: what was there is as good. `differs`: the archive lacks events of the user, or has them in
    another order than the sequence (merged after events had left it that are dated later than some in it), or the user changed
    meanwhile, or is damaged in Redis.
    """

    stored: int = 0
    current: int = 0
    differs: int = 0


async def rebuild(
    histories: Iterable[History], store: StateStore, fold: Fold, model_id: str, on_user: Callable[[int], None] | None = None
) -> Rebuilt:
    """Fold every history from its beginning and commit the states under `model_id`. Raises StorageError, ArchiveError."""
    result = Rebuilt()
    for tenant, some in groupby(histories, lambda history: history.tenant):
        for batch in _batches(some):
            await _rebuild(tenant, batch, store, fold, model_id, result)
            if on_user is not None:
                on_user(len(batch))
    return result


async def _rebuild(tenant: str, batch: list[History], store: StateStore, fold: Fold, model_id: str, result: Rebuilt) -> None:
    try:
        there = await store.load(tenant, _NO_MODEL, [history.user_id for history in batch])
    except (OneOfManyError, DamagedError):  # which is in the log
        if len(batch) == 1:
            result.differs += 1
            return
        for history in batch:
            await _rebuild(tenant, [history], store, fold, model_id, result)
        return
    work = []
    for history, user in zip(batch, there, strict=True):
        if user.meta is None or user.meta.epoch != history.epoch or history.n != len(history.events):
            result.differs += bool(history.events)
            continue
        # Where both have an event it must be the same one: a state is the fold of the sequence, whatever the archive says.
        both = history.events[user.tail_start :]
        if len(history.events) < user.tail_start or [encode_event(e) for e in both] != [
            encode_event(e) for e in user.tail[: len(both)]
        ]:
            result.differs += 1
            continue
        newer = user.tail[len(both) :]
        events = [*history.events, *newer]
        if events:
            work.append((history.user_id, Unfolded(history.epoch, user.meta.attributes, None, events, 0)))
    if not work:
        return
    states = dict(zip((user_id for user_id, _ in work), fold([one for _, one in work]), strict=True))
    for _ in range(3):  # events may come in between
        blobs = [(user_id, deflate(blob)) for user_id, (_, blob) in states.items()]
        results = await store.commit_many(tenant, model_id, blobs)
        again = []
        for user_id, outcome in zip(list(states), results, strict=True):
            if outcome == "stored":
                result.stored += 1
                del states[user_id]
            else:
                again.append(user_id)
        if not again:
            return
        held = [Held(states[user_id][0].epoch, states[user_id][0].applied) for user_id in again]
        for user_id, own, user in zip(again, held, await store.load(tenant, model_id, again, held), strict=True):
            if not user.held or user.meta is None:
                result.differs += 1
                del states[user_id]
            elif user.tail:
                unfolded = Unfolded(own.epoch, user.meta.attributes, states[user_id][1], user.tail, own.applied)
                (states[user_id],) = fold([unfolded])
            else:
                result.current += 1
                del states[user_id]
        if not states:
            return
    result.differs += len(states)


def _batches(histories: Iterable[History]) -> Iterator[list[History]]:
    batch: list[History] = []
    events = 0
    for history in histories:
        if batch and (len(batch) == _USERS or events + len(history.events) > _EVENTS):
            yield batch
            batch, events = [], 0
        batch.append(history)
        events += len(history.events)
    if batch:
        yield batch
