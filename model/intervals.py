"""How sure a mean is: bootstrap over users, since the queries of one user are not independent."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Float64 = npt.NDArray[np.float64]

LEAST_USERS = 2  # of one alone every resample is the same, and any difference would seem sure
CHUNK = 64  # resamples multiplied at a time: (CHUNK, U) float64 are in memory at once


@dataclass(frozen=True)
class Estimate:
    """A mean over queries.

    Attributes:
        mean: over all queries that have a value (micro).
        per_user: mean of the users' means (macro).
        standard_error, low, high: of `mean`: standard deviation, 2.5% and 97.5% quantile of the resampled means.

    A figure that belongs to all lists together (coverage) has only a mean. NaN: no query has a value. Of fewer than two users
    nothing says how much users differ: None, as in `Difference` and `Ratio`.
    """

    mean: float
    per_user: float | None = None
    standard_error: float | None = None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Difference:
    """How much better one model is than another on the same queries.

    Attributes:
        mean: first minus second, over queries.
        ratio: mean of the first over mean of the second; NaN if that is 0.
        standard_error, low, high: of `mean`, as in `Estimate`.
        p: two-sided: twice the share of resamples whose difference is 0 or lies on the other side of it, at most 1; one is added
            to both counts, so that it is never smaller than the resamples can show. 1 of fewer than two users.
    """

    mean: float
    ratio: float
    standard_error: float | None
    low: float | None
    high: float | None
    p: float

    def interval(self) -> str:
        """In words."""
        return "–" if self.low is None or self.high is None else f"{self.low:+.4f} to {self.high:+.4f}"


@dataclass(frozen=True)
class Ratio:
    """How many times as good one model is as another on the same queries.

    Attributes:
        mean: mean of the first over mean of the second; NaN if that is 0.
        low, high: 2.5% and 97.5% quantile of the resampled ratios, in which both means come from the same users.
    """

    mean: float
    low: float | None
    high: float | None


class UserBootstrap:
    """Resamples of users with replacement, all queries of a user together; the same resamples for every metric and model.

    Source: the cluster bootstrap (Field & Welsh 2007); paired use as in Sakai 2006.
    """

    def __init__(self, user: npt.NDArray[np.integer], resamples: int = 1000, seed: int = 0) -> None:
        """`user`: (Q,) who asked each query."""
        _, self._user = np.unique(user, return_inverse=True)
        self._users = int(self._user.max(initial=-1)) + 1
        rng = np.random.default_rng(seed)
        # Times that each user is drawn. One byte is enough: with 256 users or more, 256 draws of the same one never happen.
        self._drawn = np.empty((resamples, self._users), np.uint8)
        for row in self._drawn:
            row[:] = np.bincount(rng.integers(0, max(self._users, 1), self._users), minlength=self._users)

    def estimate(self, values: Float64) -> Estimate:
        """Mean with its error of (Q,) values; NaN values are left out, and users who have no other."""
        total, count = self._sums(values)
        if not count.any():
            return Estimate(float("nan"))
        has = count > 0
        mean, per_user = float(total.sum() / count.sum()), float((total[has] / count[has]).mean())
        if has.sum() < LEAST_USERS:
            return Estimate(mean, per_user)
        means = self._means(total, count)
        low, high = np.quantile(means, [0.025, 0.975])
        return Estimate(mean, per_user, standard_error=float(means.std()), low=float(low), high=float(high))

    def difference(self, first: Float64, second: Float64) -> Difference:
        """Paired comparison of two models' (Q,) values; a query that is NaN for either is left out.

        Raises:
            ValueError: no query has both values.
        """
        total, count = self._sums(first - second)
        if not count.any():
            raise ValueError("no query has a value for both models")
        both = ~np.isnan(first - second)
        baseline = float(second[both].mean())
        mean, ratio = float(total.sum() / count.sum()), float(first[both].mean()) / baseline if baseline else float("nan")
        if (count > 0).sum() < LEAST_USERS:
            return Difference(mean, ratio, None, None, None, 1.0)
        means = self._means(total, count)
        low, high = np.quantile(means, [0.025, 0.975])
        return Difference(
            mean,
            ratio,
            standard_error=float(means.std()),
            low=float(low),
            high=float(high),
            p=min(1.0, 2 * (1 + min(int((means <= 0).sum()), int((means >= 0).sum()))) / (1 + len(means))),
        )

    def ratio(self, first: Float64, second: Float64) -> Ratio:
        """As `difference`, of the ratio of the means; resamples in which the second is 0 are left out.

        Raises:
            ValueError: no query has both values.
        """
        both = ~np.isnan(first - second)
        if not both.any():
            raise ValueError("no query has a value for both models")
        baseline = float(second[both].mean())
        if not baseline:
            return Ratio(float("nan"), None, None)
        mean = float(first[both].mean()) / baseline
        if len(np.unique(self._user[both])) < LEAST_USERS:
            return Ratio(mean, None, None)
        above = self._means(*self._sums(np.where(both, first, np.nan)))
        below = self._means(*self._sums(np.where(both, second, np.nan)))
        low, high = np.quantile(above[below > 0] / below[below > 0], [0.025, 0.975])
        return Ratio(mean, float(low), float(high))

    def _sums(self, values: Float64) -> tuple[Float64, Float64]:
        """(U,) sum and number of each user's values."""
        total = np.bincount(self._user, np.nan_to_num(values), minlength=self._users).astype(np.float64)
        return total, np.bincount(self._user, ~np.isnan(values), minlength=self._users).astype(np.float64)

    def _means(self, total: Float64, count: Float64) -> Float64:
        """The mean over queries in each resample that has any."""
        sums = np.stack([total, count], axis=1)
        drawn = np.concatenate([self._drawn[begin : begin + CHUNK] @ sums for begin in range(0, len(self._drawn), CHUNK)])
        drawn = drawn[drawn[:, 1] > 0]
        means: Float64 = drawn[:, 0] / drawn[:, 1]
        return means
