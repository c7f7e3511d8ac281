"""What is timed: the right thing, from the same start each time, by whoever is there."""

from __future__ import annotations

import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from bench.cases import (
    CASES,
    DTYPES,
    FORWARD,
    FRESH,
    IN_PLACE,
    LOG_SOFTMAX,
    LOG_SOFTMAX_FORWARD,
    MODES,
    SMOOTHING,
    WEIGHTS,
    Case,
    Group,
)
from bench.check import ResultCheck, WrongResultError, expected_gradient
from bench.clock import CpuClock, CudaClock, SynchronisedClock, clock_of
from bench.measure import calls_per_sample, measure, play, warm_up
from bench.peers import ALPHAS, COPY, WITHOUT, WITHOUT_PGT, ours, registry
from bench.problem import GPU_BUFFERS, Problem
from bench.step import Step

TINY = Group(CASES["tiny"], "float32", FRESH)
OURS = ours(0.3)


def test_missing_package_leaves_out_its_peer_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jax", None)
    jax = next(peer for peer in WITHOUT_PGT if peer.name == "jax")
    result = measure(TINY, [COPY, jax, OURS], budget=0.0)
    assert result.skipped == {"jax": "jax cannot be imported"}
    assert set(result.seconds) == {"copy", OURS.name}


@pytest.mark.parametrize("name", ["liger", "quack", "flash-attention", "apex"])
def test_peer_that_needs_a_gpu_says_so(name: str) -> None:
    peer = next(peer for peer in WITHOUT_PGT if peer.name == name)
    result = measure(TINY, [peer], budget=0.0)
    assert result.skipped == {name: "only for a GPU"}


def test_wrong_peer_is_not_timed() -> None:
    wrong = replace(OURS, name="wrong", alpha=1.0)
    result = measure(TINY, [COPY, wrong], budget=0.0)
    assert set(result.seconds) == {"copy"}
    assert result.skipped["wrong"].startswith("wrong gradient: off by")


@pytest.mark.parametrize("mode", [FRESH, LOG_SOFTMAX])
def test_wrong_one_of_ours_is_fatal(mode: str) -> None:
    with pytest.raises(WrongResultError, match="off by"):
        measure(replace(TINY, mode=mode), [replace(OURS, alpha=1.0)], budget=0.0)


def test_peer_whose_compiler_fails_is_left_out() -> None:
    def make(problem: Problem) -> Step:
        raise ValueError("no such\nlayout")

    result = measure(TINY, [COPY, replace(WITHOUT_PGT[0], make=make)], budget=0.0)
    assert result.skipped == {"eager": "ValueError: no such"}
    with pytest.raises(ValueError, match="no such"):
        measure(TINY, [replace(OURS, make=make)], budget=0.0)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("inner", [(), (2, 3)])
def test_step_starts_from_the_same_logits_each_time(mode: str, inner: tuple[int, ...]) -> None:
    problem = Problem(replace(TINY, case=Case("small", 4, 5, inner), mode=mode))
    step = OURS.make(problem)
    check = ResultCheck(problem)
    for _ in range(3):
        step.prepare()
        result = step.run()
        check(result, 0.3)
        assert (result.data_ptr() == problem.logits.data_ptr()) == (mode == IN_PLACE)


@pytest.mark.parametrize("dtype", DTYPES)
def test_wrong_gradient_is_refused(dtype: str) -> None:
    problem = Problem(Group(CASES["cifar10"], dtype, FRESH))
    check = ResultCheck(problem)
    right = expected_gradient(problem, 0.3)[0].to(problem.pristine.dtype)
    check(right, 0.3)
    with pytest.raises(WrongResultError, match="off by"):
        check(right, 1.0)
    for wrong in (0.0, torch.nan):
        damaged = right.clone()
        damaged[5, 7] = wrong
        with pytest.raises(WrongResultError, match="row 5, class 7"):
            check(damaged, 0.3)
    with pytest.raises(WrongResultError, match="for torch"):
        check(right[1:], 0.3)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("inner", [(), (2, 3)])
def test_gradient_of_log_softmax_is_as_defined(dtype: str, inner: tuple[int, ...]) -> None:
    problem = Problem(Group(Case("small", 4, 50, inner), dtype, LOG_SOFTMAX))
    z, g = problem.pristine.double(), problem.grad_output.double()
    check = ResultCheck(problem)

    def gradient(probabilities: torch.Tensor, total: torch.Tensor) -> torch.Tensor:
        return (g - probabilities * total).to(problem.pristine.dtype)

    total = g.sum(dim=1, keepdim=True)
    p, transformed = z.softmax(dim=1), (0.3 * z).softmax(dim=1)
    check(gradient(transformed, total), 0.3)
    check(gradient(p, total), 1.0)
    damaged = gradient(transformed, total)
    damaged[2, 7] += 1.0
    for wrong in (gradient(p, total), gradient(transformed, 1.5 * total), g.to(damaged), damaged):
        with pytest.raises(WrongResultError, match="wrong gradient: off by"):
            check(wrong, 0.3)


def test_log_softmax_has_peers_of_its_own() -> None:
    peers = [peer for peer in registry() if LOG_SOFTMAX in peer.modes]
    names = {"copy", "eager-log-softmax", "compile", "jax", "reference"}
    assert {peer.name for peer in peers} == names | {ours(alpha).name for alpha in ALPHAS}
    fast = [peer for peer in peers if peer.name not in ("compile", "jax")]
    result = measure(replace(TINY, mode=LOG_SOFTMAX), fast, budget=0.0)
    assert set(result.seconds) == {peer.name for peer in fast}


