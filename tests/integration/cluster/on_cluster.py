"""What tests on a cluster share beside fixtures."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count

from redis_cluster import RedisCluster

from app.errors import StorageError
from app.state import keys
from app.state.events import StoredEvent, decode_event
from app.state.redis import RedisStore
from app.state.store import Append
from app.state.transport import ClusterTransport


def users_of(pp: str, number: int) -> list[str]:
    """So many users of one partition: they share a slot."""
    found: list[str] = []
    for n in count():
        if keys.partition("default", f"user {n}") == pp:
            found.append(f"user {n}")
            if len(found) == number:
                return found
    raise AssertionError


async def close(store: RedisStore) -> None:
    """Close a store with all its connections."""
    await store.close()
    if isinstance(store._transport, ClusterTransport):
        # redis-py's aclose() does nothing for a client that was not initialized as a whole.
        await store._transport._cluster.nodes_manager.aclose()
        await store._transport._cluster.nodes_manager.aclose("startup_nodes")


@dataclass
class Writers:
    """Concurrent writers, each of whom sends an event until it is acknowledged and then the next, until `stop`.

    Attributes:
        sent, acknowledged: event ids, which are also the events' basket ids, -> user.
        refusals: calls that got a StorageError; any other error ends the writer and is raised by `stop`.
    """

    store: RedisStore
    users: Sequence[str]
    tasks: list[asyncio.Task[None]] = field(default_factory=list)
    sent: dict[str, str] = field(default_factory=dict)
    acknowledged: dict[str, str] = field(default_factory=dict)
    refusals: int = 0
    stopping: bool = False

    def start(self, writers: int = 4) -> None:
        self.tasks = [asyncio.create_task(self._write(n)) for n in range(writers)]

    async def stop(self) -> None:
        self.stopping = True
        await asyncio.gather(*self.tasks)

    async def more(self, events: int, seconds: float = 15) -> None:
        """Return when so many more are acknowledged."""
        enough = len(self.acknowledged) + events
        async with asyncio.timeout(seconds):
            while len(self.acknowledged) < enough:
                assert not any(task.done() for task in self.tasks), "a writer has ended"
                await asyncio.sleep(0.005)

    async def _write(self, number: int) -> None:
        chance = random.Random(number)
        for n in count():
            users = chance.sample(self.users, min(len(self.users), 3))
            ids = [f"{number}-{n}-{user}" for user in users]
            self.sent.update(zip(ids, users, strict=True))
            batches = [Append(user, [numbered(id_)], [id_]) for user, id_ in zip(users, ids, strict=True)]
            while True:
                if self.stopping:
                    return
                try:
                    found = await self.store.append("default", batches)
                except StorageError as error:
                    found = [error for _ in batches]
                failed = [one for one in found if isinstance(one, Exception)]
                self.acknowledged |= {
                    id_: user for id_, user, one in zip(ids, users, found, strict=True) if not isinstance(one, Exception)
                }
                if not failed:
                    break
                for error in failed:
                    if not isinstance(error, StorageError):
                        raise error
                self.refusals += 1
                await asyncio.sleep(0.02)

    def check(self, cluster: RedisCluster) -> tuple[set[str], set[str]]:
        """(acknowledged events that are not in their user's sequence and in the log, events that are in one of them twice)."""
        stored: Counter[str] = Counter()
        logged: Counter[str] = Counter()
        for user in self.users:
            user_keys = keys.user_keys("default", user)
            client = cluster.client_of(user_keys.seq)
            stored.update(str(decode_event(event).basket_id) for event in client.lrange(user_keys.seq, 0, -1))
            entries = [fields for _, fields in client.xrange(user_keys.log) if fields[b"u"] == user.encode()]
            logged.update(fields[b"i"].decode() for fields in entries)
        lost = {id_ for id_ in self.acknowledged if not stored[id_] or not logged[id_]}
        return lost, {id_ for counts in (stored, logged) for id_, times in counts.items() if times > 1}


def numbered(id_: str) -> StoredEvent:
    """An event that can be told from all others in a sequence."""
    return StoredEvent(type="purchase", time_ms=1_000, item_id="item", basket_id=id_)
