"""Compaction in a process of its own: what it takes of memory, and keeps for a while, goes back when it ends.

It needs no Redis: the archiver that waits for it holds the lease. It may be killed anywhere, as any archiver may, and is when the
archiver dies; an archiver that goes on without it makes another.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

from app.archive.archive import Archive
from app.archive.compaction import Compaction
from app.errors import ArchiveError
from app.ours import ours
from app.state.embedded import asking_for_signal
from app.telemetry import configure_logs

REFUSED: Final = 2
_SIGN_OF_LIFE_S: Final = 1.0
_MOST_SIGNS: Final = 3  # within the time that a lease lasts


class Rewriting:
    """Calls `Compaction.rewrite` of an archive in a new process, and waits for its end.

    Args:
        erase_within_s: as of `Compaction`.
        lease_ms: how often, at least, `still_ours` must be called.
    """

    def __init__(self, folder: Path, erase_within_s: float, lease_ms: int, log_level: str, log_format: str) -> None:
        words = (str(folder), str(erase_within_s), log_level, log_format)
        self._command = ours("from app.archive.rewriting import main; main(*sys.argv[1:])", *words)
        self._period_s = min(_SIGN_OF_LIFE_S, lease_ms / 1000 / _MOST_SIGNS)

    def __call__(self, still_ours: Callable[[], object]) -> None:
        """Rewrite what is due. To be called in the thread that the process is to end with.

        Raises:
            ArchiveError: as `Compaction.rewrite`, or the process has died.
            Exception: what `still_ours` raises; the process is then ended.
        """
        # A session of its own: Ctrl-C is for the archiver, which ends when this has.
        try:
            process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                text=True,
                start_new_session=True,
                preexec_fn=asking_for_signal(os.getpid()),
            )
        except OSError as error:
            raise ArchiveError(f"no process can be started that compacts the archive: {error.strerror}") from error
        with process:
            try:
                while True:
                    try:
                        said, _ = process.communicate(timeout=self._period_s)
                        break
                    except subprocess.TimeoutExpired:
                        still_ours()
            finally:
                if process.poll() is None:
                    process.kill()
        if process.returncode == REFUSED:
            raise ArchiveError(said.strip())
        if process.returncode:
            raise ArchiveError(f"the process that compacts the archive has ended with exit code {process.returncode}")


def main(folder: str, erase_within_s: str, log_level: str, log_format: str) -> None:
    configure_logs(log_level, log_format)
    try:
        Compaction(Archive(Path(folder)), float(erase_within_s)).rewrite()
    except OSError as error:
        _refuse(f"{error.filename}: cannot be tidied up: {error.strerror}")
    except ArchiveError as error:
        _refuse(error.detail)


def _refuse(why: str) -> None:
    print(why)
    sys.exit(REFUSED)
