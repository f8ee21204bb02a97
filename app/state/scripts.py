"""The Lua scripts of `lua/`, by name, with the SHA-1 under which Redis knows them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from hashlib import sha1
from importlib.resources import files


@dataclass(frozen=True, slots=True)
class Script:
    """A script's text and its SHA-1 in hex."""

    source: bytes
    sha: str


@cache
def script(name: str) -> Script:
    """The script `lua/<name>.lua`, behind what all of them share, read once."""
    folder = files("app.state").joinpath("lua")
    source = folder.joinpath("shared.lua").read_bytes() + folder.joinpath(f"{name}.lua").read_bytes()
    return Script(source=source, sha=sha1(source, usedforsecurity=False).hexdigest())
