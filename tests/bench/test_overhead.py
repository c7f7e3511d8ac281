"""The zero-overhead report: it runs real training steps, and says what the intervals allow."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from bench import overhead
from bench.estimates import Estimate
from bench.networks import Transformer, resnet50, small_resnet
from bench.result import read
from bench.training import Workload, training_steps


@pytest.mark.parametrize(
    ("low", "median", "high", "words"),
    [
        (0.90, 0.95, 0.99, "no overhead[/]: faster by 5.0%"),
        (0.99, 1.00, 1.01, "no overhead[/]: 1.0% at most"),
        (0.95, 1.00, 1.05, "open[/]: between -5.0% and +5.0%"),
        (1.01, 1.02, 1.03, "overhead[/]: 1.0% to 3.0%"),
    ],
)
def test_verdict_is_what_the_interval_allows(
    low: float, median: float, high: float, words: str
) -> None:
    assert overhead.verdict(Estimate(median, low, high)).endswith(words)


def tiny_workload(device: str) -> tuple[torch.nn.Module, torch.Tensor, torch.Tensor]:
    model = Transformer(11, 8, 1, 6)
    tokens = torch.randint(11, (2, 6))
    return model, tokens, tokens.flatten()


def test_report_has_a_verdict_for_every_case(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    tiny = Workload("transformer", "12 x 11", tiny_workload)
    monkeypatch.setattr(overhead, "WORKLOADS", {"cpu": (tiny,)})
    lines = tmp_path / "overhead.jsonl"
    overhead.main(["--case", "tiny", "--budget", "0", "--output", str(lines)])
    printed = capsys.readouterr().out
    for name in ("loss, tiny", "step, transformer"):
        assert printed.count(name) == 1 + len(overhead.COMPARISONS)
    subjects = overhead.subjects_of(read(lines))
    assert [subject.logits for subject in subjects] == ["8 x 10", "12 x 11"]
    assert set(subjects[0].seconds) == set(overhead.LOSSES)


def test_training_step_trains_with_its_loss() -> None:
    used = []

    def loss(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        used.append(logits.shape)
        return F.cross_entropy(logits, target)

    steps = training_steps(Workload("tiny", "12 x 11", tiny_workload), "cpu", {"a": loss})
    losses = [float(steps["a"].run().detach()) for _ in range(200)]
    assert losses[-1] < losses[0]
    assert set(used) == {(12, 11)}


def test_residual_networks_are_those_of_the_paper() -> None:
    """As many parameters as published for ResNet-20 and ResNet-50."""
    for network, millions in ((small_resnet(3, 10), 0.27), (resnet50(1000), 25.6)):
        count = sum(parameter.numel() for parameter in network.parameters())
        assert count / 1e6 == pytest.approx(millions, rel=0.02)
    assert small_resnet(3, 10)(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


def test_a_network_of_the_other_device_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        overhead.parse(["--training", "ResNet-50"])
    assert "'ResNet-50' does not run with --device cpu (choose from ResNet-8, transformer)" in (
        capsys.readouterr().err
    )
