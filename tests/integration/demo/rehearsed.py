"""A rehearsal made by hand: three customers, four questions. Also what the stand-in for the trainer writes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

DAY_MS = 86_400_000
CUT_MS = 1_300_000_000_000

META = {"dataset": "by hand", "k": 20, "cut_ms": CUT_MS, "users": 3, "queries": 4, "events": 4}


def write_rehearsal(folder: Path) -> None:
    """meta.json, histories.jsonl, steps.jsonl and titles.json, on the items of the tiny bundle."""
    folder.mkdir(parents=True, exist_ok=True)
    bought = [_event(n, CUT_MS - (10 - n) * DAY_MS, f"b{n}") for n in range(6)]
    viewed = [_event(n, CUT_MS - (10 - n) * DAY_MS, None, "view") for n in range(6)]
    histories = [
        {"user_id": "regular", "attributes": {"country": "France"}, "events": bought + viewed},
        {"user_id": "rare", "attributes": {}, "events": [_event(7, CUT_MS - DAY_MS, "c0"), _event(8, CUT_MS - DAY_MS, "c0")]},
        {"user_id": "new", "attributes": {"country": "Norway"}, "events": []},
    ]
    steps = [
        _query("regular", CUT_MS, 0, 9),
        _events("regular", _event(0, CUT_MS, "r") | {"event_id": "r0"}, _event(9, CUT_MS, "r") | {"event_id": "r1"}),
        _query("new", CUT_MS + 1, 3),
        _events("new", _event(3, CUT_MS + 1, "n") | {"event_id": "n0"}),
        _query("regular", CUT_MS + DAY_MS, 2, 3, 4),
        _events("regular", _event(2, CUT_MS + DAY_MS, "s") | {"event_id": "r2"}),
        _query("new", CUT_MS + 2 * DAY_MS, 5),
    ]
    (folder / "meta.json").write_text(json.dumps(META))
    (folder / "histories.jsonl").write_text("".join(json.dumps(history) + "\n" for history in histories))
    (folder / "steps.jsonl").write_text("".join(json.dumps(step) + "\n" for step in steps))
    (folder / "titles.json").write_text(json.dumps({f"item-{row:03d}": f"Thing {row}" for row in range(60)}))


def _event(item: int, at_ms: int, basket: str | None, type: str = "purchase") -> dict[str, Any]:
    event = {"type": type, "timestamp": at_ms, "item_id": f"item-{item:03d}", "quantity": 2.0}
    return event if basket is None else event | {"basket_id": basket}


def _query(user_id: str, at_ms: int, *items: int) -> dict[str, Any]:
    return {"query": {"user_id": user_id, "as_of": at_ms, "targets": [f"item-{item:03d}" for item in items]}}


def _events(user_id: str, *events: dict[str, Any]) -> dict[str, Any]:
    return {"events": [{"user_id": user_id} | event for event in events]}
