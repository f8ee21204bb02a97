"""The report as tables for people, and as JSON for machines."""

from __future__ import annotations

import dataclasses
import json
from datetime import UTC, datetime
from typing import Final

from rich.console import Console
from rich.markup import escape
from rich.panel import Panel
from rich.table import Column, Table

from app.archive.experiment.report import MEASURES, ComparisonReport, OffPolicy, Report, SampleRatio
from app.archive.experiment.statistics import Estimate

_NAMES: Final = {"lists": "lists with {}", "per_user": "items with {} per user", "users": "users with {}"}
_POLICIES: Final = {"greedy": "without exploration", "target": "as the file says"}


def to_json(report: Report) -> str:
    """One JSON object; times are RFC 3339, what cannot be told is null."""
    told = dataclasses.asdict(report)
    told["since"], told["until"] = (_moment(told.pop(name)) for name in ("since_ms", "until_ms"))
    told["window_s"] = told.pop("window_ms") / 1000
    told["measures"] = MEASURES
    for arm in report.arms:
        rates = {m: {name: _estimate(one) for name, one in of.items()} for m, of in arm.rates.items()}
        next(one for one in told["arms"] if one["name"] == arm.name)["rates"] = rates
    for one, found in zip(told["off_policy"], report.off_policy, strict=True):
        for name in ("logged", "ips", "clipped_ips", "snips", "mean_weight"):
            estimate = getattr(found, name)
            one[name] = None if estimate is None else _estimate(estimate)
    for one in told["comparisons"]:
        one |= one.pop("against")
    return json.dumps(told, indent=2, allow_nan=False, ensure_ascii=False) + "\n"


def show(report: Report, console: Console) -> None:
    """Print the report."""
    ratio = report.sample_ratio
    if ratio is not None and ratio.mismatch:
        users = ", ".join(f"{escape(arm)} {count:,} ({_share(ratio, arm)})" for arm, count in ratio.observed.items())
        console.print(
            Panel(
                f"[bold]The comparison does not count: the arms do not have the users that they should.[/]\n{users}; "
                f"p = {ratio.p:.1g}. Something decides who is seen in which arm: look for it (lost impressions, redirects, "
                "robots, a changed share) before you believe any figure below.",
                title="sample ratio mismatch",
                border_style="bold red",
            )
        )
    versions = ", ".join(map(str, report.versions))
    of = f" of {len(report.all_versions)}" if len(report.all_versions) > len(report.versions) else ""
    span = " ".join(
        f"{word} {_moment(ms)}" for word, ms in (("since", report.since_ms), ("until", report.until_ms)) if ms is not None
    )
    console.print(
        f"[bold]{escape(report.experiment)}[/], version {versions}{of}; lists shown {span or 'at any time'}, events within "
        f"{_span(report.window_ms)} of that\ncontrol: {escape(report.control)} ({escape(report.control_from)})",
        highlight=False,
    )
    console.print(_arms(report))
    if report.comparisons:
        console.print(_comparisons(report))
    if report.off_policy:
        console.print(_off_policy(report))
    if ratio is not None and not ratio.mismatch:
        console.print(
            f"Users by arm fit {escape(ratio.origin)}: chi-square {ratio.chi_square:.2f}, p = {_p(ratio.p)}.", highlight=False
        )
    for note in report.notes:
        console.print(f"- {escape(note)}", highlight=False)


def _arms(report: Report) -> Table:
    names = ("users", "lists", "items")
    rates = ("lists with one", "per user", "users with one", "items with one")
    columns = [*map(_right, names), Column("metric"), *map(_right, rates)]
    table = Table("arm", *columns, title="Arms, with 95% intervals", title_justify="left")
    for arm in report.arms:
        whose = (escape(arm.name), f"{arm.users:,}", f"{arm.lists:,}", f"{arm.items:,}")
        for number, metric in enumerate(report.metrics):
            of = arm.rates[metric]
            cells = [
                _with_interval(of[measure], percent=measure != "per_user") for measure in ("lists", "per_user", "users", "items")
            ]
            table.add_row(*(("", "", "", "") if number else whose), escape(metric), *cells)
    return table


