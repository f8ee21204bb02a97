"""What runs beside the service is started again, whatever kept it from running."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from app import keeper


def test_what_cannot_be_started_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeper, "_RESTART_DELAY_S", 0.05)
    command, ran = tmp_path / "command", tmp_path / "ran"
    with keeper.kept("late", [str(command)]):
        time.sleep(0.2)
        command.with_suffix(".new").write_text(f"#!/bin/sh\ntouch {ran}\n")
        command.with_suffix(".new").chmod(0o700)
        command.with_suffix(".new").rename(command)
        deadline = time.monotonic() + 10
        while not ran.exists():
            assert time.monotonic() < deadline
            time.sleep(0.01)
