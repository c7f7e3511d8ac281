"""Medians, and how sure they are."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Samples = NDArray[np.float64]
RESAMPLES = 2000


@dataclass(frozen=True)
class Estimate:
    """A median with its bootstrap interval."""

    median: float
    low: float
    high: float

    @property
    def error(self) -> float:
        """Half the interval, as a share of the median."""
        return (self.high - self.low) / 2.0 / self.median

    def __str__(self) -> str:
        error = ">99%" if self.error > 0.99 else f"{self.error:.0%}"
        return f"{self.median:.2f} ±{error}"

    @property
    def with_interval(self) -> str:
        return f"{self.median:.3f} [{self.low:.3f}, {self.high:.3f}]"


def estimate(rounds: Samples, confidence: float = 0.95) -> Estimate:
    """The median, and between which it would fall had the rounds been others of the same kind."""
    return _estimate(float(np.median(rounds)), resampled_medians(rounds, seed=0), confidence)


def estimate_ratio_of_medians(over: Samples, under: Samples, confidence: float) -> Estimate:
    """Of two that were not measured together, so that their rounds are not pairs."""
    resampled = resampled_medians(over, seed=0) / resampled_medians(under, seed=1)
    return _estimate(float(np.median(over) / np.median(under)), resampled, confidence)


def resampled_medians(rounds: Samples, seed: int) -> Samples:
    """Medians of as many rounds, drawn from these with replacement, the same in every run."""
    drawn = np.random.default_rng(seed).choice(rounds, (RESAMPLES, len(rounds)))
    return np.median(drawn, axis=1)


def _estimate(median: float, resampled: Samples, confidence: float) -> Estimate:
    tail = (1.0 - confidence) / 2.0
    low, high = np.quantile(resampled, (tail, 1.0 - tail))
    return Estimate(median, float(low), float(high))
