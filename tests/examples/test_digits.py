"""The demo, very small: what it prints, what it writes, and that its runs are pairs."""

from __future__ import annotations

import contextlib
import io
import re
import subprocess
import sys
from dataclasses import replace
from math import exp, log1p
from pathlib import Path
from statistics import fmean, stdev
from types import SimpleNamespace

import matplotlib.image
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import powergrad_ext as pg
from examples.digits import __main__ as demo
from examples.digits import report
from examples.digits.methods import TUNED_RATE, Method, cross_entropy, power_gradient
from examples.digits.network import residual_network
from examples.digits.results import Results
from examples.digits.timing import Size
from examples.digits.training import Run, evaluate, step, train
from examples.evidence.machine import machine
from examples.evidence.threads import thread_count
from powergrad_ext._native import _C

DEMO = "examples.digits"
SEEDS = 3  # with two, some wrong standard errors are right


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("demo") / "not yet there"


@pytest.fixture(scope="module")
def finished(folder: Path) -> tuple[Results, str]:
    """Results and printed text of the whole demo, at one epoch and a small loss to time."""
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        patch.setattr(demo, "SIZES", (Size("the test", rows=8, classes=10, rounds=3, calls=2),))
        patch.setenv("COLUMNS", "80")
        results = demo.main(["--seeds", str(SEEDS), "--epochs", "1", "--output", str(folder)])
    return results, printed.getvalue()


def estimate(values: list[float], digits: int, sign: str = "") -> str:
    """Mean and standard error as the table writes them, from another library."""
    error = stdev(values) / len(values) ** 0.5
    return f"{fmean(values):{sign}.{digits}f} ± {error:.{digits}f}"


@pytest.mark.parametrize(
    ("row", "split", "quantity", "digits", "direction"),
    [
        ("train accuracy, %", "train", "accuracy", 2, 1),
        ("test accuracy, %", "test", "accuracy", 2, 1),
        ("test NLL, softmax(z)", "test", "nll", 3, -1),
        ("test NLL, softmax(αz)", "test", "nll_trained", 3, -1),
    ],
)
def test_table_holds_the_statistics_of_the_runs(
    finished: tuple[Results, str],
    row: str,
    split: str,
    quantity: str,
    digits: int,
    direction: int,
) -> None:
    results, printed = finished

    def per_seed(runs: list[Run]) -> list[float]:
        return [getattr(getattr(run, split)[-1], quantity) for run in runs]

    baseline = per_seed(list(results.cross_entropy_runs))
    ours = per_seed(list(results.power_gradient_runs))
    differences = [after - before for before, after in zip(baseline, ours, strict=True)]
    better = sum(direction * difference > 0 for difference in differences)

    line = next(line for line in printed.splitlines() if line.lstrip().startswith(row))
    assert re.split(r"\s{2,}", line.strip()) == [
        row,
        estimate(baseline, digits),
        estimate(ours, digits),
        estimate(differences, digits, "+"),
        f"{better} of {SEEDS}",
    ]


def test_steps_are_timed_from_end_to_end(finished: tuple[Results, str]) -> None:
    results, _ = finished
    for run in [*results.cross_entropy_runs, *results.power_gradient_runs]:
        assert len(run.loss_seconds) == len(run.step_seconds) == 1257 // 64
        pairs = zip(run.loss_seconds, run.step_seconds, strict=True)
        assert all(0 < loss < whole for loss, whole in pairs)


def test_what_the_loss_costs_is_told_in_units_of_a_step(finished: tuple[Results, str]) -> None:
    results, printed = finished
    told = " ".join(printed.replace("•", " ").split())
    share = results.loss_share
    assert (
        f"Of a training step of {results.step_seconds * 1e3:.1f} ms here, with 1 thread, the loss "
        f"takes {share.cross_entropy.mean:.1f} % with F.cross_entropy and "
        f"{share.power_gradient.mean:.1f} % with PGT" in told
    )
    assert "the test, 8 x 10" in told


def test_epochs_in_which_pgt_is_behind_are_told() -> None:
    """Two seeds, three epochs: behind in the second on average, in the first for one seed only."""

    def run(*accuracies: float) -> SimpleNamespace:
        return SimpleNamespace(test=[SimpleNamespace(accuracy=value) for value in accuracies])

    results = Results(
        cross_entropy(),
        power_gradient(0.3, TUNED_RATE),
        [run(50, 60, 70), run(50, 60, 70)],
        [run(40, 59, 71), run(70, 60, 72)],
        [],
    )
    words = "On the way there its mean test accuracy is behind that of cross-entropy in"
    assert report.on_the_way(results) == f"{words} epoch 2 of 3."
    swapped = replace(
        results,
        cross_entropy_runs=results.power_gradient_runs,
        power_gradient_runs=results.cross_entropy_runs,
    )
    assert report.on_the_way(swapped) == f"{words} epochs 1, 3 of 3."
    same = replace(results, power_gradient_runs=results.cross_entropy_runs)
    assert report.on_the_way(same) == "Its mean test accuracy is not behind in any of the 3 epochs."


def test_the_caption_tells_torch_s_instructions_from_ours() -> None:
    line = machine(2)
    assert f"torch {torch.__version__} ({torch.backends.cpu.get_cpu_capability()})" in line
    assert f"powergrad_ext {pg.__version__} ({_C.isa().upper()})" in line
    assert ", 2 threads, " in line


