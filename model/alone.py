"""One training at a time in a folder: two would write each other's checkpoint, and both would say that all went well."""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

from model.distributed import group
from model.files import OutputError, check_folder, check_place

PATIENCE_S = 3.0
"""How long a process that was killed may take to be gone: what it held is free only then."""


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """With the folder of a run, which is created, to this training alone, until it ends or dies, however it does.

    Of several processes that train together the first one holds it for all. A folder in which nothing was written is removed.

    Raises:
        OutputError: another training has it, or it is a file, lies below one, or cannot be written.
    """
    check_place(folder)
    members = group()
    new = [each for each in (folder, *folder.parents) if not each.exists()]
    members.wait()  # all have looked
    held = _held(folder) if members.first else None
    try:
        if not members.total(torch.tensor([0 if held is None else 1])).item():
            raise OutputError(f"{folder}: another process trains there; wait for its end, or train into another folder")
        yield
    finally:
        if held is not None:
            for each in new:
                with suppress(OSError):  # not empty, as a rule
                    each.rmdir()
            os.close(held)


def _held(folder: Path) -> int | None:
    """The folder opened, with a lock that goes when it is closed or the process dies; None where another process has that."""
    check_folder(folder)
    opened = os.open(folder, os.O_RDONLY)
    until = time.monotonic() + PATIENCE_S
    while True:
        try:
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno != errno.EWOULDBLOCK:
                return opened  # a file system without locks
            if time.monotonic() >= until:
                os.close(opened)
                return None
            time.sleep(0.1)
        else:
            return opened
