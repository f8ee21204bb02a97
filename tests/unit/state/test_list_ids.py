"""What the id of a list says, and which strings are none."""

from __future__ import annotations

import time
from base64 import urlsafe_b64decode, urlsafe_b64encode
from hashlib import blake2b

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from app.state.lists import MOST_ARM_BYTES, ListOrigin, new_list_id, read_list_id

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


@given(
    st.booleans(),
    st.none() | st.text(max_size=16),
    st.text(min_size=1, max_size=16),
    st.integers(0, 2**32 - 1),
    st.integers(1, 2**32 - 1),
    st.text(min_size=1, max_size=6),
)
@example(True, "", "x", 0, 1, "\x00")
def test_an_id_says_which_arm_of_which_experiment(
    fallback: bool, scenario: str | None, experiment: str, version: int, experiment_version: int, arm: str
):
    made = new_list_id(MODEL, fallback, scenario, version, experiment, experiment_version, arm)
    origin = read_list_id(made)
    assert origin is not None
    assert origin == ListOrigin(
        MODEL,
        fallback,
        origin.made_s,
        scenario or "",
        version if scenario is not None else 0,
        experiment,
        experiment_version,
        arm,
    )


def test_the_longest_id_can_be_the_recommendation_id_of_an_event():
    made = new_list_id(MODEL, True, "x" * 256, 2**32 - 1, "é" * 256, 2**32 - 1, "a" * MOST_ARM_BYTES)
    assert len(made) <= 256
    origin = read_list_id(made)
    assert origin is not None
    assert origin.arm == "a" * MOST_ARM_BYTES
    assert origin.scenario.startswith("xxx")
    assert origin.experiment.startswith("ééé")


@pytest.mark.parametrize(
    ("made", "scenario", "version"),
    [
        ("AQDJNzQ_x6VqZs8DCGtyqH5-mvcUl05lhoQ1", "", 0),
        ("AQPJNzQ_x6VqZs8DCGtZsOn2EEIXll4HAAAAY2FydPa6Fio", "cart", 7),
    ],
)
def test_ids_of_before_there_were_experiments_are_read(made: str, scenario: str, version: int):
    origin = read_list_id(made)
    assert origin is not None
    assert (origin.scenario, origin.version, origin.experiment, origin.experiment_version, origin.arm) == (
        scenario,
        version,
        "",
        0,
        "",
    )


@given(st.integers(0, 255), st.binary(max_size=40))
@example(2, b"")  # says that a scenario follows, and none does
@example(6, b"\x01\x00\x00\x00\x02x")
def test_whatever_follows_the_flags_an_id_is_read_or_is_none(flags: int, rest: bytes):
    # the checksum keeps nobody from making such a thing
    body = urlsafe_b64decode(new_list_id(MODEL, False))[:1] + bytes([flags]) + b"m" * 21 + rest
    raw = body + blake2b(body, digest_size=4, person=b"longwave list").digest()
    origin = read_list_id(urlsafe_b64encode(raw).rstrip(b"=").decode())
    if not flags & 6:
        assert origin is not None
    if flags & 6 and len(rest) < 4:
        assert origin is None


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
