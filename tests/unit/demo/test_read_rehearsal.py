"""Reading what is replayed."""

from __future__ import annotations

import json

import pytest

from app.demo.errors import DemoError
from app.demo.rehearsal import read_histories, read_meta, read_steps, read_titles
from app.ingest.schema import Event
from app.state.events import StoredEvent


def query(user="u", at=5):
    return {"query": {"user_id": user, "as_of": at, "targets": ["a"]}}


def events(*users, at=6):
    return {
        "events": [
            {"user_id": user, "event_id": f"{user}{at}{n}", "type": "purchase", "timestamp": at, "item_id": "a"}
            for n, user in enumerate(users)
        ]
    }


def write(folder, name, *lines):
    (folder / name).write_text("".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines))


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('{"query": {"user_id": "u"', "truncated"),
        ({"query": {"user_id": "u", "targets": ["a"]}}, "as_of"),
        ({"query": {"user_id": "u", "as_of": "now", "targets": ["a"]}}, "as_of"),
        ({}, "either `query` or `events`"),
        (query() | events("u"), "either `query` or `events`"),
        ({"events": []}, "events of one customer"),
        (events("u", "v"), "events of one customer"),
        ({"events": [events("u")["events"][0] | {"colour": "red"}]}, "colour"),
        (b"\xff".decode("latin-1"), "malformed"),
    ],
)
def test_a_damaged_step_names_its_file_and_line(tmp_path, line, says):
    write(tmp_path, "steps.jsonl", query(), line)
    with pytest.raises(DemoError) as caught:
        read_steps(tmp_path)
    assert caught.value.detail.startswith(f"{tmp_path}/steps.jsonl, line 2: ")
    assert says in caught.value.detail


def test_a_damaged_history_names_its_file_and_line(tmp_path):
    write(tmp_path, "histories.jsonl", {"user_id": "u", "attributes": {}, "events": []}, "{}")
    histories = read_histories(tmp_path)
    assert next(histories).user_id == "u"
    with pytest.raises(DemoError, match=r"histories\.jsonl, line 2: .*user_id"):
        next(histories)


@pytest.mark.parametrize(("read", "name"), [(read_meta, "meta.json"), (read_titles, "titles.json"), (read_steps, "steps.jsonl")])
def test_a_missing_file_is_named(tmp_path, read, name):
    with pytest.raises(DemoError, match=f"{name}: cannot be read: No such file"):
        read(tmp_path)


def test_a_rehearsal_without_a_question_is_refused(tmp_path):
    write(tmp_path, "steps.jsonl", events("u"))
    with pytest.raises(DemoError, match="no question"):
        read_steps(tmp_path)


def test_a_limit_ends_the_replay_with_the_events_after_the_last_question(tmp_path):
    write(tmp_path, "steps.jsonl", query(), events("u"), events("v"), query("v", 8), events("v", at=9), events("w"), query())
    asked = [(step.query.user_id if step.query else step.events[0].user_id) for step in read_steps(tmp_path, limit=2)]
    assert asked == ["u", "u", "v", "v", "v"]
    assert len(read_steps(tmp_path)) == 7


def test_an_event_is_stored_by_an_import_just_as_the_service_stores_it(tmp_path):
    # Every field of a wire event but those that only a live service fills.
    wire = {"type": "purchase", "timestamp": 7, "item_id": "a", "value": 1.5, "quantity": 2.0, "price": 0.5}
    wire |= {"platform": "app", "session_id": "s", "basket_id": "b", "text": "t"}
    write(tmp_path, "histories.jsonl", {"user_id": "u", "attributes": {}, "events": [wire]})
    (history,) = read_histories(tmp_path)
    fields = {name: value for name, value in wire.items() if name != "timestamp"}
    assert history.events[0].stored() == StoredEvent(time_ms=7, **fields)
    assert set(wire) == set(Event.model_fields) - {"user_id", "event_id", "context", "recommendation_id"}
