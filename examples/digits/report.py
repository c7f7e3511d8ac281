"""What came out, as tables and in plain sentences."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table

from examples.evidence.comparison import Comparison, format_estimate
from examples.evidence.machine import count_of, machine

from .results import Results
from .timing import LossTime
from .training import THREADS


def training_table(results: Results) -> Table:
    """Return the comparison of both methods, a quantity per row."""
    seeds = len(results.cross_entropy_runs)
    epochs = len(results.cross_entropy_runs[0].test)
    table = report_table(
        f"After {epochs} epochs: mean ± standard error over {seeds} paired seeds",
        ("", results.cross_entropy.name, results.power_gradient.name, "difference", "better in"),
        machine(THREADS),
    )
    for name, comparison, digits in (
        ("train accuracy, %", results.train_accuracy, 2),
        ("test accuracy, %", results.test_accuracy, 2),
        ("test NLL, softmax(z)", results.test_nll, 3),
        ("test NLL, softmax(αz)", results.test_nll_trained, 3),
    ):
        table.add_row(name, *comparison_cells(comparison, digits))
    return table


def report_table(title: str, headings: Sequence[str], caption: str) -> Table:
    """Return an empty table, names on the left and figures on the right, 80 columns at most."""
    table = Table(
        title=title,
        caption=caption,
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    table.columns[0].justify = "left"
    return table


def comparison_cells(comparison: Comparison, digits: int) -> tuple[str, str, str, str]:
    """Return a comparison as table cells: each method, the paired difference, the count."""
    return (
        format_estimate(comparison.cross_entropy, digits),
        format_estimate(comparison.power_gradient, digits),
        format_estimate(comparison.difference, digits, sign="+"),
        f"{comparison.better} of {comparison.seeds}",
    )


def timing_table(results: Results) -> Table:
    """Return the loss's own time at each size."""
    table = report_table(
        "The loss alone where there are many classes, forward + backward: medians of rounds",
        ("logits", "F.cross_entropy", results.power_gradient.name, "times as fast"),
        machine(results.loss_times[0].threads),
    )
    for loss_time in results.loss_times:
        table.add_row(*timing_cells(loss_time))
    return table


def timing_cells(loss_time: LossTime) -> tuple[str, str, str, str]:
    """Return one size's times as table cells."""
    return (
        f"{loss_time.size.owner}, {loss_time.size.rows} x {loss_time.size.classes}",
        f"{loss_time.cross_entropy_seconds * 1e3:.3f} ms",
        f"{loss_time.power_gradient_seconds * 1e3:.3f} ms",
        f"{loss_time.speedup:.2f}",
    )


def conclusions(results: Results) -> RenderableType:
    """Return what the figures show, and what they do not, as sentences."""
    accuracy, share = results.test_accuracy, results.loss_share
    return Group(
        "[bold]What this shows[/bold]",
        *bullets(
            f"PGT changed test accuracy by {format_estimate(accuracy.difference, 2, '+')} points; "
            f"it was better in {accuracy.better} of {accuracy.seeds} seeds and equal in "
            f"{accuracy.ties}. A change of less than two standard errors may well be chance.",
            on_the_way(results),
            "Only the loss and its learning rate differ between the two: a seed fixes data split, "
            "initial weights and batch order for both.",
            "PGT trains softmax(αz), so take probabilities and NLL from there: "
            f"{results.test_nll_trained.power_gradient.mean:.3f}, against "
            f"{results.test_nll.power_gradient.mean:.3f} at softmax(z) and cross-entropy's "
            f"{results.test_nll.cross_entropy.mean:.3f}. Accuracy is the same at both.",
            f"Of a training step of {results.step_seconds * 1e3:.1f} ms here, with "
            f"{count_of(THREADS)}, the loss takes {share.cross_entropy.mean:.1f} % with "
            f"F.cross_entropy and {share.power_gradient.mean:.1f} % with PGT: which of the two is "
            "faster cannot be felt. It counts where there are many classes, as in the table.",
        ),
        "[bold]What it does not show[/bold]",
        *bullets(
            "That PGT helps in general. The effect is small, on a small BatchNorm network that was "
            "picked because it shows it, with a learning rate tuned for each α on other seeds. "
            "Smaller networks on the same digits showed none; without normalisation PGT was worse.",
            "Anything about ImageNet: the paper's gains there, 0.1 to 1.0 points, are not "
            "repeated here.",
            "Faster learning: fewer steps to a given accuracy were not seen.",
            "A better loss at any one learning rate: with SGD, PGT is also a change of learning "
            "rates layer by layer, so tune the rate when you change α.",
        ),
    )


def on_the_way(results: Results) -> str:
    """Return where the curves of test accuracy lie below cross-entropy's, as a sentence."""
    behind = [
        str(epoch)
        for epoch, comparison in enumerate(results.test_accuracy_by_epoch, start=1)
        if comparison.difference.mean < 0
    ]
    last = len(results.test_accuracy_by_epoch)
    if not behind:
        return f"Its mean test accuracy is not behind in any of the {last} epochs."
    noun = "epoch" if len(behind) == 1 else "epochs"
    return (
        f"On the way there its mean test accuracy is behind that of cross-entropy in {noun} "
        f"{', '.join(behind)} of {last}."
    )


def bullets(*sentences: str) -> list[RenderableType]:
    """Return each sentence as an indented bullet that wraps under itself."""
    grid = Table.grid(padding=(0, 1))
    for sentence in sentences:
        grid.add_row("•", sentence)
    return [Padding(grid, (0, 0, 1, 2))]
