"""Files that are there whole or not at all."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from model.errors import TrainerError

NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
"""What an OSError says where a disk, or somebody's share of it, is full."""


class OutputError(TrainerError):
    """Where something is to be written nothing can be; the message names the path."""


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A file to write beside `path`, which takes its place when the body is done; folders are created.

    Raises:
        OutputError: it cannot be written. Then, as after every other error, what was there is still there, and no more than that.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        temporary.replace(path)
    except OSError as error:
        raise OutputError(f"{path}: cannot be written: {error.strerror or error}") from None
    finally:
        with suppress(OSError):
            temporary.unlink()


def write_whole(path: Path, text: str) -> None:
    """Write a text file beside and move it into its place; folders are created.

    Raises:
        OutputError: it cannot be written; what was there is still there.
    """
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def check_place(path: Path) -> None:
    """Make sure, before the work, that a path is a folder to write into or can become one; creates nothing.

    Raises:
        OutputError: it cannot.
    """
    there = next(each for each in (path, *path.absolute().parents) if each.exists() or each.is_symlink())
    if not there.is_dir():
        raise OutputError(f"{there}: a file, expected a folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise OutputError(f"{there}: cannot be written")


def check_folder(path: Path) -> None:
    """Make sure, before the work, that files can be written into the folder; creates it.

    Raises:
        OutputError: they cannot.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{path}: cannot be made a folder: {error.strerror}") from None
    if not os.access(path, os.W_OK | os.X_OK):
        raise OutputError(f"{path}: cannot be written")
