"""The plan of every experiment: each arm tunes its rate on validation data, then runs its seeds.

An arm is a network at an alpha. Its rate is the best of a coarse grid and of the two rates beside
the best one, so all arms search equally long. Only the runs at the chosen rates see the test data.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any, Protocol

from .journal import Journal

TUNING_SEED = 100
"""None that is reported."""
STEP = 2.0
"""From the best rate of the coarse grid to the rates beside it."""

Metrics = dict[str, Any]


@dataclass(frozen=True)
class Arm:
    """What is compared: one network, one alpha."""

    network: str
    alpha: float


class Measure(Protocol):
    """Train an arm with a rate and a seed, and judge it on "validation" or on "test"."""

    def __call__(self, arm: Arm, rate: float, seed: int, part: str) -> Metrics: ...


@dataclass(frozen=True)
class Study:
    """Arms, the coarse grid of rates, seeds, and what picks a rate: the higher the better."""

    arms: Sequence[Arm]
    rates: Sequence[float]
    seeds: Sequence[int]
    objective: Callable[[Metrics], float]

    @classmethod
    def of(
        cls,
        networks: Iterable[str],
        alphas: Iterable[float],
        rates: Sequence[float],
        objective: Callable[[Metrics], float],
        *,
        quick: bool,
    ) -> Study:
        """Return every network at every alpha over 8 seeds, or over 2 for a quick look."""
        arms = [Arm(network, alpha) for network in networks for alpha in alphas]
        return cls(arms, rates, range(2 if quick else 8), objective)

    @property
    def runs(self) -> int:
        """How many times something is trained."""
        return len(self.arms) * (len(self.rates) + 2 + len(self.seeds))


@dataclass(frozen=True)
class Outcome:
    """The rate that an arm chose, and its metrics on the test data, one for each seed in order."""

    rate: float
    metrics: Sequence[Metrics]

    def values(self, name: str) -> list[float]:
        """Return one metric of each seed."""
        return [metrics[name] for metrics in self.metrics]


Outcomes = dict[Arm, Outcome]


def carry_out(study: Study, measure: Measure, journal: Journal) -> Outcomes:
    """Run what the journal lacks, all searches first and then seed by seed over all arms."""

    def run(arm: Arm, rate: float, seed: int, part: str) -> Metrics:
        key = (arm.network, arm.alpha, rate, seed, part)
        return journal.once(key, lambda: measure(arm, rate, seed, part))

    def score(arm: Arm, rate: float) -> float:
        return study.objective(run(arm, rate, TUNING_SEED, "validation"))

    rates = {
        arm: tuned_rate(study.rates, lambda rate, arm=arm: score(arm, rate)) for arm in study.arms
    }
    metrics: dict[Arm, list[Metrics]] = {arm: [] for arm in study.arms}
    for seed in study.seeds:
        for arm in study.arms:
            metrics[arm].append(run(arm, rates[arm], seed, "test"))
    return {arm: Outcome(rates[arm], metrics[arm]) for arm in study.arms}


def tuned_rate(coarse: Sequence[float], score: Callable[[float], float]) -> float:
    """Return the rate with the highest score; one whose training diverged has none."""
    scores = {rate: score(rate) for rate in coarse}
    best = _best(scores)
    return _best(scores | {rate: score(rate) for rate in (best / STEP, best * STEP)})


def _best(scores: dict[float, float]) -> float:
    finite = {rate: value for rate, value in scores.items() if isfinite(value)}
    if not finite:
        raise ArithmeticError(f"training diverged at every rate of {sorted(scores)}")
    return max(finite, key=finite.__getitem__)
