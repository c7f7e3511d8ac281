"""The last layer and the loss: what is measured is right, and comes back from its file."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from bench import linear, linear_options
from bench.check import WrongResultError
from bench.result import read

TINY = linear.Case("tiny", 40, 8, 30)
PEERS = ("eager", "chunked")


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(linear.CASES, "small", TINY)


def test_main(tiny: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "linear.jsonl"
    options = ["--case", "small", "--dtype", "float32", "--peer", *PEERS, "--budget", "0.01"]
    linear.main([*options, "--output", str(output)])
    printed = capsys.readouterr().out
    timed, peaks = linear.measurements_of(read(output))
    assert timed.case.size == peaks.case.size == "40 x 8 x 30, float32"
    present = {"products", "eager", "powergrad-0.3", "powergrad-1", "powergrad-0.25"}
    assert present <= timed.seconds.keys()
    assert all(len(seconds) >= linear.ROUNDS for seconds in timed.seconds.values())
    assert {"products", "eager", "powergrad-0.3"} <= peaks.bytes.keys()
    assert "40 x 8 x 30" in printed
    ratio = timed.ratio("powergrad-0.3", "products")
    assert str(ratio) in [cell for row in linear.cells([timed, peaks]).rows for cell in row]


@pytest.mark.parametrize("name", linear_options.OPTIONS)
def test_options(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each step passes the check that its gradient is the identity's, and only with its option."""
    monkeypatch.setattr(linear_options, "SOFTCAP", 0.5)
    monkeypatch.setattr(linear_options, "Z_LOSS", 0.5)
    problem = linear.Problem(TINY)
    step = linear.candidates((name,))[name](problem)
    found = step.as_tensor(step.run())
    linear.check(problem, name, found)
    if name != "metrics":  # which change nothing
        with pytest.raises(WrongResultError, match="wrong gradient: off by"):
            linear.check(problem, "powergrad-0.3", found)


def test_peers_that_are_missing_say_why(tiny: None) -> None:
    measured = linear.times(TINY, ("liger", "cut"), budget=0.01)
    assert measured.skipped == {"liger": "only for a GPU", "cut": "only for a GPU"}


def test_a_wrong_gradient_is_not_measured() -> None:
    problem = linear.Problem(TINY)
    ordinary = linear.candidates(PEERS)["eager"](problem)
    found = ordinary.as_tensor(ordinary.run())
    linear.check(problem, "eager", found)
    with pytest.raises(WrongResultError, match="wrong gradient: off by"):
        linear.check(problem, "powergrad-0.3", found)


def test_memory_is_counted_beyond_gradients() -> None:
    gradients = TINY.gradient_bytes
    assert gradients == 4 * 8 * (40 + 30)
    measured = linear.Measurement(TINY, {}, {"eager": gradients + TINY.logits_bytes}, {})
    assert measured.beyond("eager") == 1.0


def test_floor_computes_the_products() -> None:
    problem = linear.Problem(TINY)
    step = linear.products(problem)
    logits = problem.input @ problem.linear_weight.T
    torch.testing.assert_close(step.as_tensor(step.run()), (logits.T @ problem.input).detach())