def _comparisons(report: Report) -> Table:
    doubted = report.sample_ratio is not None and report.sample_ratio.mismatch
    title = f"Against {escape(report.control)}" + (" [bold red](does not count, see above)[/]" if doubted else "")
    names = ("control", "arm", "difference (95%)", "lift (95%)", "p", "p (Holm)")
    table = Table("arm", "what", *(_right(name) for name in names), title=title, title_justify="left")
    for one in report.comparisons:
        percent = one.measure != "per_user"
        significant = one.p_holm is not None and one.p_holm < 0.05 and not doubted
        table.add_row(
            escape(one.arm),
            escape(_NAMES[one.measure].format(one.metric)),
            _number(one.control, percent),
            _number(one.value, percent),
            _difference(one, percent),
            _lift(one),
            _p(one.against.p),
            f"[bold]{_p(one.p_holm)}[/]" if significant else _p(one.p_holm),
        )
    return table


def _off_policy(report: Report) -> Table:
    title = "Off policy: click-through per shown item, of lists with propensities"
    names = (
        "items",
        "drawn",
        "as it was",
        "IPS",
        f"IPS, clipped at {report.clip:g}",
        "SNIPS",
        "weight",
        "effective",
    )
    table = Table("arm", "policy", "metric", *(_right(name) for name in names), title=title, title_justify="left")
    for one in report.off_policy:
        table.add_row(
            escape(one.arm),
            _POLICIES[one.policy],
            escape(one.metric),
            f"{one.items:,}",
            f"{one.drawn:,}",
            _with_interval(one.logged, True),
            _ips(one),
            "-" if one.clipped_ips is None else _with_interval(one.clipped_ips, True),
            _with_interval(one.snips, True),
            _number(one.mean_weight.value, False),
            f"{one.effective_items:,.0f}",
        )
    return table


def _ips(one: OffPolicy) -> str:
    return f"{'>= ' if one.policy == 'greedy' else ''}{_with_interval(one.ips, True)}"


def _right(name: str) -> Column:
    return Column(name, justify="right")


def _estimate(one: Estimate) -> dict[str, float | None]:
    return {"value": one.value, "error": one.error, "low": one.low, "high": one.high}


def _number(value: float | None, percent: bool) -> str:
    if value is None:
        return "-"
    return f"{value:.2%}" if percent else f"{value:.3f}"


def _with_interval(one: Estimate, percent: bool) -> str:
    if one.value is None or one.error is None or one.high is None:
        return _number(one.value, percent)
    margin = one.high - one.value
    return f"{one.value:.2%} ± {margin * 100:.2f}" if percent else f"{one.value:.3f} ± {margin:.3f}"


def _difference(one: ComparisonReport, percent: bool) -> str:
    found = one.against
    if found.difference is None:
        return "-"
    scale, digits, unit = (100, 2, " pp") if percent else (1, 3, "")
    told = f"{found.difference * scale:+.{digits}f}{unit}"
    if found.low is None or found.high is None:
        return told
    return f"{told} ({found.low * scale:+.{digits}f} to {found.high * scale:+.{digits}f})"


def _lift(one: ComparisonReport) -> str:
    found = one.against
    if found.lift is None:
        return "-"
    if found.lift_low is None or found.lift_high is None:
        return f"{found.lift:+.1%}"
    return f"{found.lift:+.1%} ({found.lift_low:+.1%} to {found.lift_high:+.1%})"


def _p(p: float | None) -> str:
    if p is None:
        return "-"
    return "< .0001" if p < 0.0001 else f"{p:.4f}"[1:] if p < 1 else "1"


def _share(ratio: SampleRatio, arm: str) -> str:
    total = sum(ratio.observed.values())
    return f"{ratio.observed[arm] / total:.2%}, expected {ratio.expected[arm]:.2%}"


def _span(ms: int) -> str:
    for unit, size in (("d", 86_400_000), ("h", 3_600_000), ("min", 60_000)):
        if ms >= 2 * size and ms % size == 0:
            return f"{ms // size} {unit}"
    return f"{ms / 1000:g} s"


def _moment(ms: int | None) -> str | None:
    return None if ms is None else datetime.fromtimestamp(ms / 1000, UTC).isoformat().replace("+00:00", "Z")