@pytest.mark.parametrize("mode", [SMOOTHING, WEIGHTS])
@pytest.mark.parametrize("inner", [(), (2, 3)])
def test_gradient_with_an_option_is_as_defined(mode: str, inner: tuple[int, ...]) -> None:
    """By the identity: that of F.cross_entropy(alpha * z) / alpha."""
    problem = Problem(Group(Case("small", 4, 5, inner), "float64", mode))
    logits = problem.pristine.clone().requires_grad_()
    loss = F.cross_entropy(0.3 * logits, problem.target, **problem.options) / 0.3
    (expected,) = torch.autograd.grad(loss, logits)
    torch.testing.assert_close(expected_gradient(problem, 0.3)[0], expected)
    without = WITHOUT.make(problem)
    without.prepare()
    with pytest.raises(WrongResultError):
        ResultCheck(problem)(without.run(), 0.3)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_jax_has_output_and_gradient_of_log_softmax(dtype: str) -> None:
    pytest.importorskip("jax")
    problem = Problem(replace(TINY, dtype=dtype, mode=LOG_SOFTMAX))
    step = next(peer for peer in WITHOUT_PGT if peer.name == "jax").make(problem)
    step.prepare()
    output, _ = result = step.run()
    assert output.shape == problem.pristine.shape
    ResultCheck(problem)(step.as_tensor(result), 1.0)


@pytest.mark.parametrize("wrong", [1.0, torch.nan])
def test_wrong_loss_is_refused(wrong: float) -> None:
    check = ResultCheck(Problem(replace(TINY, mode=FORWARD)))
    with pytest.raises(WrongResultError, match="wrong loss"):
        check(torch.tensor(wrong), 1.0)


def test_wrong_log_probabilities_are_refused() -> None:
    problem = Problem(replace(TINY, mode=LOG_SOFTMAX_FORWARD))
    check, right = ResultCheck(problem), problem.pristine.log_softmax(dim=1)
    check(right, 0.3)
    for wrong in (0.0, torch.nan):
        damaged = right.clone()
        damaged[5, 7] = wrong
        with pytest.raises(WrongResultError, match="wrong log-probability"):
            check(damaged, 0.3)


def test_candidates_take_turns() -> None:
    calls = []
    steps = {name: Step(lambda name=name: calls.append(name)) for name in "ab"}
    clock = CpuClock()
    candidates = [replace(warm_up(name, step, clock), calls=1) for name, step in steps.items()]
    calls.clear()
    samples = play(candidates, clock, budget=0.0)
    rounds = np.reshape(calls, (-1, 4))  # the first of two calls is not counted
    assert all(sorted(turns) == ["a", "a", "b", "b"] for turns in rounds)
    assert len({tuple(turns) for turns in rounds}) == 2
    assert all(len(seconds) == len(rounds) for seconds in samples.values())


@pytest.mark.parametrize(
    ("seconds", "calls"), [(1e-5, 400), (2e-3, 3), (1.3e-2, 3), (2e-2, 2), (0.1, 1), (5.0, 1)]
)
def test_short_calls_are_repeated(seconds: float, calls: int) -> None:
    assert calls_per_sample(seconds) == calls


class Device:
    """Stands in for torch.cuda, and keeps what was asked of it."""

    L2_cache_size = 64

    def __init__(self) -> None:
        self.asked: list[str] = []

    def get_device_properties(self, device: str) -> Device:
        return self

    def Event(self, enable_timing: bool) -> Device:  # noqa: N802
        return self

    def record(self) -> None:
        self.asked.append("record")

    def synchronize(self) -> None:
        self.asked.append("synchronize")

    def elapsed_time(self, end: Device) -> float:
        return 2.0


def test_cuda_clock_floods_the_cache_and_brackets_the_call(monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device()
    monkeypatch.setattr("torch.cuda", device)
    clock = CudaClock("cpu")
    clock._flood.fill_(1)

    def run() -> None:
        device.asked.append("run" if clock._flood.sum() == 0 else "run with a warm cache")

    step = Step(run, lambda: device.asked.append("prepare"))
    assert clock.seconds(step) == 2e-3
    assert device.asked == ["prepare", "record", "run", "record", "synchronize"]
    device.asked.clear()
    assert clock.seconds(replace(step, has_own_stream=True)) > 0.0
    assert device.asked == ["prepare", "synchronize", "run", "synchronize"]
    assert isinstance(clock_of("cuda", 320), SynchronisedClock)


@pytest.mark.parametrize("made", [CpuClock, SynchronisedClock])
def test_preparing_and_freeing_are_not_timed(
    made: type[CpuClock | SynchronisedClock], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda", Device())
    now = 0.0
    monkeypatch.setattr("time.perf_counter", lambda: now)

    def spend(seconds: float) -> None:
        nonlocal now
        now += seconds

    class Output:
        def __del__(self) -> None:
            spend(10.0)

    def run() -> Output:
        spend(2.0)
        return Output()

    assert made().seconds(Step(run, lambda: spend(100.0))) == 2.0
    assert now == 112.0


def test_gpu_has_more_rows_and_several_buffers() -> None:
    llama = Group(CASES["llama3"], "bfloat16", FRESH)
    assert replace(llama, device="cuda").shape[0] > llama.shape[0]
    assert GPU_BUFFERS > 1
