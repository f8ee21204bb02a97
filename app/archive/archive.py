"""The folder of an archive: numbered manifests, of which the newest alone counts, and how a new one is committed.

A commit creates `_manifests/<number>.json` by a hard link, which fails if that number is there: of two that build on the same
manifest one wins, and the other looks again. docs/adr/0006-archive.md says why nothing else is needed.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import msgspec

from app.archive.manifest import FORMAT, File, Manifest
from app.errors import ArchiveError

MANIFESTS: Final = "_manifests"
_SUFFIX: Final = ".json"

_decode = msgspec.json.Decoder(Manifest).decode


class Archive:
    """An archive in `folder`, which need not exist yet. Any number of processes may have one open."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._manifests = folder / MANIFESTS

    def latest(self) -> Manifest:
        """The newest manifest; of an archive that has none, an empty one with number 0.

        Raises:
            ArchiveError: it cannot be read, or is of another format.
        """
        while True:
            number = self._newest()
            if number == 0:
                return Manifest()
            try:
                raw = self._path(number).read_bytes()
            except FileNotFoundError:
                continue  # pruned since: there is a newer one
            except OSError as error:
                raise ArchiveError(f"{self._path(number)}: cannot be read: {error.strerror}") from error
            return _manifest(raw, self._path(number))

    def existing(self) -> Manifest:
        """The newest manifest. Raises ArchiveError, also where there is none."""
        manifest = self.latest()
        if manifest.number == 0:
            raise ArchiveError(f"{self.folder}: no archive is there (no {MANIFESTS}/*{_SUFFIX})")
        return manifest

    def publish(self, added: Sequence[File], change: Callable[[Manifest], Manifest | None]) -> Manifest | None:
        """Commit `change` of the newest manifest, looking again whenever somebody else was first.

        Args:
            added: files, on disk already, that the changed manifest will name.
            change: the manifest to commit, or None where what was prepared no longer fits the newest one.

        Returns:
            The manifest that was committed, or None where nothing was, and then the added files are deleted.

        Raises:
            ArchiveError: it cannot be written.
        """
        while True:
            latest = self.latest()
            changed = change(latest)
            # A writer that stood still for hours may find its files swept as nobody's.
            gone = set(latest.swept)
            if changed is None or any(file.path in gone or not (self.folder / file.path).exists() for file in added):
                self.discard(added)
                return None
            number = latest.number + 1
            now_ms = time.time_ns() // 1_000_000
            committed = msgspec.structs.replace(changed, number=number, token=secrets.token_hex(8), created_ms=now_ms)
            if self._create(committed, latest):
                return committed

    def discard(self, files: Sequence[File]) -> None:
        """Delete files that were not committed, or leave them to the sweep; those that the newest manifest names stay."""
        named = {file.path for file in self.latest().files}
        for file in files:
            if file.path not in named:
                with contextlib.suppress(OSError):
                    (self.folder / file.path).unlink()

    def prune(self) -> None:
        """Delete all manifests but the newest. They hold the names of the erased, and nobody reads them."""
        newest = self._newest()
        # Ascending, so that what is left is never with a gap: see `_create`.
        for number in sorted(number for number in self._numbers() if number < newest):
            self._path(number).unlink(missing_ok=True)

    def _create(self, manifest: Manifest, parent: Manifest) -> bool:
        """Create a manifest, whole and durable; False if another has its number, or may have had it."""
        path = self._path(manifest.number)
        try:
            self._manifests.mkdir(parents=True, exist_ok=True)
            draft = self._manifests / f"{manifest.token}.draft"
            try:
                with draft.open("xb") as out:
                    out.write(msgspec.json.encode(manifest))
                    out.flush()
                    os.fsync(out.fileno())
                try:
                    os.link(draft, path)
                except FileNotFoundError:  # swept: it was taken for one that a killed writer has left
                    return False
            except FileExistsError:
                return False
            finally:
                draft.unlink(missing_ok=True)
            for folder in (self._manifests, self.folder, self.folder.parent):
                sync_folder(folder)
        except OSError as error:
            raise ArchiveError(f"{path}: cannot be written: {error.strerror}") from error
        # Pruned numbers are free again, and a process that stood still may take one that has had its day. The newest is never
        # pruned, and a manifest never before the one it builds on: where either is still there, the number was new. Where neither
        # is, the caller looks at the newest manifest, and finds its own work in it or does it again.
        if self._newest() == manifest.number:
            return True
        with contextlib.suppress(OSError):
            return _manifest(self._path(parent.number).read_bytes(), path).token == parent.token
        return False

    def _path(self, number: int) -> Path:
        return self._manifests / f"{number:020d}{_SUFFIX}"

    def _numbers(self) -> list[int]:
        try:
            names = os.listdir(self._manifests)
        except FileNotFoundError:
            return []
        except OSError as error:
            raise ArchiveError(f"{self._manifests}: cannot be read: {error.strerror}") from error
        return [int(name[: -len(_SUFFIX)]) for name in names if name.endswith(_SUFFIX) and name[: -len(_SUFFIX)].isdecimal()]

    def _newest(self) -> int:
        return max(self._numbers(), default=0)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable, as fsync makes the content of a file."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # file systems that do not sync folders need not
            os.fsync(handle)
    finally:
        os.close(handle)


def _manifest(raw: bytes, path: Path) -> Manifest:
    try:
        manifest = _decode(raw)
    except msgspec.MsgspecError as error:
        raise ArchiveError(f"{path}: damaged: {error}") from error
    if manifest.format != FORMAT:
        raise ArchiveError(f"{path}: has format {manifest.format}, this version reads {FORMAT}")
    return manifest
