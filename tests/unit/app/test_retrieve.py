"""Retrieval against lists worked out by definition, in every mode."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from random_catalogue import RandomCatalogue

from app.recommend import retrieve, view
from app.recommend.index import RARE, RowIndex, build
from app.recommend.retrieve import Limits, Retriever, choose_mode
from app.recommend.scan import Found

ROWS, WIDTH = 600, 8


@pytest.fixture(autouse=True)
def _few(monkeypatch: pytest.MonkeyPatch) -> None:
    # What is few in a catalogue of hundreds; else nothing here would reach the index.
    monkeypatch.setattr(view, "FEW", 20)
    monkeypatch.setattr(retrieve, "FEW", 20)


def right(catalogue: RandomCatalogue, users: dict, limits: list[Limits], m: int) -> list[Found]:
    return [catalogue.right(users, place, one, m) for place, one in enumerate(limits)]


def assert_same(found: list[Found], expected: list[Found]) -> None:
    for one, other in zip(found, expected, strict=True):
        assert len(one.rows) == len(other.rows)
        np.testing.assert_allclose(one.scores, other.scores, atol=1e-4)
        for place in np.flatnonzero(one.rows != other.rows):
            # Only rows that rounding brought together may change places.
            assert abs(one.scores[place] - other.scores[place]) < 1e-5


def indexed(catalogue: RandomCatalogue, users: dict, folder: Path) -> Retriever:
    build(catalogue.source(users), folder)
    retriever = Retriever(catalogue, catalogue.exact)
    retriever.use(RowIndex(folder))
    return retriever


@st.composite
def rules(draw: st.DrawFn, rows: int, seed: int) -> Limits:
    rng = np.random.default_rng(seed)
    mask = None
    share = draw(st.sampled_from([None, None, 0.0, 0.01, 0.1, 0.5, 1.0]))
    if share is not None:
        mask = rng.random(rows) < share
    kind = draw(st.sampled_from(["none", "none", "boosts", "fresh", "forbidden"]))
    bias = None
    if kind == "boosts":
        bias = rng.choice(np.asarray([-1.0, 0.0, 0.0, 2.0], np.float32), rows)
    elif kind != "none":
        bias = rng.uniform(-2, 2, rows).astype(np.float32)
        if kind == "forbidden":
            bias[rng.random(rows) < 0.4] = -np.inf
    among = rng.integers(0, rows, 12).tolist() if draw(st.integers(0, 5)) == 0 else None
    without = rng.integers(0, rows, draw(st.sampled_from([0, 3, 80]))).tolist()
    own_rows = rng.permutation(rows)[: draw(st.sampled_from([0, 5]))].tolist()
    own = (own_rows, rng.uniform(-3, 3, len(own_rows)).astype(np.float32).tolist())
    return Limits(mask, among, without, bias, own)


@pytest.mark.parametrize("mode", ["exact", "index"])
@given(data=st.data())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_mode_gives_the_list_that_is_right(mode: str, data: st.DataObject, tmp_path: Path) -> None:
    seed = data.draw(st.integers(0, 2**31))
    levels = data.draw(st.sampled_from([0, 0, 1]))
    catalogue = RandomCatalogue(ROWS, WIDTH, 2, seed, levels)
    users = catalogue.users(3, data.draw(st.sampled_from([1, 3])), data.draw(st.sampled_from([0, 6])), levels)
    if data.draw(st.booleans()):
        catalogue.vectors[:50] = 0.0
    exact = Retriever(catalogue, catalogue.exact)
    retriever = indexed(catalogue, users, tmp_path / str(seed)) if mode == "index" else exact
    for change in data.draw(st.lists(st.sampled_from(["change", "append", "close", "close all", "popularity"]), max_size=3)):
        if change == "change":
            catalogue.change(catalogue.rng.integers(0, len(catalogue), 10))
        elif change == "append":
            catalogue.append(15)
        elif change == "close":
            catalogue.close(catalogue.rng.integers(0, len(catalogue), 100))
        elif change == "close all":
            catalogue.close(np.arange(len(catalogue) - 2))
        else:
            catalogue.popularity = catalogue.popularity * np.float32(0.2)
            catalogue.popularity[catalogue.rng.integers(0, len(catalogue), 20)] += 30
    shared = data.draw(rules(len(catalogue), seed))
    other = data.draw(rules(len(catalogue), seed + 1))
    limits = [shared, dataclasses.replace(shared, without=[], own=((), ())), other]
    m = data.draw(st.sampled_from([1, 10, 2 * ROWS]))
    # A small index looks at all of its rows: what differs from the definition is a mistake, not a miss.
    assert_same(retriever.best(users, m, catalogue.popularity, limits), right(catalogue, users, limits, m))


def test_ties_are_broken_by_the_lower_row_also_at_the_end_of_the_list(tmp_path: Path) -> None:
    catalogue = RandomCatalogue(ROWS, WIDTH, 1, 0)
    catalogue.vectors[:], catalogue.bias[:], catalogue.popularity[:] = 1.0, 0.0, 1.0
    users = catalogue.users(1, 1, 0)
    (found,) = indexed(catalogue, users, tmp_path / "index").best(users, 5, catalogue.popularity, [Limits(without=[1])])
    assert len(found.rows) == 5
    assert len(set(found.scores.tolist())) == 1
    assert found.rows.tolist() == sorted(found.rows.tolist())


def test_k_is_complete_where_a_mask_keeps_only_what_the_user_does_not_want(tmp_path: Path) -> None:
    catalogue = RandomCatalogue(5_000, WIDTH, 1, 3)
    users = catalogue.users(1, 1, 0)
    scores = catalogue.scores(users, 0, catalogue.popularity)
    limits = Limits(mask=scores < np.quantile(scores, 0.05))
    retriever = indexed(catalogue, users, tmp_path / "index")
    found = retriever.best(users, 50, catalogue.popularity, [limits])
    assert_same(found, [catalogue.right(users, 0, limits, 50)])


def test_who_left_out_everything_that_an_index_finds_gets_a_whole_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retrieve, "SCANNED", 100)
    catalogue = RandomCatalogue(20_000, WIDTH, 1, 4)
    users = catalogue.users(2, 1, 0)
    best = catalogue.right(users, 0, Limits(), 19_900).rows
    limits = [Limits(without=best.tolist()), Limits()]
    found = indexed(catalogue, users, tmp_path / "index").best(users, 50, catalogue.popularity, limits)
    assert_same(found[:1], [catalogue.right(users, 0, limits[0], 50)])


def test_who_gets_too_little_from_the_index_gets_an_exact_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    catalogue = RandomCatalogue(ROWS, WIDTH, 1, 4)
    users = catalogue.users(2, 1, 0)
    retriever = indexed(catalogue, users, tmp_path / "index")
    monkeypatch.setattr(RowIndex, "search", lambda *_: np.full((2, 100), -1))
    limits = [Limits(), Limits(without=[1])]
    assert_same(retriever.best(users, 9, catalogue.popularity, limits), right(catalogue, users, limits, 9))


@pytest.mark.parametrize("how", ["change", "append"])
def test_a_row_that_changed_or_came_is_found_though_the_index_does_not_know(
    how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retrieve, "SCANNED", 100)
    catalogue = RandomCatalogue(20_000, WIDTH, 2, 5)
    users = catalogue.users(1, 1, 0)
    retriever = indexed(catalogue, users, tmp_path / "index")
    retriever.best(users, 10, catalogue.popularity)
    row = int(np.argmin(catalogue.scores(users, 0, catalogue.popularity))) if how == "change" else len(catalogue)
    if how == "change":
        catalogue.change(np.asarray([row]))
    else:
        catalogue.append(1)
    catalogue.vectors[row] = 10 * users["interests"][0, 0]
    assert retriever.best(users, 10, catalogue.popularity)[0].rows[0] == row
    catalogue.close(np.asarray([row]))
    assert row not in retriever.best(users, 10, catalogue.popularity)[0].rows


def test_an_item_that_became_popular_is_found_though_the_index_has_it_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retrieve, "SCANNED", 100)
    monkeypatch.setattr(retrieve, "_DRIFT_S", 0.0)
    catalogue = RandomCatalogue(20_000, WIDTH, 2, 5)
    users = catalogue.users(1, 1, 0)
    users["popularity_weight"][:] = 0.5
    retriever = indexed(catalogue, users, tmp_path / "index")
    worst = int(np.argmin(catalogue.scores(users, 0, catalogue.popularity)))
    assert worst not in retriever.best(users, 10, catalogue.popularity)[0].rows
    catalogue.popularity = catalogue.popularity.copy()
    catalogue.popularity[worst] = 1e12
    assert retriever.best(users, 10, catalogue.popularity)[0].rows[0] == worst
    assert retriever.beside >= 1


def test_recall_over_all_of_the_score_stays_high_while_popularity_fades(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retrieve, "_DRIFT_S", 0.0)
    monkeypatch.setattr(retrieve, "SCANNED", 4_000)
    monkeypatch.setattr(retrieve, "_LIFTED", 64)
    catalogue = RandomCatalogue(20_000, 16, 2, 6)
    users = catalogue.users(16, 1, 8)
    users["popularity_weight"][:] = 2.0
    retriever = indexed(catalogue, users, tmp_path / "index")
    for factor in (1.0, 0.1, 1e-3, 1e-9):
        now = catalogue.popularity * np.float32(factor)
        found = retriever.best(users, 50, now)
        exact = Retriever(catalogue, catalogue.exact).best(users, 50, now)
        recall = np.mean([len(np.intersect1d(a.rows, b.rows)) / 50 for a, b in zip(found, exact, strict=True)])
        assert recall >= 0.95, factor


def test_what_is_rare_counts_as_much_as_in_the_graph() -> None:
    from model.nets import readout

    assert RARE == readout.RARE


@pytest.mark.parametrize(
    ("setting", "rows", "device", "mode"),
    [
        ("auto", 99_999, "cpu", "exact"),
        ("auto", 100_000, "cpu", "index"),
        ("auto", 5_000_000, "cuda", "exact"),
        ("exact", 5_000_000, "cpu", "exact"),
        ("index", 100, "cpu", "index"),
    ],
)
def test_the_mode_follows_from_setting_size_and_device(setting: str, rows: int, device: str, mode: str) -> None:
    assert choose_mode(setting, rows, device)[0] == mode  # type: ignore[arg-type]


def test_without_faiss_everything_is_exact_and_that_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retrieve, "is_installed", lambda: False)
    mode, why = choose_mode("auto", 1_000_000, "cpu")
    assert mode == "exact"
    assert "faiss" in why
