"""requirements.lock pins what pyproject.toml asks for, in a form that every pip can use."""

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[3]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
LINES = (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()
PINS = {canonicalize_name(name): version for name, _, version in (line.partition("==") for line in LINES)}


@pytest.mark.parametrize("group", ["dependencies", *PROJECT["optional-dependencies"]])
def test_everything_that_pyproject_asks_for_is_pinned_at_a_version_it_allows(group):
    wanted = PROJECT["dependencies"] if group == "dependencies" else PROJECT["optional-dependencies"][group]
    for requirement in map(Requirement, wanted):
        pin = PINS.get(canonicalize_name(requirement.name))
        assert pin is not None, f"{requirement.name} is not in requirements.lock: run `make lock`"
        assert requirement.specifier.contains(pin), f"{requirement} does not allow the pinned {pin}: run `make lock`"


def test_a_line_is_a_name_and_a_version_without_address_path_or_build():
    assert [line for line in LINES if not re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][A-Za-z0-9.]*", line)] == []


def test_no_package_is_pinned_twice():
    assert len(PINS) == len(LINES)


def test_pytorch_is_the_agreed_release():
    assert PINS["torch"] == "2.13.0"


def test_both_onnx_runtimes_are_the_same_release():
    # A bundle is verified with the one and served with the other.
    assert PINS["onnxruntime"] == PINS["onnxruntime-gpu"]
