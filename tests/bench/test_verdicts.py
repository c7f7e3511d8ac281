"""Verdicts: from the worst case, with their doubts."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from bench.cases import (
    CASES,
    DEFAULT_DTYPES,
    FORWARD,
    FRESH,
    GPU_CASES,
    OF_LOG_SOFTMAX,
    SMOOTHING,
    Group,
)
from bench.memory import Peak
from bench.peers import WITHOUT, heading_of
from bench.requirements import DEFAULT, LARGE, REQUIREMENTS
from bench.result import Result
from bench.verdicts import Verdict, judge

LARGE_VOCABULARY = "F.cross_entropy / ours, α=0.3: C ≥ 32000"


def by_words(verdicts: list[Verdict]) -> dict[str, Verdict]:
    return {f"{v.requirement.ratio}: {v.requirement.where}": v for v in verdicts}


def measured(name: str, eager: float, noise: float = 0.0, ours: float = 1.0) -> Result:
    """A case where eager takes so many times our time, more or less; so does who comes with it."""
    rounds = 1.0 + noise * np.linspace(-1.0, 1.0, 11)
    result = Result(Group(CASES[name], "float32", FRESH))
    result.seconds = {DEFAULT: np.full(11, ours), "eager": eager * ours * rounds}
    return result


def verdict_for(*results: Result, keeps_memory: bool = False) -> Verdict:
    verdicts = by_words(judge(results, keeps_memory=keeps_memory))
    return verdicts[f"{LARGE_VOCABULARY}, float32"]


def all_large(eager: float, noise: float = 0.0) -> list[Result]:
    """llama2 fares worst, half as well as all others."""
    return [measured(name, eager / (1 + (name == "llama2")), noise) for name in LARGE]


@pytest.mark.parametrize(
    ("eager", "state"), [(20.0, "aim met"), (16.0, "promise kept"), (10.0, "missed")]
)
def test_worst_case_decides(eager: float, state: str) -> None:
    verdict = verdict_for(*all_large(eager))
    assert verdict.state == verdict.words == state
    assert verdict.worst_case == "llama2 1024 x 32000"
    assert verdict.ratio is not None
    assert verdict.ratio.median == pytest.approx(eager / 2)


def test_the_kind_of_memory_has_promises_of_its_own() -> None:
    """3 times eager's speed is less than promised of fresh memory, and more than of kept."""
    assert verdict_for(*all_large(6.0)).state == "missed"
    assert verdict_for(*all_large(6.0), keeps_memory=True).state == "promise kept"


@pytest.mark.parametrize(
    ("eager", "noise", "state"),
    [
        (14.0, 0.2, "open"),  # 7 is promised
        (18.0, 0.1, "promise kept"),  # 9 is aimed at
        (10.0, 0.2, "missed"),
        (12.0, 0.9, "open"),
    ],
)
def test_an_interval_has_to_allow_the_verdict(eager: float, noise: float, state: str) -> None:
    verdict = verdict_for(*all_large(eager, noise))
    assert verdict.state == state
    assert verdict.words == ("open: within the noise" if state == "open" else state)


def test_a_verdict_needs_all_cases() -> None:
    """Some that keep a promise do not show that all do; one that breaks it is enough."""
    verdict = verdict_for(measured("llama2", 10.0))
    assert verdict.words == "open: without gpt2 float32, llama3 float32 and 2 more"
    assert verdict_for(measured("llama2", 5.0)).words == "missed"
    assert verdict_for().words == "not measured"


