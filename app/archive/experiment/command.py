"""`longwave experiment NAME`. pyarrow is imported when it runs, and not before."""

from __future__ import annotations

import re
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Final

import typer
from rich.console import Console

from app.archive.commands import ArchiveDir, one_line_errors
from app.errors import ReportError
from app.settings import load_settings

_SPAN: Final = re.compile(r"(\d{1,9}(?:\.\d{1,3})?)\s*(s|min|m|h|d)")
_UNIT_MS: Final = {"s": 1_000, "m": 60_000, "min": 60_000, "h": 3_600_000, "d": 86_400_000}
_PLAIN_WIDTH: Final = 200  # of tables that go into a file or a pipe


def experiment(
    name: Annotated[str, typer.Argument(help="Of the experiment, as requests name it.", show_default=False)],
    archive_dir: ArchiveDir = None,
    since: Annotated[
        str | None, typer.Option(help="Only lists shown from then on: 2026-11-01, or 2026-11-01T08:00:00Z.", show_default=False)
    ] = None,
    until: Annotated[str | None, typer.Option(help="Only lists shown before then.", show_default=False)] = None,
    metric: Annotated[
        list[str] | None,
        typer.Option(
            help="Types of the events that count, each a metric: view,purchase. Without it any event counts.", show_default=False
        ),
    ] = None,
    window: Annotated[str, typer.Option(help="How long after its list was shown an event counts: 90s, 30m, 24h, 7d.")] = "24h",
    expected: Annotated[
        str | None,
        typer.Option(help="Shares that the arms should have, the control first: control=0.5,b=0.5.", show_default=False),
    ] = None,
    experiment_file: Annotated[
        Path | None,
        typer.Option(
            help="The experiment as JSON, as GET /v1/experiments/NAME gives it: shares and control.", show_default=False
        ),
    ] = None,
    control: Annotated[str | None, typer.Option(help="The arm that the others are compared with.", show_default=False)] = None,
    version: Annotated[
        int | None, typer.Option(help="Of the experiment; by default the newest in the archive.", show_default=False)
    ] = None,
    all_versions: Annotated[bool, typer.Option("--all-versions", help="All versions as if they were one.")] = False,
    policy: Annotated[
        Path | None,
        typer.Option(
            help="Parquet or CSV with recommendation_id, item_id, probability: what another policy would have shown; "
            "its click-through is estimated from lists with propensities.",
            show_default=False,
        ),
    ] = None,
    clip: Annotated[float, typer.Option(help="The largest weight of the clipped estimate.")] = 10.0,
    json_file: Annotated[
        Path | None,
        typer.Option("--json", help="Write the report as JSON, too; - writes it in the place of the tables.", show_default=False),
    ] = None,
) -> None:
    """What came of an experiment, from the archive: each arm against the control.

    An event counts if it names a list (recommendation_id) that was reported as shown, has one of the items shown in it, and
    happened within --window after that; an item of a list counts once. Errors are by user, since what one user does hangs
    together. Users who were in more than one arm are left out. docs/experiments.md explains every figure.
    """
    with one_line_errors():
        from app.archive.archive import Archive
        from app.archive.experiment.making import make_report
        from app.archive.experiment.policy import read_policy
        from app.archive.experiment.shares import parse_expected, read_experiment_file
        from app.archive.experiment.show import show, to_json
        from app.archive.experiment.tally import ANY, Question

        if version is not None and all_versions:
            raise ReportError("--version and --all-versions cannot both be")
        if expected is not None and experiment_file is not None:
            raise ReportError("--expected and --experiment-file cannot both be: each says the shares")
        if not 1 <= clip < float("inf"):
            raise ReportError("--clip: expected a weight of at least 1")
        since_ms, until_ms = _time("--since", since), _time("--until", until)
        if since_ms is not None and until_ms is not None and since_ms >= until_ms:
            raise ReportError("--until: expected a time after --since")
        shares = None
        if expected is not None:
            shares = parse_expected(expected)
        elif experiment_file is not None:
            shares = read_experiment_file(experiment_file, name)
        question = Question(
            metrics=_metrics(metric) or (ANY,),
            since_ms=since_ms,
            until_ms=until_ms,
            window_ms=_window(window),
            clip=clip,
            policy=None if policy is None else read_policy(policy),
        )
        settings = load_settings(**({} if archive_dir is None else {"archive_dir": archive_dir}))
        report = make_report(Archive(settings.archive_folder), name, question, version, all_versions, shares, control)
        if json_file == Path("-"):
            sys.stdout.write(to_json(report))
            return
        if json_file is not None:
            try:
                json_file.write_text(to_json(report), encoding="utf-8")
            except OSError as error:
                raise ReportError(f"--json: {json_file} cannot be written: {error.strerror}") from error
        console = Console()
        show(report, console if console.is_terminal else Console(width=_PLAIN_WIDTH))


def _metrics(given: list[str] | None) -> tuple[str, ...]:
    names = [name.strip() for text in given or () for name in text.split(",")]
    if not all(names):
        raise ReportError("--metric: expected event types, for instance view,purchase")
    return tuple(dict.fromkeys(names))


def _window(text: str) -> int:
    found = _SPAN.fullmatch(text.strip())
    span_ms = round(float(found[1]) * _UNIT_MS[found[2]]) if found else 0
    if span_ms <= 0:
        raise ReportError(f"--window: expected a time above 0 such as 90s, 30m, 24h or 7d, found {text!r}")
    return span_ms


def _time(option: str, text: str | None) -> int | None:
    """Unix ms; what names no zone is UTC."""
    if text is None:
        return None
    try:
        moment = datetime.fromisoformat(text.strip())
        return round((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1000)
    except (ValueError, OverflowError):
        raise ReportError(f"{option}: expected a time such as 2026-11-01 or 2026-11-01T08:00:00Z, found {text!r}") from None
