"""What we promise about speed: each promise bounds a ratio of two times in all groups it speaks of.

"Ours" is alpha = 0.3, which people get if they say nothing; alpha = 1 does less work.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import product
from typing import Any

from .cases import (
    BACKWARD,
    CASES,
    COMPILED_ON_GPU,
    CPU_CASES,
    DEFAULT_DTYPES,
    DTYPES,
    FEW_ON_GPU,
    FORWARD,
    FRESH,
    GPU_CASES,
    IN_PLACE,
    LOG_SOFTMAX_BACKWARD,
    LOG_SOFTMAX_FORWARD,
    MANY_ROWS_OF_FEW,
    PROBABILITIES,
    ROWS_ON_GPU,
    SHORT_BATCHES_OF_FEW,
    SMALL_ON_GPU,
    SMOOTHING,
    WEIGHTS,
    Group,
)
from .estimates import Estimate
from .peers import COPY, DEFAULT_ALPHA, WITHOUT, heading_of, name_of_ours

DEFAULT = name_of_ours(DEFAULT_ALPHA)
ALPHA_ONE = name_of_ours(1.0)
LARGE = tuple(case.name for case in CASES.values() if case.classes >= 32000)
SMALL = ("tiny", "cifar10")
HALF = ("bfloat16",)
FLOAT = ("float32",)
TRAINING = (FRESH, IN_PLACE)
ALL_OTHERS = ("eager", "compile", "liger", "quack", "quack-dx")


@dataclass(frozen=True)
class Requirement:
    """A bound on the time of the fastest of `over` divided by that of `under`.

    Attributes:
        less: whose time is first taken from that of `over`; nobody's if it is None.
        of_memory: it is about peaks of memory, not times.
        where: what it speaks of, in words.
        keeps_memory: whether the allocator does; None for any.
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
    cases: tuple[str, ...] = CPU_CASES
    dtypes: tuple[str, ...] = DEFAULT_DTYPES
    modes: tuple[str, ...] = TRAINING
    device: str = "cpu"
    keeps_memory: bool | None = False
    less: str | None = None
    of_memory: bool = False

    @property
    def ratio(self) -> str:
        """Whose time by whose, in words."""
        over = " and ".join(map(heading_of, self.over))
        if len(self.over) > 1:
            over = "the fastest other" if self.over == ALL_OTHERS else f"the faster of {over}"
        if self.less:
            over = f"({over} - {heading_of(self.less)})"
        return f"{over} / {heading_of(self.under)}"

    @property
    def groups(self) -> list[Group]:
        """All that it speaks of; on a GPU, as far as it is measured there."""
        return [
            Group(CASES[case], dtype, mode, self.device)
            for case, dtype, mode in product(self.cases, self.dtypes, self.modes)
            if self.device == "cpu" or case in GPU_CASES[mode]
        ]

    def is_asked(self, device: str, keeps_memory: bool) -> bool:
        """Whether it speaks of measurements on this device with such an allocator."""
        return self.device == device and self.keeps_memory in (None, keeps_memory)

    def keeps(self, value: float, bound: float) -> bool:
        return value >= bound if self.faster else value <= bound

    def keeps_surely(self, ratio: Estimate, bound: float) -> bool:
        """Whether all of the interval does."""
        return self.keeps(ratio.low, bound) and self.keeps(ratio.high, bound)

    def breaks_surely(self, ratio: Estimate) -> bool:
        """Whether no part of the interval keeps the promise."""
        return not (self.keeps(ratio.low, self.promise) or self.keeps(ratio.high, self.promise))


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
    speedup("8 x 10 and 128 x 10", EAGER, 1.0, None, SMALL, DEFAULT_DTYPES),
    overhead("every case", DEFAULT, ALPHA_ONE, 1.35, 1.15),
    overhead("every case", name_of_ours(0.25), ALPHA_ONE, 1.12, 1.03),
)
KEPT_MEMORY_REQUIREMENTS = tuple(
    replace(requirement, keeps_memory=True)
    for requirement in (
        speedup("C ≥ 32000, float32", EAGER, 2.5, 3.5, LARGE),
        speedup("C ≥ 32000, bfloat16", EAGER, 2.5, 3.5, LARGE, HALF),
        overhead(
            "C ≥ 32000, float32",
            DEFAULT,
            COPY.name,
            1.7,
            1.3,
            cases=LARGE,
            dtypes=FLOAT,
            modes=(FRESH,),
        ),
        *(
            overhead(
                f"{where}, bfloat16",
                DEFAULT,
                COPY.name,
                promise,
                aim,
                cases=of,
                dtypes=HALF,
                modes=(FRESH,),
            )
            for where, promise, aim, of in (
                ("C ≥ 32000", 1.7, 1.35, LARGE),
                ("4096 x 1000", 2.6, 2.0, ("imagenet-large",)),
            )
        ),
        speedup("65536 x 10", COMPILERS, 2.5, None, ("few-classes",), DEFAULT_DTYPES),
        speedup("8 x 2 x 512 x 512", COMPILERS, 2.0, None, ("mask",), DEFAULT_DTYPES),
        speedup("65536 rows, C ≤ 200", COMPILERS, 1.4, 2.5, MANY_ROWS_OF_FEW, DEFAULT_DTYPES),
        speedup("8 to 256 rows, C ≤ 200", EAGER, 1.0, 1.8, SHORT_BATCHES_OF_FEW, DEFAULT_DTYPES),
    )
)


