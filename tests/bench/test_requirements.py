"""Verdicts: from the worst case, with their doubts."""

from __future__ import annotations

import numpy as np
import pytest

from bench.cases import CASES, FORWARD, FRESH, Group
from bench.peers import name_of_ours
from bench.requirements import Verdict, judge
from bench.result import Result


def verdicts_for(eager: float, noise: float = 0.0) -> dict[str, Verdict]:
    """Verdicts where eager takes so many times our time; two cases, the second one twice as bad."""
    rounds = 1.0 + noise * np.linspace(-1.0, 1.0, 11)
    results = []
    for name, share in (("llama3", 1.0), ("llama2", 0.5)):
        result = Result(Group(CASES[name], "float32", FRESH))
        result.seconds = {name_of_ours(0.3): np.ones(11), "eager": eager * share * rounds}
        results.append(result)
    return {verdict.requirement.text: verdict for verdict in judge(results)}


@pytest.mark.parametrize(
    ("eager", "state"), [(20.0, "aim met"), (16.0, "must met"), (10.0, "missed")]
)
def test_worst_case_decides(eager: float, state: str) -> None:
    verdict = verdicts_for(eager)["eager / C ≥ 32000 float32"]
    assert verdict.state == state
    assert verdict.where == "llama2"
    assert verdict.ratio is not None
    assert verdict.ratio.median == pytest.approx(eager / 2)
    assert not verdict.unsure


def test_noise_and_absence_are_told() -> None:
    verdicts = verdicts_for(14.0, noise=0.2)
    assert verdicts["eager / C ≥ 32000 float32"].unsure
    assert verdicts["eager / C ≥ 32000 bfloat16"].state == "not measured"


@pytest.mark.parametrize(("share", "state"), [(0.95, "must met"), (0.85, "missed")])
def test_share_of_the_copy_bandwidth_counts_bytes(share: float, state: str) -> None:
    """Forward reads the logits, a copy also writes as much."""
    result = Result(Group(CASES["llama3"], "bfloat16", FORWARD, "cuda"))
    result.seconds = {"copy": np.full(5, 2.0), name_of_ours(0.3): np.full(5, 1.0 / share)}
    assert result.bandwidth(name_of_ours(0.3)) == pytest.approx(share * result.bandwidth("copy"))
    verdicts = {v.requirement.text: v for v in judge([result], "cuda")}
    assert verdicts["forward / copy: 90% of its bandwidth"].state == state
