"""Bundles that are wrong in one way only: the manifest's id is made to fit what was changed."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from app.runtime.bundle import content_id


def edit_manifest(folder: Path, **changes: Any) -> None:
    """Replace fields of the manifest as an exporter with those values would have written them."""
    file = folder / "manifest.json"
    document = json.loads(file.read_text()) | changes
    file.write_text(json.dumps(document | {"model_id": content_id(document)}))


def replace_file(folder: Path, name: str, content: bytes) -> None:
    """Replace a file and its checksum: what is wrong then is the content alone."""
    (folder / name).write_bytes(content)
    files = json.loads((folder / "manifest.json").read_text())["files"]
    edit_manifest(folder, files=files | {name: hashlib.sha256(content).hexdigest()})
