"""`make` offers what the guide promises, and says what is wrong instead of failing somewhere later."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


@pytest.fixture
def make(tmp_path):
    """Run make with a copy of the project's make files alone, so that nothing of this checkout is touched."""
    for name in ("Makefile", "pyproject.toml", "requirements.lock"):
        shutil.copy(ROOT / name, tmp_path)
    # The make that runs these tests must not pass its own options on.
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}

    def run(*arguments):
        return subprocess.run(["make", *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)

    return run


def mark_installed(folder):
    (folder / ".venv/bin").mkdir(parents=True)
    for name in ("bin/pip", "demo.installed", "dev.installed"):
        (folder / ".venv" / name).touch()


def test_make_alone_lists_every_command(make):
    commands = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE).group(1).split()
    listed = re.findall(r"^  make ([\w-]+) +\S", make().stdout, re.MULTILINE)
    assert sorted(listed) == sorted(commands)


def test_an_old_python_is_refused_with_the_version_that_is_needed(make, tmp_path):
    old = tmp_path / "python2"
    old.write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o755)
    done = make("install", f"PYTHON={old}")
    assert done.returncode != 0
    assert "needs Python 3.11 or newer" in done.stderr
    assert not (tmp_path / ".venv").exists()


def test_a_repeated_test_run_installs_nothing(make, tmp_path):
    mark_installed(tmp_path)
    assert "pip install" not in make("--dry-run", "test").stdout


@pytest.mark.parametrize("changed", ["pyproject.toml", "requirements.lock"])
@pytest.mark.parametrize("command", ["demo", "test"])
def test_a_changed_requirement_is_installed_before_the_next_command(make, tmp_path, command, changed):
    mark_installed(tmp_path)
    future_s = (tmp_path / ".venv/dev.installed").stat().st_mtime + 10
    os.utime(tmp_path / changed, (future_s, future_s))
    assert "pip install --disable-pip-version-check -c requirements.lock -e" in make("--dry-run", command).stdout


def test_the_tests_come_after_every_check_of_the_code(make, tmp_path):
    mark_installed(tmp_path)
    lines = make("--dry-run", "test").stdout.splitlines()
    assert [line.split("/")[-1].split()[0] for line in lines] == ["ruff", "ruff", "mypy", "lint-imports", "pytest"]


def test_the_demo_passes_its_arguments_on_and_needs_no_test_tools(make, tmp_path):
    done = make("--dry-run", "demo", "ARGS=--once").stdout
    assert ".venv/bin/longwave demo --once" in done
    assert "dev" not in done.replace("-m venv", "")


def test_ci_runs_exactly_make_test():
    script = ROOT / ".ci/run"
    assert os.access(script, os.X_OK)
    commands = script.read_text(encoding="utf-8").splitlines()
    assert commands == ["#!/usr/bin/env bash", "set -euo pipefail", 'cd "$(dirname "$0")/.."', "make test"]
