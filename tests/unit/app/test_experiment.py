"""Who is in which arm: evenly, independently, and the same for ever."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from app.recommend.experiment import HOLDOUT, Experiment, ExperimentSettings

USERS = [f"user-{n}" for n in range(20_000)]


def experiment(*shares: float, name: str = "cart", holdout: float = 0.0, salt: str | None = None, stopped: bool = False):
    arms = [{"name": chr(ord("a") + n), "share": share} for n, share in enumerate(shares)]
    settings = {"arms": arms, "holdout": holdout, "stopped": stopped} | ({"salt": salt} if salt is not None else {})
    return Experiment(name, 1, ExperimentSettings.model_validate(settings))


def arm(found: Experiment, user: str) -> str:
    one = found.arm_of(user)
    return HOLDOUT if one is None else one.name


def chi_square(counts: dict[str, int], shares: dict[str, float]) -> float:
    total = sum(counts.values())
    return sum((counts.get(name, 0) - total * share) ** 2 / (total * share) for name, share in shares.items())


@pytest.mark.parametrize("name", ["cart", "", "🛒" * 64, "ü/ß"])
def test_users_are_divided_by_the_shares(name: str):
    found = experiment(1, 2, 5, holdout=0.2, salt=name or "x")
    counts = Counter(arm(found, user) for user in USERS)
    # 3 degrees of freedom: above 16.3 once in a thousand times
    assert chi_square(counts, {HOLDOUT: 0.2, "a": 0.1, "b": 0.2, "c": 0.5}) < 16.3
    tenths = Counter(str(int(found.place_of(user) * 10)) for user in USERS)
    assert chi_square(tenths, {str(n): 0.1 for n in range(10)}) < 27.9  # 9 degrees


def test_ids_that_hardly_differ_are_divided_as_well():
    found = experiment(1, 1)
    for ids in ([str(n) for n in range(10_000)], ["x" * n for n in range(2_000)], [f"{n:064d}" for n in range(10_000)]):
        assert chi_square(Counter(arm(found, user) for user in ids), {"a": 0.5, "b": 0.5}) < 10.9


def test_two_experiments_divide_independently_and_with_one_salt_alike():
    one, other = experiment(1, 1, name="cart"), experiment(1, 1, name="mail")
    both = Counter(arm(one, user) + arm(other, user) for user in USERS)
    assert chi_square(both, dict.fromkeys(map("".join, itertools.product("ab", "ab")), 0.25)) < 16.3
    salted = experiment(1, 1, name="mail", salt="cart")
    assert all(arm(one, user) == arm(salted, user) for user in USERS[:1_000])


def test_a_user_stands_where_they_always_stood():
    # Values of the first version: another one would mix the arms of every experiment that is running.
    cart = experiment(1, 1)
    found = [cart.place_of(user) for user in ("17850", "user-1", "ü/ß", "")]
    assert found == [0.14522127017294084, 0.7926924515112266, 0.5204529835534591, 0.7633888599057723]


@given(
    st.lists(st.floats(1e-9, 1e6), min_size=1, max_size=10),
    st.floats(0, 0.9),
    st.text(max_size=20),
)
def test_everybody_is_somewhere_whatever_the_shares(shares: list[float], holdout: float, user: str):
    found = experiment(*shares, holdout=holdout)
    assert 0 <= found.place_of(user) < 1
    assert (arm(found, user) == HOLDOUT) == (found.place_of(user) < holdout)


@given(st.lists(st.integers(1, 20), min_size=2, max_size=5), st.integers(0, 4), st.integers(1, 20), st.floats(0, 0.5))
def test_who_is_moved_is_moved_to_an_arm_beside_the_end_that_moved_and_no_more_than_it_moved(
    shares: list[int], changed: int, share: int, holdout: float
):
    other = [*shares]
    other[changed % len(other)] = share
    before, after = experiment(*shares, holdout=holdout), experiment(*other, holdout=holdout)
    ends = [before._ends, after._ends]
    for user in USERS[:500]:
        place = before.place_of(user)
        between = any(min(pair) <= place < max(pair) for pair in zip(*ends, strict=True))
        assert (arm(before, user) != arm(after, user)) == between


def test_a_larger_holdout_takes_users_in_and_lets_none_out():
    before, after = experiment(1, 1, 1, holdout=0.1), experiment(1, 1, 1, holdout=0.2)
    moved = Counter((arm(before, user), arm(after, user)) for user in USERS)
    assert not any(old == HOLDOUT != new for old, new in moved)
    # 0.1 into the holdout; a/b and b/c move by two thirds and one third of it
    assert sum(count for (old, new), count in moved.items() if old != new) / len(USERS) == pytest.approx(0.2, abs=0.012)


def test_of_a_stopped_one_everybody_gets_the_first_arm():
    found = experiment(1, 1, holdout=0.5, stopped=True)
    assert {arm(found, user) for user in USERS[:100]} == {"a"}


@pytest.mark.parametrize(
    ("wrong", "place"),
    [
        ({"arms": []}, "arms"),
        ({"arms": [{"name": "a", "share": 1}] * 2}, "arms"),
        ({"arms": [{"name": f"{n}", "share": 1} for n in range(11)]}, "arms"),
        ({"arms": [{"name": "holdout", "share": 1}]}, "arms.0.name"),
        ({"arms": [{"name": "é" * 13, "share": 1}]}, "arms.0.name"),
        ({"arms": [{"name": "a\n", "share": 1}]}, "arms.0.name"),
        ({"arms": [{"name": "", "share": 1}]}, "arms.0.name"),
        ({"arms": [{"name": "a", "share": 0}]}, "arms.0.share"),
        ({"arms": [{"name": "a", "share": float("nan")}]}, "arms.0.share"),
        ({"arms": [{"name": "a", "share": float("inf")}]}, "arms.0.share"),
        ({"arms": [{"name": "a", "share": "1"}]}, "arms.0.share"),
        ({"holdout": 0.91}, "holdout"),
        ({"holdout": -0.1}, "holdout"),
        ({"salt": ""}, "salt"),
        ({"stopped": 1}, "stopped"),
        ({"stoped": True}, "stoped"),
    ],
)
def test_what_is_wrong_is_named(wrong: dict[str, object], place: str):
    with pytest.raises(ValidationError) as caught:
        ExperimentSettings.model_validate({"arms": [{"name": "a", "share": 1}]} | wrong)
    assert [".".join(map(str, error["loc"])) for error in caught.value.errors()] == [place]
