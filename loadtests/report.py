"""What a run found, as the file that is kept and as a table for people."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Final

from rich.table import Table

from loadtests.limits import LIMITS, TABLE, Limit
from loadtests.samples import rounded
from loadtests.stand import Part

_MEANINGS: Final = {
    "get_service_p99_ms": "",
    "get_client_p50_ms": "the same as the client sees it, HTTP included",
    "get_client_p99_ms": "",
    "floor_client_p50_ms": "the floor: a constant of the same size after one Redis GET",
    "post_client_p50_ms": "POST one event, as the client sees it",
    "get_after_post_p50_ms": "GET right after a POST, in the service: the event is folded on the way",
    "get_after_post_client_p50_ms": "the same as the client sees it",
    "fold_event_p50_ms": "stage fold of these",
    "get_rps_over_many_users": "GET, closed loop, over all users that the batches met",
    "history_rebuild_long_ms": "first read of the long user after its state is gone",
    "history_rebuild_short_ms": "the same of the short one",
}


def document(about: dict[str, Any], found: Part) -> dict[str, Any]:
    """The file: where it was measured, the table's figures in its order, limits and ingredients of each, then the others.

    A figure that was not measured is null.
    """
    figures = {limit.key: found.figures.get(limit.key) for limit in TABLE}
    # A limit holds of the figure as it is written, so that a reader comes to the same verdict.
    figures = rounded(figures)
    beside = rounded(found.beside)
    limits = {limit.key: limit.describe((figures | beside).get(limit.key)) for limit in LIMITS}
    made_of = {limit.key: found.made_of.get(limit.key) for limit in TABLE}
    return rounded(about) | figures | {"limits": limits, "does_not_count": found.void, "made_of": rounded(made_of)} | beside


def table(whole: dict[str, Any], title: str, *, meanings: bool) -> Table:
    """The figures for people: the table's with their limits, and the others; if asked for, with what each is."""
    shown = Table(title=title, title_justify="left")
    for column in ("figure", "value", "must be", "aim", ""):
        shown.add_column(column, no_wrap=True, justify="right" if column == "value" else "left")
    if meanings:
        shown.add_column("what it is")
    limits = {limit.key: limit for limit in LIMITS}
    rest = [key for key in whole if key in _MEANINGS or key in limits or key.endswith("_p50_ms")]
    for key in dict.fromkeys([limit.key for limit in TABLE] + rest):
        meaning = [_meaning(key, limits.get(key))] if meanings else []
        shown.add_row(key, _text(whole.get(key)), *_judged(limits.get(key), whole.get(key)), *meaning)
    return shown


def write(whole: dict[str, Any], path: Path) -> None:
    """The document as JSON, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(".tmp")
    beside.write_text(json.dumps(whole, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(beside, path)


def _judged(limit: Limit | None, value: float | None) -> tuple[str, str, str]:
    if limit is None:
        return "", "", ""
    aim = "" if limit.aim is None else f"{limit.sense} {_text(limit.aim)}"
    if value is None:
        verdict = "not measured"
    elif not limit.holds(value):
        verdict = "[red]MISSED[/]"
    elif not limit.reaches_aim(value):
        verdict = "[green]pass[/]"
    else:
        verdict = "[bold green]pass, aim[/]" if limit.aim is not None else "[green]pass[/]"
    return f"{limit.sense} {_text(limit.must)}", aim, verdict


def _meaning(key: str, limit: Limit | None) -> str:
    if limit is not None:
        return limit.meaning
    stage = key.removeprefix("get_").removesuffix("_p50_ms")
    return _MEANINGS.get(key, f"stage {stage}")


def _text(value: float | int | None) -> str:
    if value is None:
        return "-"
    if value >= 1_000:
        return f"{value:,.0f}"
    return f"{value:g}" if isinstance(value, int) else f"{value:.3g}" if value < 1 else f"{value:.2f}"
