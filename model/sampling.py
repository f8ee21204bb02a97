"""Sampled softmax: a step scores some items instead of all, and counts each for those that it stands for.

Source: log-Q correction (Bengio & Senecal 2008; Yi et al. 2019, "Sampling-bias-corrected neural modeling"), here with the chance
that an item is among the candidates at all: the sum over candidates of exp(score) / chance is then right on average.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Float64 = npt.NDArray[np.float64]


class CandidateSampler:
    """Draws the items that all queries of a step are scored against."""

    def __init__(self, counts: Float64, negatives: int) -> None:
        """`counts`: (N,) how often each item is a training target; `negatives`: draws a step, with replacement."""
        self.negatives = negatives
        self.share = counts / max(1.0, counts.sum())
        # Half by popularity, where most of the softmax lies, half evenly, so that no item is left out.
        self.chance = 0.5 * self.share + 0.5 / len(counts)
        self._upto = np.cumsum(self.chance)
        self._upto[-1] = 1.0

    def draw(self, target: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Candidates of a step whose queries have these targets (t): rows (C) int64 ascending, all targets among them, and
        (C) float32 the logarithm of the chance of each to be one."""
        drawn = np.searchsorted(self._upto, rng.random(self.negatives), side="right")
        rows = np.union1d(drawn, target.numpy())
        # Not drawn as a negative in any draw, and nobody's target.
        missed = self.negatives * np.log1p(-self.chance[rows]) + len(target) * np.log1p(-np.minimum(self.share[rows], 1 - 1e-9))
        return torch.as_tensor(rows), torch.as_tensor(np.log(-np.expm1(missed)), dtype=torch.float32)
