"""Which weights of a blend go with a model."""

import json

import pytest

from app.recommend.contexts import CATEGORY_M, M
from app.runtime.manifest import Cold
from model.benchmark.blend import SERVED_FACETS, cold_of, write_cold
from model.benchmark.context import SERVED_CATEGORY_M, SERVED_M
from model.loop import COLD


def after(**found):
    """Number of events -> (chosen weight, lower end of the interval)."""
    return {
        number: {"context": {"chosen": weight, "all": {"ndcg@20": {"difference": {"low": low}}}}}
        for number, (weight, low) in found.items()
    }


@pytest.mark.parametrize(
    ("found", "events", "weights"),
    [
        ({"1": (1.0, 0.01), "3": (0.5, 0.01), "5": (1.0, -0.01), "10": (1.0, -0.1)}, [1, 3, 5], [1.0, 0.5, 0.0]),
        ({"1": (1.0, 0.01), "3": (0.5, 0.0), "5": (0.2, 0.01), "10": (0.0, 0.0)}, [1, 3, 5, 10], [1.0, 0.0, 0.2, 0.0]),
        ({"1": (1.0, 0.01), "10": (0.5, 0.01)}, [1, 10, 20], [1.0, 0.5, 0.0]),
    ],
)
def test_a_weight_is_kept_where_its_interval_is_above_nothing_and_the_last_is_none(found, events, weights):
    cold = cold_of(after(**found), ["country"], 20)
    assert cold == {"facets": ["country"], "events": events, "weights": weights}
    Cold.model_validate(cold)


def test_nothing_gained_or_nothing_that_a_service_knows_is_no_blend():
    assert cold_of(after(**{"1": (1.0, -0.01), "3": (0.0, 0.0)}), ["country"], 20) is None
    assert cold_of(after(**{"1": (1.0, 0.01), "3": (0.0, 0.0)}), ["age"], 20) is None


@pytest.mark.parametrize(("facets", "left"), [([], True), (["age"], True), (["country"], False), (["country", "age"], True)])
def test_weights_are_taken_away_only_by_a_measurement_of_what_a_service_knows(facets, left, tmp_path):
    (tmp_path / COLD).write_text('{"of": "another time"}')
    result = tmp_path / "shop-blend.json"
    result.write_text(json.dumps({"facets": facets, "cold": cold_of({}, facets, 20)}))
    assert write_cold(tmp_path, result) is None
    assert (tmp_path / COLD).exists() == left


def test_the_service_works_with_what_was_measured():
    assert (M, CATEGORY_M) == (SERVED_M, SERVED_CATEGORY_M)
    assert SERVED_FACETS == ("platform", "country", "category")
    assert set(Cold.model_json_schema()["properties"]["facets"]["items"]["enum"]) == set(SERVED_FACETS)


@pytest.mark.parametrize(
    ("events", "weights", "message"),
    [
        ([1, 2], [1.0, 0.5], "the last of them 0"),
        ([1, 2, 3], [1.0, 0.0], "a weight for each"),
        ([2, 1], [1.0, 0.0], "ascend"),
        ([0, 1], [1.0, 0.0], "greater than or equal to 1"),
    ],
)
def test_a_manifest_with_another_blend_is_refused(events, weights, message):
    with pytest.raises(ValueError, match=message):
        Cold(facets=["country"], events=events, weights=weights)
