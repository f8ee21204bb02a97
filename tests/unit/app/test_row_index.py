"""The file of an index: what is written is what is read, and what is damaged is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from random_catalogue import RandomCatalogue

from app.errors import IndexDamagedError
from app.recommend.index import RowIndex, build, list_count


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    catalogue = RandomCatalogue(2_000, 8, 2, 0)
    build(catalogue.source(catalogue.users(4, 1, 0)), tmp_path / "index")
    return tmp_path / "index"


def test_a_search_finds_what_is_kept_and_nothing_else(folder: Path) -> None:
    index = RowIndex(folder)
    mask = np.random.default_rng(0).random(index.rows) < 0.1
    queries = index.queries(np.ones((3, 8), np.float32), np.ones((3, 2), np.float32))
    rows = index.search(queries, 50, 2_000, index.kept(mask))
    assert mask[rows[rows >= 0]].all()
    assert (rows >= 0).all()


def test_a_mask_that_keeps_nothing_finds_nothing(folder: Path) -> None:
    index = RowIndex(folder)
    queries = index.queries(np.ones((1, 8), np.float32), np.ones((1, 2), np.float32))
    assert (index.search(queries, 5, 100, index.kept(np.zeros(index.rows, bool))) == -1).all()


@pytest.mark.parametrize("name", ["index.faiss", "lists.npy", "popularity.npy"])
def test_a_damaged_file_is_refused(folder: Path, name: str) -> None:
    content = bytearray((folder / name).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / name).write_bytes(content)
    with pytest.raises(IndexDamagedError, match="damaged"):
        RowIndex(folder)


@pytest.mark.parametrize("content", ["", "{}", json.dumps({"format": 99})])
def test_an_index_without_a_description_that_fits_is_refused(folder: Path, content: str) -> None:
    (folder / "meta.json").write_text(content)
    with pytest.raises(IndexDamagedError):
        RowIndex(folder)


def test_an_index_replaces_the_one_before_and_leaves_nothing_beside(folder: Path) -> None:
    catalogue = RandomCatalogue(1_000, 8, 2, 1)
    build(catalogue.source(catalogue.users(4, 1, 0)), folder)
    assert RowIndex(folder).rows == 1_000
    assert [path.name for path in folder.parent.iterdir()] == ["index"]


@pytest.mark.parametrize(("rows", "lists"), [(1, 1), (100, 2), (10_000, 250), (1_000_000, 4_000)])
def test_lists_grow_with_the_root_of_the_rows(rows: int, lists: int) -> None:
    assert list_count(rows) == lists
