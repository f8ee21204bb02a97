"""Indexes are made beside the service, once, whoever asks."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from random_catalogue import RandomCatalogue

from app.errors import IndexDamagedError
from app.recommend.index import Source
from app.recommend.indexing import indexed


@pytest.fixture
def source() -> Source:
    catalogue = RandomCatalogue(500, 8, 2, 0)
    catalogue.version = 7
    return catalogue.source(catalogue.users(4, 1, 0))


def damage(file: Path) -> None:
    file.write_bytes(b"nothing")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


async def test_an_index_is_made_once_however_many_ask(tmp_path: Path, source: Source) -> None:
    made = []

    def counted() -> Source:
        made.append(1)
        return source

    indexes = await asyncio.gather(*(indexed(tmp_path / "model", counted) for _ in range(3)))
    assert len(made) == 1
    assert {(index.rows, index.version) for index in indexes} == {(500, 7)}
    assert names(tmp_path) == [".lock", "model"]


async def test_a_damaged_index_is_made_again(tmp_path: Path, source: Source) -> None:
    await indexed(tmp_path / "model", lambda: source)
    damage(tmp_path / "model/index.faiss")
    assert (await indexed(tmp_path / "model", lambda: source)).rows == 500


async def test_what_cannot_be_made_says_why(tmp_path: Path, source: Source) -> None:
    bad = Source(source.vectors, source.bias[:10], source.popularity, source.weights)
    with pytest.raises(IndexDamagedError, match=r"cannot be made: .*10"):
        await indexed(tmp_path / "model", lambda: bad)
    assert names(tmp_path) == [".lock"]


async def test_whoever_stops_waiting_leaves_nothing_behind(tmp_path: Path, source: Source) -> None:
    waiting = asyncio.create_task(indexed(tmp_path / "model", lambda: source))
    await asyncio.sleep(0.1)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert names(tmp_path) == [".lock"]


async def test_old_indexes_go(tmp_path: Path, source: Source) -> None:
    for number in range(6):
        await indexed(tmp_path / f"model-{number}", lambda: source)
    assert names(tmp_path) == [".lock", *(f"model-{number}" for number in (2, 3, 4, 5))]
