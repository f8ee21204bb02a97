"""The ring of a user's recent event ids, as append.lua and ring.py keep it in turn, against a plain list."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import count
from typing import Literal

import pytest
import redis
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from app.state import keys
from app.state.ring import EMPTY_RING, remember_ids, ring_ids
from app.state.scripts import script

HEADER_BYTES, ID_BYTES = 16, 8
APPEND = script("append").source

# Hashes that are found across the boundary of two others, and in the zeros of the header: rotations of one another.
HASHES = [
    bytes(8),
    *((bytes(7) + b"\1")[turn:] + (bytes(7) + b"\1")[:turn] for turn in range(8)),
    b"\1" * 8,
    *(b"%08d" % n for n in range(4)),
]

_users = count()


@dataclass(frozen=True)
class Step:
    """Ids that come in one call, at a window. `append` is that of events; `remember` is what a bulk import does with the ring."""

    kind: Literal["append", "remember"]
    window: int
    ids: list[bytes]  # empty: an event without an id


IDS = st.lists(st.sampled_from([b"", *HASHES]), min_size=1, max_size=25)
WINDOWS = st.integers(1, 12)
STEPS = st.one_of(
    st.builds(Step, st.just("append"), st.one_of(WINDOWS, st.just(0)), IDS),
    st.builds(Step, st.just("append"), WINDOWS, IDS),
    st.builds(Step, st.just("remember"), WINDOWS, IDS),
)


def append(raw: redis.Redis, user: str, step: Step) -> str:
    """What append.lua says of each event."""
    of = keys.user_keys("default", user)
    arguments: list[bytes | str | int] = [b"default", user, 1_000_000, step.window, 1_000, b"epoch---", -1, b"", b""]
    for number, event_id in enumerate(step.ids):
        arguments += (b"event", number, event_id, event_id)
    _, flags, *_ = raw.eval(APPEND, 5, of.seq, of.meta, of.ids, of.gone, of.log, *arguments)
    return flags.decode()


class Plain:
    """The ids as a list, the latest last."""

    def __init__(self) -> None:
        self.ids: list[bytes] = []

    def append(self, step: Step) -> str:
        if not step.window:
            return "1" * len(step.ids)
        ids, flags = self.ids[-step.window :], ""
        for one in step.ids:
            if one and one in ids[-step.window :]:
                flags += "0"
            else:
                ids += [one] if one else []
                flags += "1"
        if any(one and flag == "1" for one, flag in zip(step.ids, flags, strict=True)):
            self.ids = ids[-step.window :]  # written with the window of this call: what it gave up stays forgotten
        return flags

    def remember(self, step: Step) -> None:
        new = [one for at, one in enumerate(step.ids) if one not in step.ids[at + 1 :]]
        together = [one for one in self.ids if one not in new] + new
        if len(together) > step.window:
            old, new, latest = self.ids[::-1], step.ids[::-1], []
            while old or new:
                for source in (new, old):
                    one = source.pop(0) if source else None
                    if one is not None and one not in latest:
                        latest.append(one)
            together = latest[: step.window][::-1]
        self.ids = together


def turns(*steps: tuple[int, str]) -> list[Step]:
    return [Step("append", window, [b"%8s" % letter.encode() for letter in letters]) for window, letters in steps]


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(STEPS, min_size=1, max_size=12))
@example(turns((3, "abc"), (3, "d"), (3, "a")))  # a full ring, one over, and what was pushed out
@example(turns((3, "abcd"), (5, "ef"), (5, "bcd")))  # a larger window after the ring has turned
@example(turns((5, "abcdefg"), (2, "f"), (2, "h"), (5, "efg")))  # a smaller one, first without and then with something new
@example(turns((4, "abc"), (4, "defghijk"), (4, "g"), (4, "h")))  # one call that goes round twice
@example(turns((1, "aab"), (1, "b"), (1, "a")))
@example([Step("append", 12, [HASHES[1], HASHES[1], HASHES[0], HASHES[2]]), Step("append", 12, HASHES[:9])])
def test_the_ring_is_a_list_of_the_last_ids(raw: redis.Redis, steps: list[Step]):
    user, plain = f"user {next(_users)}", Plain()
    key = keys.user_keys("default", user).ids
    for step in steps:
        if step.kind == "append":
            assert append(raw, user, step) == plain.append(step)
        else:
            step = Step("remember", step.window, [one for one in step.ids if one])
            plain.remember(step)
            raw.set(key, remember_ids(raw.get(key) or EMPTY_RING, step.ids, step.window))
        ring = raw.get(key) or EMPTY_RING
        assert ring_ids(ring) == plain.ids
        assert len(ring) == HEADER_BYTES + ID_BYTES * len(plain.ids)


def test_of_two_full_rings_the_latest_half_of_each_stays():
    ids = [b"%08d" % n for n in range(20)]
    ring = remember_ids(remember_ids(EMPTY_RING, ids[:10], 10), ids[10:], 10)
    assert set(ring_ids(ring)) == {*ids[5:10], *ids[15:20]}
    assert ring_ids(remember_ids(ring, [], 2)) == [ids[9], ids[19]]


@pytest.mark.parametrize("a_call", [1, 7, 1_000, 2_500])
def test_a_full_ring_takes_its_bytes_and_nothing_more(raw: redis.Redis, a_call: int):
    # Redis doubles a string that grows by its end: a ring that was never written whole would take 16 KB.
    of = keys.user_keys("default", "alice")
    for start in range(0, 5_000, a_call):
        append(raw, "alice", Step("append", 1_000, [b"%08d" % n for n in range(start, start + a_call)]))
    raw.set("like it", bytes(HEADER_BYTES + ID_BYTES * 1_000))
    # The names of the two keys differ, and an allocator has its steps; twice the ring is what must not be.
    assert raw.memory_usage(of.ids) <= raw.memory_usage("like it") + 200
    assert raw.object("encoding", of.ids) == b"raw"
