"""Paired statistics over seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import sem


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds and its standard error."""

    mean: float
    error: float

    @classmethod
    def over(cls, values: Sequence[float]) -> Estimate:
        """Estimate from one value per seed; at least two."""
        return cls(float(np.mean(values)), float(sem(values)))


@dataclass(frozen=True)
class Comparison:
    """One quantity under both methods."""

    cross_entropy: Estimate
    power_gradient: Estimate
    difference: Estimate
    """PGT minus cross-entropy, seed by seed, so what both owe to the seed cancels."""
    better: int
    """Seeds in which PGT was strictly better."""
    ties: int
    seeds: int


def compare(
    cross_entropy: Sequence[float], power_gradient: Sequence[float], *, higher_is_better: bool
) -> Comparison:
    """Compare one value per seed under each method, the same seeds in the same order."""
    difference = np.subtract(power_gradient, cross_entropy)
    gain = difference if higher_is_better else -difference
    return Comparison(
        Estimate.over(cross_entropy),
        Estimate.over(power_gradient),
        Estimate.over(difference.tolist()),
        better=int(np.count_nonzero(gain > 0)),
        ties=int(np.count_nonzero(gain == 0)),
        seeds=len(difference),
    )
