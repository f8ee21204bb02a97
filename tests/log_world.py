"""Users whose lives are written to the event log as the service's scripts write them, beside a plain model of what they mean."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

import msgspec

from app.state.events import StoredEvent, encode_event
from app.state.keys import partition, user_keys

Fields = dict[str, Any]


@dataclass
class User:
    """What Redis would hold of a user, without bounds."""

    epoch: bytes = b""
    n: int = 0
    events: list[tuple[StoredEvent, str | None]] = field(default_factory=list)
    attributes: dict[str, str] = field(default_factory=dict)
    ids: list[str] = field(default_factory=list)
    to: str | None = None
    marks: list[str] = field(default_factory=list)


class LogWorld:
    """Each method changes a user and returns the records that one script would add, with the partition they belong to."""

    def __init__(self, seed: int = 0) -> None:
        self.random = random.Random(seed)
        self.users: dict[tuple[str, str], User] = {}
        self.gone: dict[tuple[str, str], int] = {}
        self.rested: dict[tuple[str, str], list[StoredEvent]] = {}  # what users had done when they were let go for being idle

    def live(self) -> dict[tuple[str, str], User]:
        return {key: user for key, user in self.users.items() if user.epoch}

    def event(self, user_id: str, event: StoredEvent, event_id: str | None = None, tenant: str = "default") -> list[Fields]:
        user = self._user(tenant, user_id)
        user.epoch = user.epoch or self._epoch()
        user.n += 1
        user.events.append((event, event_id))
        user.ids += [event_id] if event_id else []
        packed = {"e": encode_event(event), "i": event_id or "", "n": user.n, "p": user.epoch}
        return [{"k": "e"} | _names(tenant, user_id) | packed]

    def rewrite(
        self,
        user_id: str,
        events: list[tuple[StoredEvent, str | None]],
        origin: str = "",
        tenant: str = "default",
        mark: str = "",
        origin_n: int = 0,
    ) -> list[Fields]:
        user = self._user(tenant, user_id)
        user.epoch = self._epoch()
        user.events += events
        user.events.sort(key=lambda pair: pair[0].time_ms)
        user.n += len(events)
        user.ids += [event_id for _, event_id in events if event_id]
        head = {"k": "s"} | _names(tenant, user_id) | {"p": user.epoch, "c": len(events), "o": _text(origin), "n": origin_n}
        if mark:
            head["i"] = _text(mark)
            user.marks.append(mark)
        rest = [
            {"k": "h"} | _names(tenant, user_id) | {"e": encode_event(event), "i": i or "", "n": 0, "p": user.epoch}
            for event, i in events
        ]
        return [head, *rest]

    def attributes(self, user_id: str, attributes: dict[str, str], tenant: str = "default") -> list[Fields]:
        user = self._user(tenant, user_id)
        user.epoch = self._epoch()
        user.attributes = attributes
        return [{"k": "a"} | _names(tenant, user_id) | {"a": msgspec.msgpack.encode(attributes), "p": user.epoch}]

    def erase(self, user_id: str, at_ms: int = 1_700_000_000_000, tenant: str = "default") -> list[Fields]:
        self.users.pop((tenant, user_id), None)
        self.rested.pop((tenant, user_id), None)
        for alias in [key for key, user in self.users.items() if key[0] == tenant and user.to == user_id]:
            del self.users[alias]  # it would keep the name
        self.gone[tenant, user_id] = at_ms
        return [{"k": "x"} | _names(tenant, user_id) | {"p": "", "g": at_ms}]

    def expire(self, user_id: str, tenant: str = "default") -> list[Fields]:
        user = self.users.pop((tenant, user_id))
        self.rested.setdefault((tenant, user_id), []).extend(event for event, _ in user.events)
        return [{"k": "r"} | _names(tenant, user_id) | {"p": user.epoch}]

    def merge(self, source: str, target: str, tenant: str = "default") -> list[list[Fields]]:
        """The records of the two scripts, in their order: one of the target's partition, one of the source's."""
        user = self._user(tenant, source)
        events, mark = list(user.events), f"d:{user.epoch.hex()}"
        written = self.rewrite(target, events, origin=source, tenant=tenant, mark=mark, origin_n=user.n)
        self.users[tenant, source] = User(to=target, marks=self._user(tenant, source).marks)
        return [written, [{"k": "m"} | _names(tenant, source) | {"o": _text(target), "c": len(events), "p": ""}]]

    def random_event(self) -> StoredEvent:
        pick = self.random
        return StoredEvent(
            type=pick.choice(["view", "purchase"]),
            time_ms=pick.randrange(1_600_000_000_000, 1_600_000_001_000),
            item_id=pick.choice([None, "ü", f"item {pick.randrange(50)}"]),
            value=pick.choice([None, 1.0, 0.1, -0.5]),
            text=pick.choice([None, "words\n"]),
            context=pick.choice([None, {}, {"a": 1, "b": None, "c": 0.1, "d": True, "é": "x"}]),
        )

    def step(self, users: int = 20) -> list[list[Fields]]:
        """Something happens to somebody: the records of each script that ran."""
        pick = self.random
        user, other = (f"user {pick.randrange(users)}" for _ in range(2))
        if self._user("default", user).to is not None:
            return []
        what = pick.random()
        if what < 0.8:
            return [self.event(user, self.random_event(), pick.choice([None, f"id {pick.randrange(10**9)}"]))]
        if what < 0.88:
            return [self.rewrite(user, [(self.random_event(), None) for _ in range(pick.randrange(4))])]
        if what < 0.94:
            return [self.attributes(user, {"country": pick.choice(["DE", "FR"])})]
        if what < 0.96 and self._user("default", user).epoch:
            return [self.expire(user)]
        if what < 0.98 or user == other or self._user("default", other).to is not None:
            everybody = [user]  # and who was merged into it, at whatever remove
            for one in everybody:
                everybody += [alias for (_, alias), known in self.users.items() if known.to == one]
            return [self.erase(one) for one in everybody]
        return self.merge(user, other)

    def _user(self, tenant: str, user_id: str) -> User:
        return self.users.setdefault((tenant, user_id), User())

    def _epoch(self) -> bytes:
        return self.random.randbytes(8)


def place(record: Fields) -> tuple[int, str]:
    """Partition and stream of a record."""
    tenant, user = record["t"].decode("utf-8", "surrogatepass"), record["u"].decode("utf-8", "surrogatepass")
    return int(partition(tenant, user), 16), user_keys(tenant, user).log


def add(client: Any, script: list[Fields]) -> list[tuple[int, str]]:
    """Add the records of one script to the log, all or none; returns the partition and stream id of each."""
    if not script:
        return []
    number, stream = place(script[0])
    pipeline = client.pipeline(transaction=True)
    for record in script:
        pipeline.xadd(stream, record)
    return [(number, entry.decode()) for entry in pipeline.execute()]


def _names(tenant: str, user_id: str) -> Fields:
    return {"t": _text(tenant), "u": _text(user_id)}


def _text(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")
