"""What is left after the faults, against what the clients were told."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Final

import redis

from app.state import keys
from app.state.codec import peek
from app.state.events import decode_event
from loadtests.connection import Connection, get
from loadtests.errors import BenchError
from loadtests.fault_load import Told, recommendations

TENANT: Final = "default"
SCORE: Final = 1e-3
"""How far two scores of one item may lie apart."""
GAP: Final = 2e-4
"""Items whose scores are nearer than this may change places."""

_CHUNK: Final = 1_000
_ASKING: Final = 2  # connections
_MOST_EXAMPLES: Final = 5


@dataclass
class Findings:
    """Counts of what is wrong; `examples` of each kind."""

    counts: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    def add(self, kind: str, example: str) -> None:
        self.counts[kind] += 1
        if len(self.examples[kind]) < _MOST_EXAMPLES:
            self.examples[kind].append(example)


def check_events(store: redis.Redis, told: Sequence[Told]) -> Findings:
    """Every acknowledged event once in its user's sequence and once in the log, every other at most once, own users in order.

    Counts: lost, doubled, lost_from_log, doubled_in_log, unknown (stored, but sent by nobody, or for another user), reordered,
    miscounted (the user's count of events is not the length of its sequence).
    """
    findings = Findings()
    users = {event_id: user for one in told for event_id, user in one.events.items()}
    acknowledged = set[str]().union(*(one.acknowledged for one in told))
    stored: Counter[str] = Counter()
    for user, sequence in _sequences(store, sorted(set(users.values()))):
        stored.update(sequence)
        for event_id in sequence:
            if users.get(event_id) != user:
                findings.add("unknown", f"{event_id} of {user}")
        if user.startswith("own"):
            # One client alone wrote it, and began an event only when those before were acknowledged.
            numbers = [int(event_id.partition("-")[2]) for event_id in dict.fromkeys(sequence)]
            if numbers != sorted(numbers):
                findings.add("reordered", user)
        counted = int(store.hget(keys.user_keys(TENANT, user).meta, "n") or 0)
        if counted != len(sequence):
            findings.add("miscounted", f"{user}: counts {counted}, has {len(sequence)}")
    for name, found in (("", stored), ("log", _logged(store))):
        for event_id in acknowledged:
            if not found[event_id]:
                findings.add("lost_from_log" if name else "lost", f"{event_id} of {users[event_id]}")
        for event_id, times in found.items():
            if times > 1:
                findings.add("doubled_in_log" if name else "doubled", f"{event_id} of {users.get(event_id)}: {times} times")
    return findings


def check_states(store: redis.Redis, users: Sequence[str]) -> tuple[int, Findings]:
    """How many states there are; counts what knows events that are not there (`ahead`) or is of another epoch (`foreign`)."""
    findings, states = Findings(), 0
    metas = {keys.encode_id(user): keys.user_keys(TENANT, user).meta for user in users}
    for key in store.scan_iter(match="lw:*:state:*", count=_CHUNK):
        blob: bytes | None = store.get(key)
        assert blob is not None
        header = peek(blob)
        user = key.decode().rpartition(":")[2]
        appended, epoch = store.hmget(metas[user], "n", "e")
        states += 1
        if header.epoch != epoch:
            findings.add("foreign", user)
        elif header.applied > int(appended):
            findings.add("ahead", f"{user}: {header.applied} of {int(appended)}")
    return states, findings


def delete_states(store: redis.Redis) -> int:
    """Delete every state; returns how many there were."""
    states = list(store.scan_iter(match="lw:*:state:*", count=_CHUNK))
    return sum(store.delete(key) for key in states)


def ask_all(port: int, users: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The list of each user. Raises BenchError if one is not answered by the model."""

    def ask(some: Sequence[str]) -> dict[str, dict[str, Any]]:
        answers = {}
        with Connection(port) as connection:
            for user in some:
                answer = connection.ask(get(recommendations(user)))
                if answer.status != 200 or (found := json.loads(answer.body))["degraded"]:
                    raise BenchError(f"no list for {user}: {answer.status} {answer.body[:200]!r}")
                answers[user] = found
        return answers

    with ThreadPoolExecutor(_ASKING) as pool:
        parts = pool.map(ask, [users[n::_ASKING] for n in range(_ASKING)])
        return {user: found for part in parts for user, found in part.items()}


def compare_answers(served: dict[str, dict[str, Any]], rebuilt: dict[str, dict[str, Any]]) -> Findings:
    """`wrong`: lists from the stored states that are not those of states folded from the beginning."""
    findings = Findings()
    for user, answer in served.items():
        if (why := difference(answer, rebuilt[user])) is not None:
            findings.add("wrong", f"{user}: {why}")
    return findings


def difference(one: dict[str, Any], other: dict[str, Any]) -> str | None:
    """What makes two lists of one user different ones, beyond float noise; None if nothing does."""
    for name in ("source", "applied_events", "last_event_time"):
        if one[name] != other[name]:
            return f"{name} {one[name]} and {other[name]}"
    if len(one["items"]) != len(other["items"]):
        return f"{len(one['items'])} and {len(other['items'])} items"
    scores = {item["item_id"]: item["score"] for item in other["items"]}
    for place, (mine, theirs) in enumerate(zip(one["items"], other["items"], strict=True)):
        if abs(mine["score"] - theirs["score"]) > SCORE:
            return f"place {place}: scores {mine['score']} and {theirs['score']}"
        if mine["item_id"] != theirs["item_id"] and abs(scores.get(mine["item_id"], mine["score"]) - theirs["score"]) > GAP:
            return f"place {place}: {mine['item_id']} and {theirs['item_id']}"
    return None


def _sequences(store: redis.Redis, users: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """Each user's event ids (kept as basket_id) in arrival order."""
    for start in range(0, len(users), _CHUNK):
        some = users[start : start + _CHUNK]
        pipeline = store.pipeline(transaction=False)
        for user in some:
            pipeline.lrange(keys.user_keys(TENANT, user).seq, 0, -1)
        for user, packed in zip(some, pipeline.execute(), strict=True):
            yield user, [str(decode_event(event).basket_id) for event in packed]


def _logged(store: redis.Redis) -> Counter[str]:
    """How often each event is in the event log."""
    logged: Counter[str] = Counter()
    for partition in range(keys.PARTITIONS):
        first = "-"
        while entries := store.xrange(f"lw:{{{partition:02x}}}:log", first, count=_CHUNK):
            logged.update(str(decode_event(fields[b"e"]).basket_id) for _, fields in entries if b"e" in fields)
            first = b"(" + entries[-1][0]
    return logged
