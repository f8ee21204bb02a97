"""The ledger: one line for every look at a test part, so that nobody can look often and tell of the best look alone.

A line is a JSON object: date, command, data, fingerprint, protocol, part, queries, run, commit, and metrics by model.
"""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from model.errors import TrainerError
from model.evaluate import EvaluationReport
from model.machine import describe_commit

KEPT = ("hit_rate@10", "ndcg@10", "recall@20", "ndcg@20")


class LedgerError(TrainerError):
    """The ledger cannot be written or read; the message names the file."""


def default_ledger() -> Path:
    """Where looks are kept by default: $XDG_STATE_HOME/longwave/ledger.jsonl, ~/.local/state/longwave/ledger.jsonl as a rule.

    Outside of any project: it is about what its user has looked at, on whichever data and from whichever folder.
    """
    base = os.environ.get("XDG_STATE_HOME")
    return (Path(base) if base else Path.home() / ".local" / "state") / "longwave" / "ledger.jsonl"


def check_ledger(path: Path) -> None:
    """Make sure, before the work, that the line can be written after it; creates the folder and an empty file.

    Raises:
        LedgerError: it cannot.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.open("ab").close()
    except OSError as error:
        raise LedgerError(f"{path}: the ledger cannot be written: {error.strerror}; name another with --ledger") from None


def note(path: Path, command: str, report: EvaluationReport, run: str) -> None:
    """Append what was measured. The line is written at once, behind whatever others wrote in the meantime.

    Raises:
        LedgerError: it cannot be written.
    """
    entry = {
        "date": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "command": command,
        "data": report.dataset,
        "fingerprint": report.fingerprint,
        "protocol": report.protocol,
        "part": report.part,
        "queries": report.queries,
        "run": run,
        "commit": describe_commit(),
        "metrics": {
            name: {metric: _figure(result.metrics[metric].mean) for metric in KEPT if metric in result.metrics}
            for name, result in report.models.items()
        },
    }
    append(path, entry)


def append(path: Path, entry: dict[str, Any]) -> None:
    """One line, by one write to the end of the file; after a line that was cut off, on a line of its own.

    Raises:
        LedgerError: it cannot be written.
    """
    line = json.dumps(entry, ensure_ascii=False, allow_nan=False).encode() + b"\n"
    check_ledger(path)
    try:
        with path.open("r+b") as file:
            if file.seek(0, os.SEEK_END) > 0:
                file.seek(-1, os.SEEK_END)
                if file.read(1) != b"\n":
                    line = b"\n" + line
        with path.open("ab", buffering=0) as file:
            file.write(line)
            os.fsync(file.fileno())
    except OSError as error:
        raise LedgerError(f"{path}: the ledger cannot be written: {error.strerror}") from None


def read_ledger(path: Path) -> list[dict[str, Any]]:
    """All whole lines, oldest first; a line that was cut off by a crash is passed over."""
    entries = []
    for line in path.read_text(encoding="utf-8", errors="replace").split("\n"):
        try:
            entries.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return entries


def _figure(value: float) -> float | None:
    return None if value != value else round(value, 6)