def in_copies(
    where: str, mode: str, promise: float, aim: float | None, cases: tuple[str, ...]
) -> Requirement:
    """So many copies of the logits, on a GPU that they fill."""
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


def of_option(where: str, mode: str) -> Requirement:
    """What an option adds to a step, in copies of the logits."""
    return replace(in_copies(where, mode, 0.05, None, GPU_CASES[mode]), less=WITHOUT.name)


def ahead_on_gpu(
    where: str, over: tuple[str, ...], promise: float, cases: tuple[str, ...]
) -> Requirement:
    """Not slower in a step than the fastest of these."""
    return replace(speedup(where, over, promise, None, cases, DEFAULT_DTYPES), device="cuda")


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


UP_TO_A_CLUSTER = tuple(name for name in ROWS_ON_GPU if CASES[name].classes <= 128256)
GPU_REQUIREMENTS = (
    in_copies("a step, C from 1000 to 128256", FRESH, 1.12, 1.03, UP_TO_A_CLUSTER),
    in_copies("a step, C = 262144", FRESH, 1.20, 1.03, ("gemma",)),
    in_copies("backward alone, C ≥ 1000", BACKWARD, 1.10, 1.03, GPU_CASES[BACKWARD]),
    in_copies("the loss alone, C ≥ 1000", FORWARD, 0.62, 0.53, GPU_CASES[FORWARD]),
    *(
        in_copies(where, mode, promise, None, GPU_CASES[mode])
        for where, mode, promise in (
            ("log-softmax, forward alone", LOG_SOFTMAX_FORWARD, 1.10),
            ("log-softmax, backward alone", LOG_SOFTMAX_BACKWARD, 1.65),
            ("a step with probabilities as targets", PROBABILITIES, 1.75),
        )
    ),
    of_option("a step with label smoothing, and without", SMOOTHING),
    of_option("a step with class weights, and without", WEIGHTS),
    *(of_floor(name, dtype) for name in FEW_ON_GPU for dtype in (*FLOAT, *HALF)),
    overhead(
        "every case",
        DEFAULT,
        ALPHA_ONE,
        1.02,
        None,
        cases=GPU_CASES[FRESH],
        modes=tuple(GPU_CASES),
        device="cuda",
    ),
    ahead_on_gpu("C of 1000, 32000, 50257 and 128256", ALL_OTHERS, 1.0, COMPILED_ON_GPU),
    ahead_on_gpu("every case that fills the device", EAGER, 1.0, (*ROWS_ON_GPU, *FEW_ON_GPU)),
    ahead_on_gpu("8 x 10 and 256 x 1000", EAGER, 0.98, SMALL_ON_GPU),
    overhead(
        "memory at its peak, every case that fills the device",
        DEFAULT,
        EAGER[0],
        1.0,
        None,
        cases=(*ROWS_ON_GPU, *FEW_ON_GPU),
        modes=(FRESH,),
        device="cuda",
        of_memory=True,
    ),
)
REQUIREMENTS = (*CPU_REQUIREMENTS, *KEPT_MEMORY_REQUIREMENTS, *GPU_REQUIREMENTS)