def test_machine_versions_and_limits_are_printed(finished: tuple[Results, str]) -> None:
    _, printed = finished
    assert printed.count(f"torch {torch.__version__}") == 2, "one under each table"
    assert "1 thread," in printed
    assert "What it does not show" in printed
    assert "ImageNet" in printed


def test_plot_is_a_picture(finished: tuple[Results, str], folder: Path) -> None:
    _, printed = finished
    picture = folder / "digits.png"
    assert str(picture) in printed
    pixels = matplotlib.image.imread(picture)
    height, width, _ = pixels.shape
    assert width > height > 1000
    assert pixels[..., :3].std() > 0.05, "more than an empty page"


def test_likelihoods_are_of_the_named_probabilities() -> None:
    logits = torch.tensor([[8.0, 0.0], [0.0, 4.0], [4.0, 0.0]])
    evaluation = evaluate(logits, torch.tensor([0, 1, 1]), alpha=0.25)
    assert evaluation.accuracy == pytest.approx(200 / 3)
    # With two classes the likelihood is a sigmoid of the margin: 8, 4 and -4, or a quarter of it.
    assert evaluation.nll == pytest.approx(fmean(log1p(exp(-m)) for m in (8, 4, -4)))
    assert evaluation.nll_trained == pytest.approx(fmean(log1p(exp(-m)) for m in (2, 1, -1)))


class Recorder:
    """A loss that keeps what it was called with."""

    def __init__(self, method: Method) -> None:
        self.loss = method.criterion
        self.logits: list[Tensor] = []
        self.labels: list[Tensor] = []
        self.method = Method(method.name, self, method.alpha, method.learning_rate)

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        self.logits.append(logits.detach().clone())
        self.labels.append(labels.clone())
        return self.loss(logits, labels)


def recorded(method: Method, seed: int) -> Recorder:
    recorder = Recorder(method)
    train(recorder.method, seed, epochs=1)
    return recorder


def test_a_seed_gives_both_methods_the_same_weights_and_batches() -> None:
    baseline = recorded(cross_entropy(), seed=3)
    ours = recorded(power_gradient(alpha=0.25, learning_rate=0.08), seed=3)
    # Logits before any step: equal only for equal initial weights and equal first images.
    assert torch.equal(baseline.logits[0], ours.logits[0])
    assert torch.equal(torch.stack(baseline.labels), torch.stack(ours.labels))
    assert not torch.equal(baseline.logits[1], ours.logits[1]), "the losses do differ"


def test_another_seed_gives_other_weights_and_batches() -> None:
    one, other = recorded(cross_entropy(), seed=3), recorded(cross_entropy(), seed=4)
    assert not torch.equal(one.logits[0], other.logits[0])
    assert not torch.equal(torch.stack(one.labels), torch.stack(other.labels))


def test_a_run_can_be_repeated() -> None:
    ours = power_gradient(alpha=0.25, learning_rate=TUNED_RATE)
    one, other = train(ours, seed=0, epochs=1), train(ours, seed=0, epochs=1)
    assert (one.train, one.test) == (other.train, other.test)


def test_alpha_one_trains_as_cross_entropy_does() -> None:
    baseline = recorded(cross_entropy(), seed=0)
    ours = recorded(power_gradient(alpha=1, learning_rate=TUNED_RATE), seed=0)
    # The first steps only: rounding differs between the two kernels and training amplifies it.
    for step_index in range(3):
        torch.testing.assert_close(
            ours.logits[step_index], baseline.logits[step_index], rtol=1e-3, atol=1e-3
        )


def test_step_is_one_ordinary_step() -> None:
    images, labels = torch.rand(16, 1, 8, 8), torch.arange(16) % 10
    cut, whole = residual_network(), residual_network()
    whole.load_state_dict(cut.state_dict())

    step(cut, F.cross_entropy, torch.optim.SGD(cut.parameters(), 0.1), images, labels)
    optimizer = torch.optim.SGD(whole.parameters(), 0.1)
    F.cross_entropy(whole(images), labels).backward()
    optimizer.step()

    for ours, expected in zip(cut.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(ours, expected)


def test_thread_count_holds_inside_the_block_only(threads: None) -> None:
    torch.set_num_threads(2)
    with contextlib.suppress(KeyError), thread_count(1):
        assert torch.get_num_threads() == 1
        raise KeyError
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize("arguments", [["--seeds", "1"], ["--epochs", "0"]])
def test_too_little_to_compare_is_refused(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        demo.main(arguments)
    assert f"{arguments[0]} must be at least" in capsys.readouterr().err


WITHOUT = """
import runpy, sys
class Missing:
    def find_spec(self, name, *_):
        if name.partition(".")[0] == "{package}":
            raise ModuleNotFoundError(name=name)
sys.meta_path.insert(0, Missing())
runpy.run_module("{module}")
"""


@pytest.mark.parametrize("package", ["rich", "matplotlib", "sklearn", "torch"])
def test_a_package_that_is_missing_is_named(package):
    """One sentence, from the command itself."""
    code = WITHOUT.format(package=package, module=DEMO)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    # A torch for CUDA has a line of its own where there is no GPU.
    lines = done.stderr.splitlines()
    (line,) = [line for line in lines if "No CUDA runtime is found" not in line]
    assert line.startswith(f"examples.digits needs {package}, which is not installed: run  make")
