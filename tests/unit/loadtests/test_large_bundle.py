"""Drawn bundles are bundles: the service reads them, and their rows are like the model's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from app.runtime.bundle import read_bundle
from app.runtime.golden import replay_golden
from app.runtime.session import open_runtime
from loadtests.large_bundle import draw, item_id, write_large_bundle
from loadtests.shaped_queries import interests


@pytest.fixture(scope="module")
def large(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_large_bundle(tiny_bundle, 2_000, tmp_path_factory.mktemp("large") / "bundle")


def test_a_drawn_bundle_is_read_and_its_graphs_give_what_they_gave(large: Path, tiny_bundle: Path) -> None:
    bundle = read_bundle(large)
    assert bundle.manifest.items.count == len(bundle.items) == 2_000
    assert bundle.items[1_999].id == item_id(1_999)
    assert bundle.manifest.model_id != read_bundle(tiny_bundle).manifest.model_id
    assert replay_golden(open_runtime(bundle, "cpu", 1)) > 0


def test_drawn_rows_have_norms_and_biases_like_those_of_the_model(tiny_bundle: Path) -> None:
    bundle = read_bundle(tiny_bundle)
    drawn = draw(bundle, 5_000)
    for known, new in (
        (np.linalg.norm(bundle.vectors, axis=1), np.linalg.norm(drawn.vectors, axis=1)),
        (bundle.bias, drawn.bias),
    ):
        assert new.mean() == pytest.approx(known.mean(), abs=0.3 * float(known.std()))
        assert new.std() == pytest.approx(known.std(), rel=0.4)


def test_users_are_folded_by_the_bundles_own_graphs_and_differ(large: Path) -> None:
    bundle = read_bundle(large)
    found = interests(open_runtime(bundle, "cpu", 1), bundle, 8)
    assert found["interests"].shape == (8, 1, 16)
    assert found["interests"].std(0).min() > 0
    assert found["repeat_rows"].max() < 2_000
