"""However far each partition's log is archived when a merge is told in two of them, each event is there once, for every
reader."""

from __future__ import annotations

import random
from collections import Counter
from itertools import groupby

import polars as pl
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from log_world import Fields, LogWorld, place

from app.archive.columns import to_table
from app.archive.moves import Move
from app.archive.record import Record, parse
from app.archive.replay import Life, Replay
from app.state.events import StoredEvent
from model.data.importers.archive import _COLUMNS, _in_force

USERS = [f"user {n}" for n in range(5)]


def parsed(script: list[Fields], ms: int) -> list[Record]:
    def fields(record: Fields) -> dict[bytes, bytes]:
        return {name.encode(): value if isinstance(value, bytes) else str(value).encode() for name, value in record.items()}

    return [parse(place(record)[0], b"%d-%d" % (ms, seq), fields(record)) for seq, record in enumerate(script)]


def lived(pick: random.Random, steps: int, counted: bool) -> list[list[Record]]:
    """The records of each script of a small world; `counted`: as this version writes them."""
    world, scripts = LogWorld(pick.randrange(2**32)), []

    def event() -> StoredEvent:
        return StoredEvent("view", pick.randrange(1_000), f"item {pick.getrandbits(64)}")

    for _ in range(steps):
        free = [name for name in USERS if world._user("default", name).to is None]
        user, what = pick.choice(free), pick.random()
        if what < 0.6:
            scripts.append(world.event(user, event()))
        elif what < 0.7:
            scripts.append(world.rewrite(user, [(event(), None) for _ in range(pick.randrange(3))]))
        elif what < 0.8:
            scripts.append(world.attributes(user, {"country": "DE"}))
        elif len(free) > 1 and world._user("default", user).epoch:
            scripts += world.merge(user, pick.choice([name for name in free if name != user]))
    for script in scripts:
        if not counted:
            script[0].pop("n" if script[0]["k"] == "s" else "", None)
    return [parsed(script, ms) for ms, script in enumerate(scripts)]


def lives(records: list[Record]) -> dict[str, Life]:
    moves: dict[tuple[str, str], list[Move]] = {}
    for record in records:
        if record.kind == "s" and record.other:
            assert record.event_id is not None
            epoch = bytes.fromhex(record.event_id.removeprefix("d:"))
            moves.setdefault(("default", record.other), []).append(Move(record.ms, record.user_id, epoch, record.count, record.n))
    found = {}
    records = sorted(records, key=lambda record: record.user_id)
    for user, own in groupby(records, lambda record: record.user_id):
        replay = Replay("default", user, moves=moves)
        for record in own:
            replay.apply(record)
        replay.finish()
        found[user] = replay.life
    return found


def is_a_gap(scripts: list[list[Record]], records: list[Record]) -> bool:
    """Whether somebody's events came to a third user before the archive has any record of it that they came to the second one,
    or they came to a fourth: docs/adr/0006-archive.md."""
    there = {(r.kind, r.partition, r.ms) for r in records}
    brought: dict[str, dict[int, str]] = {}  # by user: merges, and into whom
    merges = [script[0] for script in scripts if script and script[0].kind == "s" and script[0].other]
    moved = {r.ms - 1: ("m", r.partition, r.ms) in there for script in scripts for r in script if r.kind == "m"}
    for s in merges:
        own = brought.get(s.other, {})
        for merge, target in own.items():
            if merge_there(merges, merge, there) or ("s", s.partition, s.ms) not in there:
                continue
            if not moved[merge] or target != s.other:
                return True
        brought.setdefault(s.user_id, {}).update(own | {s.ms: s.user_id})
    return False


def merge_there(merges: list[Record], merge: int, there: set[tuple[str, int, int]]) -> bool:
    return any(s.ms == merge and ("s", s.partition, s.ms) in there for s in merges)


def holder(found: dict[str, Life], user: str) -> str:
    while user in found and (to := found[user].moved_to) is not None:
        user = to
    return user


def of_training(records: list[Record]) -> list[tuple[str, str]]:
    rows = pl.DataFrame(pl.from_arrow(to_table(records))).select(list(_COLUMNS)).cast(_COLUMNS)
    rows = _in_force(rows.sort("partition", "ms", "seq"))
    return sorted(rows.filter(pl.col("kind").is_in(["e", "h"])).select("user_id", "item_id").iter_rows())


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 40))
def test_each_event_that_is_archived_counts_once_wherever_each_partition_ends(seed: int, steps: int):
    pick = random.Random(seed)
    scripts = lived(pick, steps, counted=True)
    ends = {number: pick.randrange(steps + 2) for number in {script[0].partition for script in scripts if script}}
    whole = pick.random() < 0.5  # one partition lags alone
    lagging = pick.choice(sorted(ends)) if ends else 0
    records = [r for s in scripts for r in s if r.ms < ends[r.partition] or (whole and r.partition != lagging)]
    assume(records and not is_a_gap(scripts, records))
    found = lives(records)
    of_replay = sorted((holder(found, user), str(e.item_id)) for user, life in found.items() for e, _ in life.events)
    archived = {r.event.item_id for r in records if r.event is not None}
    assert Counter(item for _, item in of_replay) == Counter(archived)
    assert of_training(records) == of_replay


@pytest.mark.parametrize("seed", range(20))
def test_so_it_is_in_logs_of_older_versions(seed: int):
    pick = random.Random(seed)
    scripts = lived(pick, 30, counted=False)
    records = [r for s in scripts for r in s if r.ms < 15 or r.partition % 2 == seed % 2]
    if is_a_gap(scripts, records):
        return
    found = lives(records)
    of_replay = sorted((holder(found, user), str(e.item_id)) for user, life in found.items() for e, _ in life.events)
    assert Counter(item for _, item in of_replay) == Counter({r.event.item_id for r in records if r.event is not None})
    assert of_training(records) == of_replay


@pytest.mark.parametrize("ahead", ["source", "target"])
@pytest.mark.parametrize("archived", range(9))
def test_what_had_left_the_sequence_before_is_there_once_too(archived: int, ahead: str):
    world = LogWorld()
    scripts = [parsed(world.event("source", StoredEvent("view", n, f"item {n}")), n) for n in range(8)]
    del world.users["default", "source"].events[:5]  # a sequence of three
    scripts += [parsed(script, 8 + n) for n, script in enumerate(world.merge("source", "target"))]
    records = [r for s in scripts for r in s if r.user_id == ahead or r.ms < (archived if ahead == "target" else 0)]
    found = lives(records)
    of_replay = sorted((holder(found, user), str(e.item_id)) for user, life in found.items() for e, _ in life.events)
    assert of_replay == of_training(records)
    last = {*range(8)} if ahead == "source" else {*range(archived), 5, 6, 7}
    assert of_replay == [("target", f"item {n}") for n in sorted(last)]
