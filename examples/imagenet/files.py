"""What a run leaves: a checkpoint, its metrics, its plot. A kill leaves the old or the new one."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import torch
from matplotlib.figure import Figure


def replace(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Write a file aside, see it on disk, and give it its name."""
    aside = path.with_name(f"{path.name}.part")
    with aside.open("wb") as file:
        write(file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(aside, path)


def save_checkpoint(folder: Path, state: dict[str, Any]) -> None:
    """Replace checkpoint.pt."""
    replace(folder / "checkpoint.pt", lambda file: torch.save(state, file))


def load_checkpoint(folder: Path) -> dict[str, Any] | None:
    """Return what was saved last, on the CPU; None if nothing was."""
    path = folder / "checkpoint.pt"
    return torch.load(path, map_location="cpu", weights_only=True) if path.exists() else None


def save_metrics(folder: Path, history: list[dict[str, Any]]) -> None:
    """Replace metrics.jsonl, a line per epoch, and the plot of it."""
    lines = "".join(json.dumps(epoch) + "\n" for epoch in history)
    replace(folder / "metrics.jsonl", lambda file: file.write(lines.encode()))
    replace(folder / "curves.png", lambda file: draw(history).savefig(file, format="png", dpi=120))


def draw(history: list[dict[str, Any]]) -> Figure:
    """Return accuracy and both validation losses per epoch."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    accuracy, loss = figure.subplots(1, 2)
    epochs = [line["epoch"] for line in history]
    for axes, names in ((accuracy, ("train_top1", "top1")), (loss, ("nll", "nll_trained"))):
        for name in names:
            axes.plot(epochs, [line[name] for line in history], marker="o", label=LABELS[name])
        axes.set_xlabel("epoch")
        axes.legend()
    accuracy.set_title("Top-1 accuracy, %")
    loss.set_title("Validation loss")
    figure.suptitle(f"{history[-1]['model']}, α = {history[-1]['alpha']:g}")
    return figure


LABELS = {
    "train_top1": "training",
    "top1": "validation",
    "nll": "at softmax(z)",
    "nll_trained": "at softmax(αz)",
}


def commit() -> str | None:
    """Return the commit of this repository, with a plus if files differ; None without git."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty=+"]
    try:
        told = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return told.stdout.strip()
