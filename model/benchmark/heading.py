"""What every result of a benchmark begins with."""

from __future__ import annotations

from typing import Any

from model.machine import measured


def heading(version: int, name: str, **which: Any) -> dict[str, Any]:
    """Format, name and `which` of the results of that name it is; when, of what code and on what machine it was measured.

    Args:
        version: of the result's format.
    """
    return {"format": version, "name": name, **which, **measured()}
