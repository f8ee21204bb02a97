"""Making an index beside a running service, once for all workers."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import numpy as np

from app.arrays import mapped
from app.errors import IndexDamagedError
from app.ours import ours
from app.recommend.index import RowIndex, Source, build

_POLL_S: Final = 0.25
_NICENESS: Final = 10  # requests come first
_KEPT: Final = 3  # indexes of other models or versions: one may be gone back to, or be of another worker
_ARRAYS: Final = ("vectors", "bias", "popularity", "weights")


async def indexed(folder: Path, source: Callable[[], Source]) -> RowIndex:
    """The index that lies there, which is made first if there is none, or none that is whole.

    Args:
        folder: a name for each model and version; the same for all workers, one of which makes it while the others wait.
        source: what to make it of.

    Raises:
        IndexDamagedError: it cannot be made.
    """
    try:
        return await asyncio.to_thread(RowIndex, folder)
    except IndexDamagedError:
        async with _alone(folder):
            try:  # another one may have made it meanwhile
                return await asyncio.to_thread(RowIndex, folder)
            except IndexDamagedError:
                await _make(folder, source())
    _forget_others(folder)
    return await asyncio.to_thread(RowIndex, folder)


@asynccontextmanager
async def _alone(folder: Path) -> AsyncIterator[None]:
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (folder.parent / ".lock").open("w") as lock:  # the system lets go of it whatever ends the process
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                await asyncio.sleep(_POLL_S)
        yield


async def _make(folder: Path, source: Source) -> None:
    """In a process of its own: it takes one core for a minute, and memory that a worker would never give back."""
    _clear(folder)
    with tempfile.TemporaryDirectory(prefix=".source.", dir=folder.parent) as scratch:
        await asyncio.to_thread(_save, source, Path(scratch))
        command = ours("from app.recommend.indexing import main; main(*sys.argv[1:])", scratch, str(folder))
        child = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            env=os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        )
        try:
            _, errors = await child.communicate()
        finally:
            if child.returncode is None:
                child.kill()
                await child.wait()
                _clear(folder)
    if child.returncode:
        last = errors.decode(errors="replace").strip().splitlines()[-1:]
        raise IndexDamagedError(f"{folder}: cannot be made: {last[0] if last else f'exit code {child.returncode}'}")


def _clear(folder: Path) -> None:
    """What a process that was killed has left; who calls this is alone."""
    for pattern in (".source.*", f".{folder.name}.*"):
        for left in folder.parent.glob(pattern):
            shutil.rmtree(left, ignore_errors=True)


def _save(source: Source, folder: Path) -> None:
    for name in _ARRAYS:
        np.save(folder / f"{name}.npy", getattr(source, name))
    (folder / "version.json").write_text(json.dumps(source.version), encoding="utf-8")


def _load(folder: Path) -> Source:
    arrays = {name: np.asarray(mapped(folder / f"{name}.npy")) for name in _ARRAYS}
    return Source(**arrays, version=json.loads((folder / "version.json").read_text(encoding="utf-8")))


def _forget_others(folder: Path) -> None:
    others = [other for other in folder.parent.iterdir() if other.is_dir() and other != folder and other.name[0] != "."]
    for other in sorted(others, key=lambda other: other.stat().st_mtime)[:-_KEPT]:
        shutil.rmtree(other, ignore_errors=True)


def main(source: str, out: str) -> None:
    """In the process of its own: make one of the arrays in a folder."""
    os.nice(_NICENESS)
    build(_load(Path(source)), Path(out))
