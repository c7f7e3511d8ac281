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
from dataclasses import dataclass

import numpy as np

from .cases import Group
from .check import ResultCheck, WrongResultError
from .clock import PAUSE_SECONDS, Clock, clock_of
from .estimates import Samples
from .peers import Peer, UnavailableError, is_ours
from .problem import Problem
from .result import MISSING, Result
from .step import Step

WARM_UP_CALLS = 2
WARM_UP_SECONDS = 0.02
SHORT_SECONDS, MEDIUM_SECONDS = 0.004, 0.04
"""Calls are repeated for so long, medium ones up to three times; a sample is their median.

A large gradient in new memory can take ten times as long while the system looks for huge pages.
"""
LEAST_ROUNDS, MOST_ROUNDS = 15, 101


@dataclass(frozen=True)
class Candidate:
    """A step, warmed up, and how many calls make one of its samples."""

    name: str
    step: Step
    calls: int
    uncounted_calls: int
    seconds_per_sample: float


def measure(group: Group, peers: Sequence[Peer], budget: float) -> Result:
    """Check and time these peers on one problem, for about `budget` seconds after the warm-up.

    Raises:
        WrongResultError: one of ours is wrong; others that are wrong are left out.
    """
    clock = clock_of(group.device, group.logits_bytes)
    problem = Problem(group)
    steps, skipped = checked_steps(problem, peers)
    candidates = [warm_up(name, step, clock) for name, step in steps.items()]
    return Result(group, play(candidates, clock, budget), skipped)


def checked_steps(
    problem: Problem, peers: Sequence[Peer]
) -> tuple[dict[str, Step], dict[str, str]]:
    """The steps of all peers that can take part and are right, and why the others do not."""
    check = ResultCheck(problem)
    steps, skipped = {}, {}
    for peer in peers:
        try:
            steps[peer.name] = checked_step(peer, problem, check)
        except Exception as error:
            if is_ours(peer.name):
                raise
            skipped[peer.name] = reason(error)
    return steps, skipped


def reason(error: Exception) -> str:
    """Why somebody does not take part, in a line. Compilers of others can fail in any way."""
    if isinstance(error, ImportError):
        return f"{error.name} {MISSING}"
    if isinstance(error, (UnavailableError, WrongResultError)):
        return str(error)
    first_line, *_ = str(error).splitlines() or [""]
    return f"{type(error).__name__}: {first_line}"


def checked_step(peer: Peer, problem: Problem, check: ResultCheck) -> Step:
    """Compile what compiles, and check what comes out."""
    step = peer.make(problem)
    step.prepare()
    output = step.as_tensor(step.run())
    if peer.alpha is not None:
        check(output, peer.alpha)
    return step


def warm_up(name: str, step: Step, clock: Clock, uncounted_calls: int = 1) -> Candidate:
    """Find out how long a call takes.

    The first call of a sample does not count: it meets free memory as the neighbour left it, and a
    large new gradient then took three times as long after one neighbour as after another. In
    training, a step meets what the step before it left.
    """
    began = time.perf_counter()
    calls = [clock.seconds(step) for _ in range(WARM_UP_CALLS)]
    while time.perf_counter() - began < WARM_UP_SECONDS:
        calls.append(clock.seconds(step))
    with_preparation = (time.perf_counter() - began) / len(calls)
    repetitions = calls_per_sample(statistics.median(calls))
    seconds_per_sample = PAUSE_SECONDS + (uncounted_calls + repetitions) * with_preparation
    return Candidate(name, step, repetitions, uncounted_calls, seconds_per_sample)


def calls_per_sample(seconds: float) -> int:
    """Of calls that take so long."""
    return max(1, round(SHORT_SECONDS / seconds), min(3, round(MEDIUM_SECONDS / seconds)))


def play(
    candidates: Sequence[Candidate],
    clock: Clock,
    budget: float,
    least_rounds: int = LEAST_ROUNDS,
) -> dict[str, Samples]:
    """Take one sample of everyone per round, in an order drawn anew, for about `budget` seconds."""
    if not candidates:
        return {}
    rounds = round(budget / sum(candidate.seconds_per_sample for candidate in candidates))
    order = list(candidates)
    shuffle = random.Random(0).shuffle
    samples: dict[str, list[float]] = {candidate.name: [] for candidate in candidates}
    collecting = gc.isenabled()
    gc.disable()
    try:
        for _ in range(min(max(rounds, least_rounds), MOST_ROUNDS)):
            shuffle(order)
            for candidate in order:
                samples[candidate.name].append(sample(candidate, clock))
    finally:
        if collecting:
            gc.enable()
    return {name: np.array(seconds) for name, seconds in samples.items()}


def sample(candidate: Candidate, clock: Clock) -> float:
    """Seconds per call."""
    clock.pause()
    for _ in range(candidate.uncounted_calls):
        clock.seconds(candidate.step)
    return statistics.median(clock.seconds(candidate.step) for _ in range(candidate.calls))
