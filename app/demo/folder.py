"""The demo's own folder: what is in it, that it is ours to empty, and that only one demo uses it."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from app.demo.errors import DemoError

MARKER: Final = ".longwave-demo"

# What every demo makes anew. The prepared data are replaced by the trainer, and a finished run may be used again.
_RESULTS: Final = ("redis", "rehearsal", "bundles", "report")


@dataclass(frozen=True)
class DemoFolder:
    """Paths of one demo."""

    root: Path

    @property
    def data(self) -> Path:
        return self.root / "data"

    @property
    def run(self) -> Path:
        return self.root / "run"

    @property
    def bundles(self) -> Path:
        return self.root / "bundles"

    @property
    def bundle(self) -> Path:
        return self.bundles / "current"

    @property
    def rehearsal(self) -> Path:
        return self.root / "rehearsal"

    @property
    def report(self) -> Path:
        return self.root / "report"

    @property
    def redis(self) -> Path:
        return self.root / "redis"

    def log(self, name: str) -> Path:
        return self.root / f"{name}.log"

    def forget_training(self) -> None:
        """Remove an earlier run."""
        _remove(self._trained)  # first: without the note nobody takes what is left of the run for whole
        _remove(self.run)

    def note_training(self, config: str) -> None:
        """Remember what the finished run was trained on."""
        self._trained.write_text(json.dumps(self._training(config)) + "\n", encoding="utf-8")

    def is_trained(self, config: str) -> bool:
        """Whether a run was finished on just these data with this configuration."""
        try:
            noted: Any = json.loads(self._trained.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return False
        return self.run.is_dir() and noted == self._training(config)

    @property
    def _trained(self) -> Path:
        return self.root / "trained.json"

    def _training(self, config: str) -> dict[str, str]:
        manifest = self.data / "manifest.json"
        try:
            fingerprint = json.loads(manifest.read_text(encoding="utf-8"))["fingerprint"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DemoError(f"{manifest}: not a prepared data set: {error}") from None
        return {"data": fingerprint, "config": config}


@contextmanager
def open_folder(root: Path) -> Iterator[DemoFolder]:
    """The folder, made if missing, cleared of an earlier demo's results but its run, and locked until the context ends.

    Raises:
        DemoError: it holds files that no demo made, another demo is using it, or it cannot be written.
    """
    marker = root / MARKER
    try:
        root.mkdir(parents=True, exist_ok=True)
        if not marker.exists() and any(root.iterdir()):
            raise DemoError(f"{root} holds files that no demo made; give --dir a new or an empty folder")
        lock = marker.open("a+", encoding="utf-8")
    except OSError as error:
        raise DemoError(f"{root}: cannot be used as the demo's folder: {error.strerror}") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            raise DemoError(f"{root} is in use by another demo, process {lock.read().strip()}") from None
        lock.truncate(0)
        lock.write(f"{os.getpid()}\n")
        lock.flush()
        for name in _RESULTS:
            _remove(root / name)
        yield DemoFolder(root)


def _remove(path: Path) -> None:
    # A link is taken away itself; what it points at may lie outside the folder.
    if path.is_symlink() or path.is_file():
        path.unlink()
    elif path.is_dir():
        shutil.rmtree(path)
