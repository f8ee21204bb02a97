"""Rates with errors that know whose they are, comparisons of two, and the tests beside them. numpy and the standard library."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

Z95: Final = 1.959963984540054
"""The 97.5% point of the normal distribution: intervals are of 95%."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A rate and its standard error, over `users`; None where it cannot be told (no user, or for the error a single one)."""

    value: float | None
    error: float | None
    users: int

    @property
    def low(self) -> float | None:
        return None if self.value is None or self.error is None else self.value - Z95 * self.error

    @property
    def high(self) -> float | None:
        return None if self.value is None or self.error is None else self.value + Z95 * self.error


@dataclass(frozen=True, slots=True)
class Difference:
    """One rate against another: the difference, the relative lift, intervals of 95% for both, and a two-sided p-value.

    None is what cannot be told: the lift over a control of 0, and a p-value where neither rate varies.
    """

    difference: float | None = None
    low: float | None = None
    high: float | None = None
    lift: float | None = None
    lift_low: float | None = None
    lift_high: float | None = None
    p: float | None = None


def ratio(numerators: Floats, denominators: Floats) -> Estimate:
    """sum(numerators) / sum(denominators), each (U,) with one sum a user. The users are independent; what one user does is not.

    Source: the delta method for a ratio of means; Deng, Knoblich & Lu, Applying the Delta Method in Metric Analytics, KDD 2018.
    """
    users, total = len(denominators), float(denominators.sum())
    if users == 0 or total == 0.0:
        return Estimate(None, None, users)
    value = float(numerators.sum()) / total
    if users == 1:
        return Estimate(value, None, users)
    residuals = numerators - value * denominators
    return Estimate(value, math.sqrt(users / (users - 1) * float(residuals @ residuals)) / total, users)


def compare(control: Estimate, arm: Estimate) -> Difference:
    """An arm against the control, whose users are others. The lift's interval is made on the scale of logarithms."""
    if control.value is None or arm.value is None:
        return Difference()
    difference = arm.value - control.value
    lift = difference / control.value if control.value else None
    if control.error is None or arm.error is None:
        return Difference(difference, lift=lift)
    error = math.hypot(control.error, arm.error)
    # Rates that do not vary (nobody ever clicks) have no error, and then nothing can be said of their difference.
    p = math.erfc(abs(difference) / error / math.sqrt(2)) if error else None
    low, high = difference - Z95 * error, difference + Z95 * error
    if lift is None or arm.value <= 0:
        return Difference(difference, low, high, lift, p=p)
    log_ratio = math.log(arm.value / control.value)
    log_error = Z95 * math.hypot(control.error / control.value, arm.error / arm.value)
    return Difference(difference, low, high, lift, _lift(log_ratio - log_error), _lift(log_ratio + log_error), p)


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """p-values that hold for all of these tests together: the chance of one false alarm or more among them.

    Source: Holm, A simple sequentially rejective multiple test procedure, Scand. J. Statist. 1979.
    """
    adjusted: list[float | None] = [None] * len(p_values)
    known = sorted((p, place) for place, p in enumerate(p_values) if p is not None)
    least = 0.0
    for rank, (p, place) in enumerate(known):
        least = max(least, min(1.0, (len(known) - rank) * p))
        adjusted[place] = least
    return adjusted


def chi_square(observed: Sequence[int], expected: Sequence[float]) -> tuple[float, int, float]:
    """Pearson's test of counts against shares, which add up to 1: the statistic, its degrees of freedom, the p-value."""
    total = sum(observed)
    statistic = sum((count - total * share) ** 2 / (total * share) for count, share in zip(observed, expected, strict=True))
    degrees = len(observed) - 1
    return statistic, degrees, chi_square_tail(statistic, degrees)


def chi_square_tail(statistic: float, degrees: int) -> float:
    """The chance of a larger chi-square: the closed forms for whole degrees of freedom (Abramowitz & Stegun, 26.4.4, 26.4.5)."""
    half = statistic / 2
    if degrees % 2:
        tail, term = math.erfc(math.sqrt(half)), math.exp(-half) * math.sqrt(half) / math.gamma(1.5)
        steps, at = (degrees - 1) // 2, 1.5
    else:
        tail, term = 0.0, math.exp(-half)
        steps, at = degrees // 2, 1.0
    for step in range(steps):
        tail += term
        term *= half / (at + step)
    return min(1.0, tail)


def _lift(log_ratio: float) -> float:
    """As a number that JSON has: an interval of next to nothing may reach beyond any."""
    return math.expm1(min(log_ratio, 700.0))
