"""The training curves as a picture."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FuncFormatter, MaxNLocator
from numpy.typing import ArrayLike, NDArray

from examples.evidence.comparison import format_estimate
from examples.evidence.machine import machine
from examples.evidence.style import BASELINE_COLOUR, FINE_PRINT, OUR_COLOUR, house_style

from .results import Results
from .training import THREADS, Run

NEARLY_ALL = 100.4
"""Where the stretched accuracy axis would end: past 100 % by about two digits of the test set."""


def save(results: Results, path: Path) -> Path:
    """Draw the curves of all runs and write them as a PNG; return where."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with house_style():
        space = ConstrainedLayoutEngine(w_pad=0.15, h_pad=0.15, rect=(0, 0.03, 1, 0.87))
        figure = Figure(figsize=(12, 8.6), layout=space)
        panels = figure.subplots(2, 2)
        curves(panels[0, 0], results, "Training loss at softmax(αz)", train_loss)
        panels[0, 0].set_yscale("log")
        curves(panels[0, 1], results, "Training accuracy, %", train_accuracy)
        stretch_towards_all(panels[0, 1])
        curves(panels[1, 0], results, "Test accuracy, %", test_accuracy)
        stretch_towards_all(panels[1, 0])
        paired_seeds(panels[1, 1], results)
        headline(figure, results)
        figure.savefig(path, dpi=160)
    return path


def train_loss(run: Run) -> Sequence[float]:
    """Return the training NLL per epoch, at the probabilities the method trains."""
    return [evaluation.nll_trained for evaluation in run.train]


def train_accuracy(run: Run) -> Sequence[float]:
    """Return the training accuracy per epoch."""
    return [evaluation.accuracy for evaluation in run.train]


def test_accuracy(run: Run) -> Sequence[float]:
    """Return the test accuracy per epoch."""
    return [evaluation.accuracy for evaluation in run.test]


def curves(
    axes: Axes, results: Results, title: str, quantity: Callable[[Run], Sequence[float]]
) -> None:
    """Draw a quantity per epoch: a line for the mean, a band from the worst seed to the best."""
    for runs, method, colour in (
        (results.cross_entropy_runs, results.cross_entropy, BASELINE_COLOUR),
        (results.power_gradient_runs, results.power_gradient, OUR_COLOUR),
    ):
        values = np.array([quantity(run) for run in runs])
        epochs = np.arange(1, values.shape[1] + 1)
        axes.fill_between(
            epochs, values.min(axis=0), values.max(axis=0), color=colour, alpha=0.14, linewidth=0
        )
        axes.plot(
            epochs,
            values.mean(axis=0),
            color=colour,
            linewidth=2.4,
            marker="o",
            markersize=7,
            markeredgecolor="white",
            label=method.name,
        )
    axes.set_title(title)
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def stretch_towards_all(axes: Axes) -> None:
    """Space an accuracy axis by the logarithm of the errors left: 90, 99 and 99.9 % stay apart."""

    def forward(accuracy: ArrayLike) -> NDArray[np.float64]:
        position: NDArray[np.float64] = -np.log(NEARLY_ALL - np.minimum(accuracy, 100))
        return position

    def inverse(position: ArrayLike) -> NDArray[np.float64]:
        accuracy: NDArray[np.float64] = NEARLY_ALL - np.exp(np.negative(position))
        return accuracy

    lowest, _ = axes.get_ylim()
    axes.set_yscale("function", functions=(forward, inverse))
    axes.set_ylim(lowest, 100)
    axes.set_yticks([mark for mark in (20, 50, 80, 90, 95, 98, 99, 99.5, 100) if mark >= lowest])
    axes.yaxis.set_major_formatter(FuncFormatter(lambda mark, _: f"{mark:g}"))


def paired_seeds(axes: Axes, results: Results) -> None:
    """Draw every seed's final test accuracy as one line from cross-entropy to PGT."""
    baseline = [run.test[-1].accuracy for run in results.cross_entropy_runs]
    ours = [run.test[-1].accuracy for run in results.power_gradient_runs]
    for before, after in zip(baseline, ours, strict=True):
        line = OUR_COLOUR if after > before else BASELINE_COLOUR
        axes.plot((0, 1), (before, after), color=line, linewidth=1.3, alpha=0.45, zorder=1)
    for position, values, colour in ((0, baseline, BASELINE_COLOUR), (1, ours, OUR_COLOUR)):
        places = np.full(len(values), position)
        axes.scatter(places, values, color=colour, s=44, edgecolor="white", zorder=2)
    axes.set_title("Final test accuracy, %: one line per seed")
    axes.set_xlim(-0.35, 1.35)
    axes.set_xticks((0, 1), (results.cross_entropy.name, results.power_gradient.name))


def headline(figure: Figure, results: Results) -> None:
    """Write the finding above the panels, the legend beside it, and the fine print below."""
    accuracy = results.test_accuracy
    difference = format_estimate(accuracy.difference, 2, "+")
    figure.text(
        0.015, 0.955, "Cross-entropy and PGT on handwritten digits", fontsize=18, fontweight="bold"
    )
    figure.text(
        0.015,
        0.921,
        f"Test accuracy with PGT: {difference} points over {accuracy.seeds} paired seeds "
        f"(mean ± standard error), better in {accuracy.better}, equal in {accuracy.ties}",
        fontsize=11.5,
        color=FINE_PRINT,
    )
    figure.legend(
        *figure.axes[0].get_legend_handles_labels(),
        loc="upper right",
        bbox_to_anchor=(0.985, 0.99),
        ncols=2,
        frameon=False,
        fontsize=12,
    )
    figure.text(
        0.015,
        0.012,
        "ResNet-8 with BatchNorm, scikit-learn digits. Lines: mean over seeds; bands: worst to "
        f"best seed. α = 1 for cross-entropy. {machine(THREADS)}",
        fontsize=8.5,
        color=FINE_PRINT,
    )
