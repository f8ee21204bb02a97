"""What the id of a list says, and which strings are none."""

from __future__ import annotations

import time

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from app.state.lists import new_list_id, read_list_id

MODEL = "c937343fc7a56a66"


@given(st.booleans(), st.none() | st.text(max_size=16), st.integers(0, 2**32 - 1))
def test_an_id_says_where_its_list_comes_from(fallback: bool, scenario: str | None, version: int):
    made = new_list_id(MODEL, fallback, scenario, version)
    origin = read_list_id(made)
    assert origin is not None
    assert (origin.model_id, origin.fallback, origin.scenario) == (MODEL, fallback, scenario or "")
    assert origin.version == (version if scenario is not None else 0)
    assert abs(origin.made_s - time.time()) < 60
    assert len(made) <= 160


def test_no_two_ids_are_the_same_and_those_without_a_scenario_are_short():
    ids = {new_list_id(MODEL, False) for _ in range(10_000)}
    assert len(ids) == 10_000
    assert {len(one) for one in ids} == {36}


def test_a_long_name_is_shortened_and_stays_another_ones():
    names = ["x" * 256, "x" * 255 + "y", "é" * 200, "x" * 64]
    found = [read_list_id(new_list_id(MODEL, False, name, 1)) for name in names]
    assert [len(one.scenario.encode()) <= 66 for one in found if one is not None] == [True] * 4
    assert len({one.scenario for one in found if one is not None}) == 4


@given(st.integers(0, 200), st.characters())
@example(0, "é")
def test_one_other_character_makes_it_no_id(place: int, other: str):
    made = new_list_id(MODEL, False, "cart", 3)
    place %= len(made)
    if made[place] != other:
        assert read_list_id(made[:place] + other + made[place + 1 :]) is None


@pytest.mark.parametrize("text", ["", "r", "=", "0" * 24, "ä" * 36, "A" * 36, "A" * 100_000, "\x00" * 36])
def test_what_is_no_id_is_none(text: str):
    assert read_list_id(text) is None
    made = new_list_id(MODEL, True)
    assert read_list_id(made[:-1]) is read_list_id(made + "A") is read_list_id(made + "=") is read_list_id(" " + made) is None
