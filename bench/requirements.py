"""What we promise about speed, and whether the figures keep it.

Each promise bounds a ratio of two times in every group that it speaks of, and its worst group
decides. "Ours" is alpha = 0.3, which people get if they say nothing; alpha = 1 does less work.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .cases import (
    BACKWARD,
    CASES,
    DTYPES,
    FORWARD,
    FRESH,
    GPU_CASES,
    IN_PLACE,
    OF_A_LOSS,
    Group,
)
from .estimates import Estimate
from .peers import COPY, DEFAULT_ALPHA, WITHOUT_PGT, heading_of, name_of_ours
from .result import Result

DEFAULT = name_of_ours(DEFAULT_ALPHA)
ALPHA_ONE = name_of_ours(1.0)
LARGE = tuple(case.name for case in CASES.values() if case.classes >= 32000)
SMALL = ("tiny", "cifar10")
HALF = ("bfloat16",)
FLOAT = ("float32",)
TRAINING = (FRESH, IN_PLACE)
ALL_OTHERS = tuple(peer.name for peer in WITHOUT_PGT)


@dataclass(frozen=True)
class Requirement:
    """A bound on the time of the fastest of `over` divided by that of `under`.

    Attributes:
        where: what it speaks of, in words.
        faster: whether the ratio has to be at least (a speedup) or at most (an overhead) as much.
        promise: what has to hold.
        aim: what we would like.
    """

    where: str
    over: tuple[str, ...]
    under: str
    faster: bool
    promise: float
    aim: float | None
    cases: tuple[str, ...] = tuple(CASES)
    dtypes: tuple[str, ...] = tuple(DTYPES)
    modes: tuple[str, ...] = TRAINING
    device: str = "cpu"

    @property
    def ratio(self) -> str:
        """Whose time by whose, in words."""
        over = " and ".join(map(heading_of, self.over))
        if len(self.over) > 1:
            over = "the fastest other" if self.over == ALL_OTHERS else f"the faster of {over}"
        return f"{over} / {heading_of(self.under)}"

    def speaks_of(self, group: Group) -> bool:
        return (
            group.case.name in self.cases
            and group.dtype in self.dtypes
            and group.mode in self.modes
            and group.device == self.device
        )

    def keeps(self, value: float, bound: float) -> bool:
        return value >= bound if self.faster else value <= bound


def speedup(
    where: str,
    over: tuple[str, ...],
    promise: float,
    aim: float | None,
    cases: tuple[str, ...],
    dtypes: tuple[str, ...] = FLOAT,
    mode: str = FRESH,
) -> Requirement:
    return Requirement(where, over, DEFAULT, True, promise, aim, cases, dtypes, (mode,))


def overhead(
    where: str, over: str, under: str, promise: float, aim: float | None, **bounds: Any
) -> Requirement:
    return Requirement(where, (over,), under, False, promise, aim, **bounds)


EAGER = ("eager",)
COMPILERS = ("compile", "jax")
CPU_REQUIREMENTS = (
    speedup("C ≥ 32000, float32", EAGER, 7.0, 9.0, LARGE),
    speedup("C ≥ 32000, float32", COMPILERS, 2.5, 3.5, LARGE),
    speedup("C ≥ 32000, bfloat16", EAGER, 5.0, None, LARGE, HALF),
    speedup("C ≥ 32000, float32, in place", EAGER, 12.0, 15.0, LARGE, mode=IN_PLACE),
    overhead(
        "C ≥ 32000, float32, in place",
        DEFAULT,
        "copy",
        2.0,
        None,
        cases=LARGE,
        dtypes=FLOAT,
        modes=(IN_PLACE,),
    ),
    speedup("4096 x 1000, float32", EAGER, 4.0, 5.0, ("imagenet-large",)),
    speedup("4096 x 1000, float32", COMPILERS, 1.4, 2.0, ("imagenet-large",)),
    speedup("8 x 10 and 128 x 10", EAGER, 1.0, None, SMALL, tuple(DTYPES)),
    overhead("every case and type", DEFAULT, ALPHA_ONE, 1.35, 1.15),
    overhead("every case and type", name_of_ours(0.25), ALPHA_ONE, 1.12, 1.03),
)


def in_copies(
    where: str, mode: str, promise: float, aim: float | None, cases: tuple[str, ...]
) -> Requirement:
    """So many times a copy of the logits, on a GPU that they fill."""
    return overhead(
        where,
        DEFAULT,
        COPY.name,
        promise,
        aim,
        cases=cases,
        dtypes=(*FLOAT, *HALF),
        modes=(mode,),
        device="cuda",
    )


ROWS_ON_GPU = tuple(
    name for name in GPU_CASES if CASES[name].gpu_rows and 1000 <= CASES[name].classes <= 128256
)
SMALL_ON_GPU = tuple(name for name in GPU_CASES if not CASES[name].gpu_rows)


def of_floor(name: str, dtype: str) -> Requirement:
    """At most 1.25 times what reading and writing everything takes.

    For few classes that is more than the logits: a target of 8 bytes a row, a loss of 4, and
    statistics of 12.
    """
    bytes_of_row = 2 * CASES[name].classes * DTYPES[dtype].itemsize
    floor = 1 + (8 + 4 + 12) / bytes_of_row
    return overhead(
        f"{name}, {dtype}: 1.25 times the floor of {floor:.2f}",
        DEFAULT,
        COPY.name,
        1.25 * floor,
        None,
        cases=(name,),
        dtypes=(dtype,),
        modes=(FRESH,),
        device="cuda",
    )


GPU_REQUIREMENTS = (
    in_copies("a step, C from 1000 to 128256", FRESH, 1.12, 1.03, ROWS_ON_GPU),
    in_copies("a step, C = 262144", FRESH, 1.20, 1.03, ("gemma",)),
    in_copies("backward alone, C ≥ 1000", BACKWARD, 1.10, 1.03, (*ROWS_ON_GPU, "gemma")),
    in_copies("the loss alone, C ≥ 1000", FORWARD, 0.62, 0.53, (*ROWS_ON_GPU, "gemma")),
    *(
        of_floor(name, dtype)
        for name in ("few-classes", "mask", "cityscapes", "ade20k")
        for dtype in (*FLOAT, *HALF)
    ),
    overhead("every case and type", DEFAULT, ALPHA_ONE, 1.02, None, modes=OF_A_LOSS, device="cuda"),
    Requirement(
        "every case that fills the device",
        ALL_OTHERS,
        DEFAULT,
        True,
        1.0,
        None,
        cases=tuple(name for name in GPU_CASES if name not in SMALL_ON_GPU),
        device="cuda",
    ),
    Requirement(
        "8 x 10 and 256 x 1000",
        EAGER,
        DEFAULT,
        True,
        0.98,
        None,
        cases=SMALL_ON_GPU,
        modes=(FRESH,),
        device="cuda",
    ),
)
REQUIREMENTS = (*CPU_REQUIREMENTS, *GPU_REQUIREMENTS)


@dataclass(frozen=True)
class Verdict:
    """A promise, and the group that comes closest to breaking it or breaks it most."""

    requirement: Requirement
    ratio: Estimate | None
    group: Group | None
    over: str | None

    @property
    def state(self) -> str:
        """How far the promise is kept."""
        requirement, ratio = self.requirement, self.ratio
        if ratio is None:
            return "not measured"
        if requirement.aim is not None and requirement.keeps(ratio.median, requirement.aim):
            return "aim met"
        return "promise kept" if requirement.keeps(ratio.median, requirement.promise) else "missed"

    @property
    def worst_case(self) -> str:
        """The group, as far as the requirement's own words leave it open."""
        if self.group is None:
            return "-"
        requirement, group = self.requirement, self.group
        dtype = group.dtype if len(requirement.dtypes) > 1 else ""
        mode = group.mode if len(requirement.modes) > 1 else ""
        over = heading_of(self.over) if self.over and len(requirement.over) > 1 else ""
        words = (f"{group.case.name} {group.size}", dtype, mode, over)
        return ", ".join(filter(None, words))

    @property
    def unsure(self) -> bool:
        """Whether the bound that the state names lies within the ratio's interval."""
        requirement, ratio = self.requirement, self.ratio
        bound = requirement.aim if self.state == "aim met" else requirement.promise
        return ratio is not None and bound is not None and ratio.low <= bound <= ratio.high


def judge(results: Sequence[Result], device: str = "cpu") -> list[Verdict]:
    """A verdict per requirement of that device."""
    asked = [requirement for requirement in REQUIREMENTS if requirement.device == device]
    return [worst(requirement, results) for requirement in asked]


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
