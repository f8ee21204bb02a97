"""The bundle that is measured, and a second one with another id that says the same: what a model swap needs."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

from app.runtime.bundle import content_id
from loadtests.client import Client
from loadtests.connection import post
from loadtests.servers import Server


@dataclass(frozen=True)
class Twins:
    """A folder with both bundles; `first` is served, `other` is the model id of the second."""

    folder: Path
    first: Path
    other: str

    def activate(self, server: Server) -> None:
        """Have the service change to the other one; returns when it has. Raises BenchError."""
        with Client(server) as client:
            client.answer(post(f"/v1/models/{self.other}/activate", b""))


def twins(bundle: Path, folder: Path) -> Twins:
    """Copy a bundle into a folder twice, once under another name of its data, which is part of its id."""
    first, second = folder / "first", folder / "second"
    for copy in (first, second):
        shutil.copytree(bundle, copy)
    file = second / "manifest.json"
    manifest = json.loads(file.read_bytes())
    manifest["data_name"] += ", twin"
    manifest["model_id"] = content_id(manifest)
    file.write_text(json.dumps(manifest), encoding="utf-8")
    return Twins(folder, first, manifest["model_id"])
