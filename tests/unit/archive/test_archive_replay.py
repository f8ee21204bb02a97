from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from log_world import Fields, LogWorld, place

from app.archive.columns import EVENT_FIELDS, SCHEMA, from_text, to_records, to_table, to_text
from app.archive.moves import Move
from app.archive.record import Record, parse
from app.archive.replay import Life, Replay
from app.errors import ArchiveError
from app.state.events import StoredEvent


def entry(record: Fields) -> dict[bytes, bytes]:
    """A record's fields as Redis gives them back."""
    return {name.encode(): value if isinstance(value, bytes) else str(value).encode() for name, value in record.items()}


def parsed(script: list[Fields], ms: int) -> list[Record]:
    return [parse(place(record)[0], b"%d-%d" % (ms, seq), entry(record)) for seq, record in enumerate(script)]


def lives(records: list[Record], window: int = 0) -> dict[tuple[str, str], Life]:
    moves: dict[tuple[str, str], list[Move]] = {}
    for record in records:
        if record.kind == "s" and record.other and len(mark := record.event_id or "") > 2:
            move = Move(record.ms, record.user_id, bytes.fromhex(mark.removeprefix("d:")), record.count, record.n)
            moves.setdefault((record.tenant, record.other), []).append(move)
    replays: dict[tuple[str, str], Replay] = {}
    for record in records:
        who = (record.tenant, record.user_id)
        replays.setdefault(who, Replay(*who, window, moves)).apply(record)
    for replay in replays.values():
        replay.finish()
    return {key: replay.life for key, replay in replays.items()}


def event(n: int, **more: Any) -> StoredEvent:
    return StoredEvent("view", n, f"item {n}", **more)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.integers(0, 120))
def test_any_life_replayed_from_columns_is_the_life_that_was_lived(seed, steps):
    world = LogWorld(seed)
    records = [r for ms in range(steps) for script in world.step(users=4) for r in parsed(script, ms)]
    table = to_table(records)
    assert list(to_records(table)) == records
    found = lives(list(to_records(table)), window=10**6)
    for key, user in world.users.items():
        life = found.get(key, Life())
        assert (life.epoch, life.events, life.attributes, life.moved_to) == (user.epoch, user.events, user.attributes, user.to)
        assert (life.n, life.marks) == (user.n, user.marks)
        assert list(life.ids) == list(dict.fromkeys(reversed(user.ids)))[::-1]
    assert {key for key, life in found.items() if life.epoch} == set(world.live())


@settings(max_examples=200, deadline=None)
@given(st.text(st.characters(exclude_categories=())))
def test_any_string_survives_as_an_id(text):
    column = to_text(text)
    column.encode("utf-8")  # strict: any reader of Parquet takes it
    assert from_text(column) == text


def test_ids_that_are_no_unicode_never_collide():
    ids = ["\ud800", "\ufffeed a0 80", "\ufffeeda080", "a"]
    assert len({to_text(i) for i in ids}) == len(ids)


def test_every_field_of_an_event_has_a_column():
    assert set(StoredEvent.__struct_fields__) == set(EVENT_FIELDS) <= set(SCHEMA.names)


@pytest.mark.parametrize("number", [-0.0, 1e300, 0.1, 5e-324])
def test_numbers_and_context_come_back_bit_for_bit(number):
    world = LogWorld()
    context = {"i": 2**63 - 1, "j": -(2**63), "f": number, "w": 1.0, "t": True, "n": None, "s": "é\u2028"}
    full = StoredEvent("like", 2**45, "ü\n", value=number, price=number, text="t", recommendation_id="r", context=context)
    (record,) = to_records(to_table(parsed(world.event("a", full, "id"), 1)))
    assert repr(record.event) == repr(full)
    assert record.event_id == "id"


def test_a_tail_that_redis_lost_and_wrote_again_is_there_once():
    world = LogWorld()
    first = [r for n in range(3) for r in world.event("a", event(n), f"id {n}")]
    # Redis comes back without the last two, and clients send one of them again.
    user = world.users["default", "a"]
    user.n, user.events = 1, user.events[:1]
    again = world.event("a", event(2), "id 2")
    life = lives(parsed([*first, *again], 1), window=10)["default", "a"]
    assert life.events == user.events
    assert life.n == 2
    assert list(life.ids) == ["id 0", "id 2"]  # id 1 is not known any more: its retry must be stored


def test_a_user_whose_first_events_were_never_archived_keeps_redis_count():
    world = LogWorld()
    world.event("a", event(0))
    life = lives(parsed(world.event("a", event(1)), 1))["default", "a"]
    assert (life.n, life.events) == (2, [(event(1), None)])


def test_events_of_one_time_keep_their_order_with_what_was_there_first():
    world = LogWorld()
    script = [*world.event("a", event(5, text="there")), *world.rewrite("a", [(event(5, text="new"), None), (event(1), None)])]
    life = lives(parsed(script, 1))["default", "a"]
    assert [(e.time_ms, e.text) for e, _ in life.events] == [(1, None), (5, "there"), (5, "new")]


def test_the_mark_of_an_import_is_remembered_until_the_user_is_erased():
    world = LogWorld()
    script = world.rewrite("a", [(event(1), None)], mark="import:1")
    assert lives(parsed(script, 1))["default", "a"].marks == ["import:1"]
    assert lives(parsed([*script, *world.erase("a")], 1))["default", "a"].marks == []


def test_a_rewritten_sequence_that_breaks_off_is_refused():
    script = LogWorld().rewrite("a", [(event(1), None), (event(2), None)])
    with pytest.raises(ArchiveError, match="of a rewritten sequence"):
        lives(parsed(script[:2], 1))


def test_of_a_rewritten_sequence_whose_beginning_was_cut_off_there_is_what_is_left():
    # By a service without an archive; what came then has its numbers from before.
    world = LogWorld()
    script = [*world.rewrite("a", [(event(n), None) for n in (1, 5, 9)]), *world.event("a", event(7))]
    life = lives(parsed(script[2:], 1))["default", "a"]
    assert [one.time_ms for one, _ in life.events] == [5, 9, 7]
    assert life.n == 4


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"k": "q"}, "unknown kind 'q'"),
        ({"k": None}, "unknown kind ''"),
        ({"n": None}, "has no field 'n'"),
        ({"n": "many"}, "is damaged"),
        ({"e": b"\xc1"}, "is damaged"),
        ({"u": b"\xff"}, "is damaged"),
    ],
)
def test_a_record_that_cannot_be_understood_is_named(change, said):
    (record,) = LogWorld().event("a", event(1))
    fields = {name: value for name, value in (record | change).items() if value is not None}
    with pytest.raises(ArchiveError, match=f"record 7-1 .*{said}"):
        parse(0x1F, b"7-1", entry(fields))


def test_fields_of_a_later_version_are_kept():
    (record,) = LogWorld().event("a", event(1))
    (kept,) = to_records(to_table([parse(0, b"7-1", entry(record | {"later": b"\xff"}))]))
    assert kept.extra == {"later": "ff"}
