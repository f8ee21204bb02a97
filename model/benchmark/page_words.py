"""How figures, machines and commits are written on the page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def machine_words(machine: dict[str, Any]) -> str:
    gpu = f"{machine['gpu']}, " if machine.get("gpu") else ""  # results of before do not say it
    return f"{gpu}{machine['cpu']}, {machine['threads']} of {machine['cores']} cores, torch {machine['torch']}"


def machines_words(results: Sequence[dict[str, Any]]) -> list[str]:
    """Each machine once."""
    return list(dict.fromkeys(machine_words(result["machine"]) for result in results))


def commits_words(results: Sequence[dict[str, Any]]) -> str:
    """Each commit once."""
    return ", ".join(dict.fromkeys(commit_words(result["commit"]) for result in results))


def commit_words(commit: dict[str, Any]) -> str:
    if not commit["id"]:
        return "unknown"
    return f"{commit['id'][:10]}{' with changes' if commit['dirty'] else ''}"


def figure_words(value: float | None, error: float | None = None) -> str:
    if value is None:
        return "–"
    return f"{value:.4f}" + (f" ± {error:.4f}" if error is not None else "")


def times_words(difference: dict[str, Any]) -> str:
    """How many times as good, and how sure that is; where the other is 0 there is no ratio."""
    times = "–" if difference["ratio"] is None else f"{difference['ratio']:.2f}x"
    return f"{times}, p {p_words(difference['p'])}"


def p_words(value: float) -> str:
    return "< .01" if value < 0.01 else f"{value:.2f}"
