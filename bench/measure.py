"""How time is taken: all candidates of a group in turn, round after round, in one process.

A machine that slows down for a moment slows all candidates of that round, so the ratios of a round
stay true, and the median over the rounds forgets the moment. Within a round the order is random, so
nobody always follows the same neighbour.
"""

from __future__ import annotations

import gc
import random
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .cases import Group, Problem
from .check import GradientCheck, WrongGradientError
from .peers import OURS, Peer, Step, UnavailableError

WARM_UP_CALLS = 2
WARM_UP_SECONDS = 0.02
SAMPLE_SECONDS = 0.004
"""Short calls are repeated for so long, and their median is one sample."""
PAUSE_SECONDS = 0.002
"""Before another candidate: the last one's threads spin for a while, then let go of the CPU."""
LEAST_ROUNDS, MOST_ROUNDS = 5, 101
RESAMPLES = 2000


@dataclass(frozen=True)
class Estimate:
    """A median over rounds with its 95 % bootstrap interval."""

    median: float
    low: float
    high: float

    @property
    def error(self) -> float:
        """Half the interval, as a share of the median."""
        return (self.high - self.low) / 2.0 / self.median


@dataclass
class Result:
    """What a group gave: seconds of every round by peer, or why a peer has none."""

    group: Group
    seconds: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)

    def time(self, peer: str) -> Estimate:
        return estimate(self.seconds[peer])

    def ratio(self, over: str, under: str) -> Estimate:
        """The time of `over` divided by that of `under`, round by round."""
        return estimate(self.seconds[over] / self.seconds[under])

    def fastest(self, peers: Sequence[str]) -> str | None:
        """The one of these with the shortest median, None if none was measured."""
        measured = [peer for peer in peers if peer in self.seconds]
        return min(measured, key=lambda peer: float(np.median(self.seconds[peer])), default=None)


@dataclass(frozen=True)
class Candidate:
    """A peer's step, warmed up, and how many calls make one of its samples."""

    name: str
    step: Step
    calls: int
    seconds_per_sample: float


def measure(group: Group, peers: Sequence[Peer], budget: float) -> Result:
    """Check and time these peers on one problem, for about `budget` seconds after the warm-up.

    Raises:
        WrongGradientError: one of ours is wrong; others that are wrong are left out.
    """
    problem = Problem(group)
    check = GradientCheck(problem)
    result = Result(group)
    candidates = []
    for peer in peers:
        try:
            candidates.append(warm_up(peer, problem, check))
        except ImportError as error:
            result.skipped[peer.name] = f"{error.name} cannot be imported"
        except UnavailableError as error:
            result.skipped[peer.name] = str(error)
        except WrongGradientError as error:
            if peer in OURS:
                raise
            result.skipped[peer.name] = str(error)
    round_seconds = sum(candidate.seconds_per_sample for candidate in candidates)
    count = round(budget / round_seconds) if candidates else 0
    rounds = play(candidates, min(max(count, LEAST_ROUNDS), MOST_ROUNDS))
    for candidate in candidates:
        result.seconds[candidate.name] = np.array([row[candidate.name] for row in rounds])
    return result


def warm_up(peer: Peer, problem: Problem, check: GradientCheck) -> Candidate:
    """Compile what compiles, check the gradient, and find out how long a call takes."""
    step = peer.make(problem)
    step.prepare()
    output = step.as_tensor(step.run())
    if peer.alpha is not None:
        check(output, peer.alpha)
    del output
    began = time.perf_counter()
    calls = [call(step) for _ in range(WARM_UP_CALLS)]
    while time.perf_counter() - began < WARM_UP_SECONDS:
        calls.append(call(step))
    with_preparation = (time.perf_counter() - began) / len(calls)
    repetitions = max(1, round(SAMPLE_SECONDS / statistics.median(calls)))
    seconds_per_sample = PAUSE_SECONDS + (1 + repetitions) * with_preparation
    return Candidate(peer.name, step, repetitions, seconds_per_sample)


def play(candidates: Sequence[Candidate], rounds: int) -> list[dict[str, float]]:
    """Take one sample of everyone per round, in an order drawn anew."""
    order = list(candidates)
    shuffle = random.Random(0).shuffle
    collecting = gc.isenabled()
    gc.disable()
    try:
        samples = []
        for _ in range(rounds):
            shuffle(order)
            samples.append({candidate.name: sample(candidate) for candidate in order})
        return samples
    finally:
        if collecting:
            gc.enable()


def sample(candidate: Candidate) -> float:
    """Seconds per call.

    The first call does not count: it meets free memory as the neighbour left it, and a large new
    gradient then took three times as long after one neighbour as after another. In training, a step
    meets what the step before it left.
    """
    time.sleep(PAUSE_SECONDS)
    call(candidate.step)
    return statistics.median(call(candidate.step) for _ in range(candidate.calls))


def call(step: Step) -> float:
    """Seconds of one call; preparing it and freeing the gradient are not in them."""
    step.prepare()
    began = time.perf_counter()
    output = step.run()
    seconds = time.perf_counter() - began
    del output
    return seconds


def estimate(values: NDArray[np.float64]) -> Estimate:
    """The median, and between which it would fall had the rounds been others of the same kind."""
    drawn = np.random.default_rng(0).choice(values, (RESAMPLES, len(values)))
    low, high = np.quantile(np.median(drawn, axis=1), (0.025, 0.975))
    return Estimate(float(np.median(values)), float(low), float(high))


def as_json(result: Result) -> list[dict[str, Any]]:
    """A line per peer: all its rounds, so that another script can compare two files."""
    return [
        {"kind": "time", **result.group.as_json(), "peer": peer, "seconds": seconds.tolist()}
        for peer, seconds in result.seconds.items()
    ] + [
        {"kind": "skipped", **result.group.as_json(), "peer": peer, "reason": reason}
        for peer, reason in result.skipped.items()
    ]
