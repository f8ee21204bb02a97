from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import redis

from app.archive.archive import Archive
from app.archive.archiver import Archiver
from app.archive.log import RedisLog

MakeArchiver = Callable[..., Archiver]


@pytest.fixture
def archive(tmp_path: Path) -> Archive:
    return Archive(tmp_path / "archive")


@pytest.fixture
def make_archiver(archive: Archive, raw: redis.Redis) -> MakeArchiver:
    """Makes archivers of the test's Redis into the test's archive."""

    def make(**settings: float) -> Archiver:
        return Archiver(archive, RedisLog(raw), **settings)

    return make
