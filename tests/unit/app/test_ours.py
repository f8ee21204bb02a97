"""Commands that run our code elsewhere find it, and not another's that is called the same."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

import app
from app.ours import ours


def test_another_app_in_the_current_folder_is_not_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "app").mkdir()
    (tmp_path / "app" / "__init__.py").touch()
    monkeypatch.chdir(tmp_path)
    done = subprocess.run(
        ours("import app; print(app.__file__, sys.argv[1:])", "a b"), capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == f"{app.__file__} ['a b']"
