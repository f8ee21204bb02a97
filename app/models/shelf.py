"""Where bundles lie: the folder of the one to start with, and a folder that new ones are put into."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Literal

from app.errors import BundleError
from app.runtime.bundle import MANIFEST, read_bundle, read_manifest
from app.runtime.golden import replay_golden
from app.runtime.manifest import Manifest
from app.runtime.session import Runtime, open_runtime


@dataclass(frozen=True)
class Found:
    """A folder with a manifest: what it says, or why it cannot be read."""

    folder: Path
    manifest: Manifest | None
    problem: str | None


def load_model(folder: Path, device: Literal["auto", "cpu", "cuda"], threads: int) -> Runtime:
    """Read, verify and open a bundle, and replay its golden vectors, which also warms every graph.

    Raises:
        BundleError: it is missing, damaged, of another format, or computes something else here than where it was made.
        DeviceError: the demanded device is not there.
    """
    runtime = open_runtime(read_bundle(folder), device, threads)
    replay_golden(runtime)
    return runtime


class Shelf:
    """The bundles that this worker can see.

    Args:
        first: folder of the bundle to start with.
        folder: where others appear, each in a folder of its own; None: next to `first` if that is a link (as `bundles/current`).
    """

    def __init__(self, first: Path, folder: Path | None) -> None:
        self._first = first
        self._folder = folder if folder is not None else (first.parent if first.is_symlink() else None)
        self._read: dict[Path, tuple[float, Found]] = {}

    def look(self) -> Mapping[str, Found]:
        """What is there now, by model id; a folder whose manifest cannot be read, by its name.

        What is hidden is passed over: `longwave-train export` writes a bundle beside and moves it into place.
        """
        folders = [self._first]
        if self._folder is not None and self._folder.is_dir():
            folders += sorted(filter(_is_bundle, self._folder.iterdir()))
        found: dict[str, Found] = {}
        for folder in folders:
            one = self._manifest(folder)
            found.setdefault(one.manifest.model_id if one.manifest is not None else folder.name, one)
        return found

    def complete(self) -> Mapping[str, str]:
        """The bundles whose files are all there, and a signature of these: another one when a file has changed.

        A bundle whose manifest cannot be read is named by its folder. The files may still be written to; nobody has read them.
        """
        found: dict[str, str] = {}
        for name, one in self.look().items():
            files = one.manifest.files if one.manifest is not None else []
            try:
                states = [(file, (one.folder / file).stat()) for file in sorted([MANIFEST, *files])]
            except OSError:
                continue
            text = "".join(f"{file}\0{state.st_size} {state.st_mtime_ns}\0" for file, state in states)
            found[name] = blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()
        return found

    def _manifest(self, folder: Path) -> Found:
        file = folder / MANIFEST
        try:
            changed = file.stat().st_mtime
        except OSError:
            return Found(folder, None, f"{file}: missing")
        key = folder.resolve()
        known = self._read.get(key)
        if known is None or known[0] != changed:
            try:
                known = (changed, Found(folder, read_manifest(folder), None))
            except BundleError as error:
                known = (changed, Found(folder, None, error.detail))
            self._read[key] = known
        return known[1]


def _is_bundle(path: Path) -> bool:
    return not path.name.startswith(".") and not path.is_symlink() and (path / MANIFEST).is_file()
