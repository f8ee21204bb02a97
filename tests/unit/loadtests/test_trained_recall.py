"""The recall of the index on a trained model's rows: what is measured there, and that it is measured."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from loadtests.trained_recall import Rows, bench, efforts, recalls

USERS, WIDTH = 20, 8


@pytest.fixture
def users() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "interests": rng.standard_normal((USERS, 2, WIDTH)).astype(np.float32),
        "popularity_weight": rng.standard_normal((USERS, 3)).astype(np.float32),
    }


def some_rows(count: int) -> Rows:
    rng = np.random.default_rng(1)
    vectors, bias = rng.standard_normal((count, WIDTH)), rng.standard_normal(count)
    return Rows(vectors.astype(np.float32), bias.astype(np.float32), rng.random((count, 3)).astype(np.float32))


def test_of_a_million_rows_as_many_are_looked_at_and_scored_as_by_the_service():
    assert efforts(1_000_000) == [(10, 640, 32_000), (100, 1_000, 32_000)]


def test_of_few_rows_a_part_is_looked_at_and_never_fewer_than_are_asked_for():
    found = efforts(3_000)
    assert (10, 640, 96) in found
    assert (100, 1_000, 100) in found  # a share of .032 would be 96
    assert max(looked_at for _, _, looked_at in found) == 3_000
    assert all(kept <= scored <= 3_000 for kept, scored, _ in found)


def test_recall_is_whole_where_all_is_looked_at_and_scored_and_less_where_hardly_anything_is(users, tmp_path):
    rows = some_rows(600)
    assert recalls(rows, users, tmp_path)[-1] == {"k": 100, "scored": 600, "looked_at": 600, "recall": 1.0}
    assert next(line["recall"] for line in recalls(rows, users, tmp_path) if line["looked_at"] == 19) < 0.9


def test_the_best_rows_are_those_of_the_whole_score_best_first(users):
    rows = some_rows(200)
    logs = np.log(rows.popularity + 0.05)
    by_hand = (users["interests"] @ rows.vectors.T).max(1) + rows.bias + users["popularity_weight"] @ logs.T
    assert rows.best(users, 10).tolist() == np.argsort(-by_hand, 1)[:, :10].tolist()


def test_a_models_figures_are_kept_beside_those_of_others(trained_bundle: Path, tiny_run, tmp_path: Path):
    out = tmp_path / "recall.json"
    out.write_text('{"another": 1}', encoding="utf-8")
    bench(trained_bundle, tiny_run.run, tiny_run.data, 0, out)
    whole = json.loads(out.read_bytes())
    (name,) = set(whole) - {"another"}
    assert whole["another"] == 1
    assert whole[name]["users"] > 1
    for rows in ("trained", "drawn"):
        assert whole[name][rows][-1]["recall"] == 1.0
