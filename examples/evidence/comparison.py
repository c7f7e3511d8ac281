"""Paired statistics over seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import sem, t


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds, its standard error and its 95 % interval (Student's t)."""

    mean: float
    error: float
    interval: tuple[float, float]

    @classmethod
    def over(cls, values: Sequence[float]) -> Estimate:
        """Estimate from one value per seed; at least two."""
        mean, error = float(np.mean(values)), float(sem(values))
        half = float(t.ppf(0.975, len(values) - 1)) * error
        return cls(mean, error, (mean - half, mean + half))


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


def format_estimate(estimate: Estimate, digits: int, sign: str = "") -> str:
    """Return `mean ± standard error`; sign "+" writes a plus before a positive mean."""
    return f"{estimate.mean:{sign}.{digits}f} ± {estimate.error:.{digits}f}"


def format_interval(estimate: Estimate, digits: int) -> str:
    """Return `mean [low, high]`, signed: a difference and its 95 % interval."""
    low, high = estimate.interval
    return f"{estimate.mean:+.{digits}f} [{low:+.{digits}f}, {high:+.{digits}f}]"
