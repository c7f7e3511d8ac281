"""Verdicts: from the worst case, with their doubts."""

from __future__ import annotations

import numpy as np
import pytest

from bench.cases import CASES, FORWARD, FRESH, LOG_SOFTMAX, Group
from bench.peers import name_of_ours
from bench.requirements import REQUIREMENTS, Verdict, judge
from bench.result import Result

LARGE_VOCABULARY = "F.cross_entropy / ours, α=0.3: C ≥ 32000"


def by_words(verdicts: list[Verdict]) -> dict[str, Verdict]:
    return {f"{v.requirement.ratio}: {v.requirement.where}": v for v in verdicts}


def verdicts_for(eager: float, noise: float = 0.0) -> dict[str, Verdict]:
    """Verdicts where eager takes so many times our time; two cases, the second one twice as bad."""
    rounds = 1.0 + noise * np.linspace(-1.0, 1.0, 11)
    results = []
    for name, share in (("llama3", 1.0), ("llama2", 0.5)):
        result = Result(Group(CASES[name], "float32", FRESH))
        result.seconds = {name_of_ours(0.3): np.ones(11), "eager": eager * share * rounds}
        results.append(result)
    return by_words(judge(results))


@pytest.mark.parametrize(
    ("eager", "state"), [(20.0, "aim met"), (16.0, "promise kept"), (10.0, "missed")]
)
def test_worst_case_decides(eager: float, state: str) -> None:
    verdict = verdicts_for(eager)[f"{LARGE_VOCABULARY}, float32"]
    assert verdict.state == state
    assert verdict.worst_case == "llama2 1024 x 32000"
    assert verdict.ratio is not None
    assert verdict.ratio.median == pytest.approx(eager / 2)
    assert not verdict.unsure


def test_noise_and_absence_are_told() -> None:
    verdicts = verdicts_for(14.0, noise=0.2)
    assert verdicts[f"{LARGE_VOCABULARY}, float32"].unsure
    assert verdicts[f"{LARGE_VOCABULARY}, bfloat16"].state == "not measured"


def test_a_promise_is_sure_where_only_the_aim_is_not() -> None:
    verdict = verdicts_for(17.6, noise=0.1)[f"{LARGE_VOCABULARY}, float32"]
    assert verdict.ratio is not None
    assert 7.0 < verdict.ratio.low < 9.0 < verdict.ratio.high
    assert verdict.state == "promise kept"
    assert not verdict.unsure


@pytest.mark.parametrize(
    ("copies", "state"), [(0.52, "aim met"), (0.6, "promise kept"), (0.65, "missed")]
)
def test_a_gpu_s_promises_count_copies(copies: float, state: str) -> None:
    """Forward reads the logits, a copy also writes as much."""
    result = Result(Group(CASES["llama3"], "bfloat16", FORWARD, "cuda"))
    result.seconds = {"copy": np.full(5, 2.0), name_of_ours(0.3): np.full(5, 2.0 * copies)}
    verdicts = by_words(judge([result], "cuda"))
    assert verdicts["ours, α=0.3 / copy of the logits: the loss alone, C ≥ 1000"].state == state


def test_the_floor_of_few_classes_counts_more_than_logits() -> None:
    """Two classes of 2 bytes are read and written; a row's 24 bytes are three times as much."""
    promises = {r.where: r.promise for r in REQUIREMENTS if r.device == "cuda"}
    assert promises["mask, bfloat16: 1.25 times the floor of 4.00"] == 1.25 * (1 + 24 / 8)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_nothing_is_promised_of_log_softmax(device: str) -> None:
    group = Group(CASES["llama3"], "float32", LOG_SOFTMAX, device)
    assert not any(requirement.speaks_of(group) for requirement in REQUIREMENTS)
