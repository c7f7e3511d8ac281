"""What we promise about speed on a CPU, and whether the figures keep it.

Each promise bounds a ratio of two times in every group that it speaks of, and its worst group
decides. "Ours" is alpha = 0.3, which people get if they say nothing; alpha = 1 does less work.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .cases import CASES, DTYPES, FRESH, IN_PLACE, MODES, Group
from .measure import Estimate, Result
from .peers import ours

DEFAULT = ours(0.3)
LARGE = tuple(case.name for case in CASES.values() if case.classes >= 32000)
SMALL = ("tiny", "cifar10")
HALF = ("bfloat16",)
FLOAT = ("float32",)


@dataclass(frozen=True)
class Requirement:
    """A bound on the time of the fastest of `over` divided by that of `under`.

    `faster` says whether the ratio has to be at least (a speedup) or at most (an overhead) as much.
    """

    text: str
    over: tuple[str, ...]
    under: str
    faster: bool
    must: float
    aim: float | None
    cases: tuple[str, ...] = tuple(CASES)
    dtypes: tuple[str, ...] = tuple(DTYPES)
    modes: tuple[str, ...] = MODES

    def speaks_of(self, group: Group) -> bool:
        return (
            group.case.name in self.cases
            and group.dtype in self.dtypes
            and group.mode in self.modes
        )

    def keeps(self, value: float, bound: float) -> bool:
        return value >= bound if self.faster else value <= bound


def speedup(
    text: str,
    over: tuple[str, ...],
    must: float,
    aim: float | None,
    cases: tuple[str, ...],
    dtypes: tuple[str, ...] = FLOAT,
    mode: str = FRESH,
) -> Requirement:
    return Requirement(text, over, DEFAULT, True, must, aim, cases, dtypes, (mode,))


EAGER = ("eager",)
COMPILERS = ("compile", "jax")
REQUIREMENTS = (
    speedup("C >= 32000, float32: eager", EAGER, 7.0, 9.0, LARGE),
    speedup("C >= 32000, float32: best compiler", COMPILERS, 2.5, 3.5, LARGE),
    speedup("C >= 32000, bfloat16: eager", EAGER, 5.0, None, LARGE, HALF),
    speedup("C >= 32000, float32, in place: eager", EAGER, 12.0, 15.0, LARGE, mode=IN_PLACE),
    Requirement(
        "C >= 32000, float32, in place: over a copy",
        (DEFAULT,),
        "copy",
        False,
        2.0,
        None,
        LARGE,
        FLOAT,
        (IN_PLACE,),
    ),
    speedup("4096x1000, float32: eager", EAGER, 4.0, 5.0, ("imagenet-large",)),
    speedup("4096x1000, float32: best compiler", COMPILERS, 1.4, 2.0, ("imagenet-large",)),
    speedup("8x10 and 128x10: eager", EAGER, 1.0, None, SMALL, tuple(DTYPES)),
    Requirement("alpha 0.3 over alpha 1", (DEFAULT,), ours(1.0), False, 1.35, 1.15),
    Requirement("alpha 0.25 over alpha 1", (ours(0.25),), ours(1.0), False, 1.12, 1.03),
)


@dataclass(frozen=True)
class Verdict:
    """A promise, and the group that comes closest to breaking it or breaks it most."""

    requirement: Requirement
    ratio: Estimate | None
    group: Group | None
    over: str | None

    @property
    def words(self) -> str:
        """Aim met, must met or missed; and whether another run might say otherwise."""
        if self.ratio is None:
            return "not measured"
        requirement, ratio = self.requirement, self.ratio
        bounds = [("aim met", requirement.aim), ("must met", requirement.must)]
        verdict = "missed"
        for words, bound in bounds:
            if bound is not None and requirement.keeps(ratio.median, bound):
                verdict = words
                break
        unsure = any(bound is not None and ratio.low <= bound <= ratio.high for _, bound in bounds)
        return f"{verdict}, within noise" if unsure else verdict


def judge(results: Sequence[Result]) -> list[Verdict]:
    """A verdict per requirement."""
    return [worst(requirement, results) for requirement in REQUIREMENTS]


def worst(requirement: Requirement, results: Sequence[Result]) -> Verdict:
    """The verdict of the group that fares worst under this requirement."""
    verdicts = []
    for result in results:
        over = result.fastest(requirement.over)
        if requirement.speaks_of(result.group) and over and requirement.under in result.seconds:
            ratio = result.ratio(over, requirement.under)
            verdicts.append((ratio.median, Verdict(requirement, ratio, result.group, over)))
    if not verdicts:
        return Verdict(requirement, None, None, None)
    choose = min if requirement.faster else max
    return choose(verdicts, key=lambda pair: pair[0])[1]


def as_json(verdict: Verdict) -> dict[str, Any]:
    ratio, group = verdict.ratio, verdict.group
    return {
        "kind": "verdict",
        "requirement": verdict.requirement.text,
        "must": verdict.requirement.must,
        "aim": verdict.requirement.aim,
        "verdict": verdict.words,
        **({} if group is None else {**group.as_json(), "over": verdict.over}),
        **({} if ratio is None else {"ratio": ratio.median, "interval": [ratio.low, ratio.high]}),
    }
