"""The benchmark, very small: that it runs, checks what it times, and judges from the samples."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from bench.cases import CASES, FRESH, IN_PLACE, Group, Problem
from bench.check import GradientCheck, WrongGradientError, expected_gradient
from bench.measure import Result, measure
from bench.peers import COPY, OTHERS, OURS, ours
from bench.requirements import REQUIREMENTS, Verdict, judge

REPOSITORY = Path(__file__).resolve().parents[2]
TINY = Group(CASES["tiny"], "float32", FRESH)


def test_script_prints_tables_and_writes_samples(tmp_path: Path) -> None:
    lines = tmp_path / "results.jsonl"
    options = ["--case", "tiny", "--dtype", "bfloat16", "--peer", "eager", "--budget", "0"]
    result = subprocess.run(
        [sys.executable, "bench/run.py", *options, "--threads", "1", "--json", lines],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    )
    machine, *records = map(json.loads, lines.read_text().splitlines())
    assert machine["kind"] == "machine"
    assert machine["threads"] == 1
    assert machine["versions"]["torch"] == torch.__version__
    samples = {
        (record["mode"], record["peer"]): record["seconds"]
        for record in records
        if record["kind"] == "time"
    }
    peers = ["copy", "eager", *(peer.name for peer in OURS)]
    assert set(samples) == {(mode, peer) for mode in (FRESH, IN_PLACE) for peer in peers}
    assert all(min(seconds) > 0.0 for seconds in samples.values())
    verdicts = [record for record in records if record["kind"] == "verdict"]
    assert [verdict["requirement"] for verdict in verdicts] == [r.text for r in REQUIREMENTS]
    for words in ("Forward + backward, bfloat16, in place: milliseconds", "not measured"):
        assert words in result.stdout


def test_missing_package_leaves_out_its_peer_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jax", None)
    jax = next(peer for peer in OTHERS if peer.name == "jax")
    result = measure(TINY, [COPY, jax, *OURS], budget=0.0)
    assert result.skipped == {"jax": "jax cannot be imported"}
    assert set(result.seconds) == {"copy", *(peer.name for peer in OURS)}


def test_wrong_peer_is_not_timed() -> None:
    wrong = replace(OURS[1], name="wrong", alpha=1.0)
    result = measure(TINY, [COPY, wrong], budget=0.0)
    assert set(result.seconds) == {"copy"}
    assert result.skipped["wrong"].startswith("wrong gradient: off by")


def test_wrong_one_of_ours_is_fatal(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = replace(OURS[1], alpha=1.0)
    monkeypatch.setattr("bench.measure.OURS", (wrong,))
    with pytest.raises(WrongGradientError, match="off by"):
        measure(TINY, [wrong], budget=0.0)


@pytest.mark.parametrize("mode", [FRESH, IN_PLACE])
def test_step_starts_from_the_same_logits_each_time(mode: str) -> None:
    problem = Problem(Group(TINY.case, TINY.dtype, mode))
    step = OURS[0].make(problem)
    for _ in range(3):
        step.prepare()
        gradient = step.run()
        torch.testing.assert_close(gradient, expected_gradient(problem, 1.0))
        assert (gradient.data_ptr() == problem.logits.data_ptr()) == (mode == IN_PLACE)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "float64"])
def test_wrong_gradient_is_refused(dtype: str) -> None:
    problem = Problem(Group(CASES["cifar10"], dtype, FRESH))
    check = GradientCheck(problem)
    right = expected_gradient(problem, 0.3).to(problem.pristine.dtype)
    check(right, 0.3)
    with pytest.raises(WrongGradientError, match="off by"):
        check(right, 1.0)
    for wrong in (0.0, torch.nan):
        damaged = right.clone()
        damaged[5, 7] = wrong
        with pytest.raises(WrongGradientError, match="row 5, class 7"):
            check(damaged, 0.3)
    with pytest.raises(WrongGradientError, match="for torch"):
        check(right[1:], 0.3)


def verdicts_for(eager: float, noise: float = 0.0) -> dict[str, Verdict]:
    """Verdicts where eager takes so many times our time; two cases, the second one twice as bad."""
    rounds = 1.0 + noise * np.linspace(-1.0, 1.0, 11)
    results = []
    for name, share in (("llama", 1.0), ("vocabulary", 0.5)):
        result = Result(Group(CASES[name], "float32", FRESH))
        result.seconds = {ours(0.3): np.ones(11), "eager": eager * share * rounds}
        results.append(result)
    return {verdict.requirement.text: verdict for verdict in judge(results)}


@pytest.mark.parametrize(
    ("eager", "state"), [(20.0, "aim met"), (16.0, "must met"), (10.0, "missed")]
)
def test_worst_case_decides(eager: float, state: str) -> None:
    verdict = verdicts_for(eager)["eager / C ≥ 32000 float32"]
    assert verdict.state == state
    assert verdict.where == "vocabulary"
    assert verdict.ratio is not None
    assert verdict.ratio.median == pytest.approx(eager / 2)
    assert not verdict.unsure


def test_noise_and_absence_are_told() -> None:
    verdicts = verdicts_for(14.0, noise=0.2)
    assert verdicts["eager / C ≥ 32000 float32"].unsure
    assert verdicts["eager / C ≥ 32000 bfloat16"].state == "not measured"