def test_a_verdict_needs_all_peers() -> None:
    """The faster of two is not known where one is missing; one that cannot do it is not."""
    words = f"the faster of torch.compile and jitted JAX / {heading_of(DEFAULT)}: 4096 x 1000"
    result = measured("imagenet-large", 3.0)
    result.seconds["compile"] = result.seconds.pop("eager")

    def verdict() -> str:
        return by_words(judge([result]))[f"{words}, float32"].words

    assert verdict() == "open: without jitted JAX"
    result.skipped = {"jax": "jax cannot be imported"}
    assert verdict() == "open: without jitted JAX"
    result.skipped = {"jax": "only for a GPU"}
    assert verdict() == "aim met"
    result.skipped = {}
    result.seconds["jax"] = result.seconds["compile"] / 3.0
    assert verdict() == "missed"


@pytest.mark.parametrize(
    ("copies", "state"), [(0.52, "aim met"), (0.6, "promise kept"), (0.65, "missed")]
)
def test_a_gpu_s_promises_count_copies(copies: float, state: str) -> None:
    """Forward reads the logits, a copy also writes as much."""
    verdicts = by_words(judge(on_gpu(FORWARD, {"copy": 2.0, DEFAULT: 2.0 * copies}), "cuda"))
    assert verdicts["ours, α=0.3 / copy of the logits: the loss alone, C ≥ 1000"].state == state


def on_gpu(mode: str, seconds: dict[str, float]) -> list[Result]:
    """All cases that a GPU has in that mode, alike."""
    return [
        Result(
            Group(CASES[name], dtype, mode, "cuda"),
            {peer: np.full(5, value) for peer, value in seconds.items()},
        )
        for name, dtype in product(GPU_CASES[mode], DEFAULT_DTYPES)
    ]


@pytest.mark.parametrize(("seconds", "state"), [(2.28, "promise kept"), (2.32, "missed")])
def test_an_option_is_judged_by_what_it_adds(seconds: float, state: str) -> None:
    results = on_gpu(SMOOTHING, {"copy": 2.0, WITHOUT.name: 2.2, DEFAULT: seconds})
    words = "(ours, α=0.3 - ours, without it) / copy of the logits"
    where = "a step with label smoothing, and without"

    def verdict() -> Verdict:
        return by_words(judge(results, "cuda"))[f"{words}: {where}"]

    assert verdict().state == state
    del results[0].seconds[WITHOUT.name]
    assert verdict().missing == ("imagenet-large float32",)


@pytest.mark.parametrize(("ours", "state"), [(100, "promise kept"), (101, "missed")])
def test_memory_is_judged_by_its_peaks(ours: int, state: str) -> None:
    peaks = [
        Peak(result.group, peer, size)
        for result in on_gpu(FRESH, {})
        for peer, size in (("eager", 100), (DEFAULT, ours))
    ]
    words = "ours, α=0.3 / F.cross_entropy: memory at its peak"
    where = "every case that fills the device"
    verdicts = by_words(judge([], "cuda", peaks=peaks))
    assert verdicts[f"{words}, {where}"].state == state
    verdicts = by_words(judge([], "cuda", peaks=[Peak(p.group, p.peer, None) for p in peaks]))
    assert verdicts[f"{words}, {where}"].state == "not measured"


def test_a_gpu_has_promises_of_all_that_it_measures() -> None:
    measured = {
        Group(CASES[name], dtype, mode, "cuda")
        for mode, names in GPU_CASES.items()
        for dtype, name in product(DEFAULT_DTYPES, names)
    }
    assert {g for r in REQUIREMENTS if r.device == "cuda" for g in r.groups} == measured


def test_the_floor_of_few_classes_counts_more_than_logits() -> None:
    """Two classes of 2 bytes are read and written; a row's 24 bytes are three times as much."""
    promises = {r.where: r.promise for r in REQUIREMENTS if r.device == "cuda"}
    assert promises["mask, bfloat16: 1.25 times the floor of 4.00"] == 1.25 * (1 + 24 / 8)


def test_of_log_softmax_only_a_gpu_has_promises() -> None:
    groups = [g for r in REQUIREMENTS for g in r.groups if g.mode in OF_LOG_SOFTMAX]
    assert {g.device for g in groups} == {"cuda"}
