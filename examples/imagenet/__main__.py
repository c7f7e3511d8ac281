"""Train one of the paper's networks, with any alpha."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter
from typing import Any

try:
    import torch
    from rich.console import Console
    from rich.progress import Progress
    from torch.amp import GradScaler

    from powergrad_ext import PowerGradCrossEntropyLoss

    from . import data, files, training
    from .models import ARCHITECTURES
    from .processes import Processes, processes
except ModuleNotFoundError as missing:
    sys.exit(
        f"examples.imagenet needs {str(missing.name).partition('.')[0]}, which is not installed: "
        "run  pip install --no-build-isolation --editable '.[imagenet]'"
    )

RECIPE = (
    *("model", "alpha", "seed", "epochs", "batch_size", "learning_rate", "schedule"),
    "image_size",
)
"""What a run that goes on has to have been started with."""


def main(arguments: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Train, and return the metrics of every epoch."""
    options = parse(arguments)
    with processes() as group:
        return run(options, group)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line; what depends on the network is the paper's unless it is said."""
    parser = argparse.ArgumentParser(
        prog="python -m examples.imagenet",
        description=__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--data", type=Path, help="folder with train/ and val/, a folder per class")
    where.add_argument("--fake", action="store_true", help="train a minute on made-up images")
    parser.add_argument("--model", choices=ARCHITECTURES, default="resnet18")
    parser.add_argument("--alpha", type=float, help="PGT's exponent; 1: cross-entropy")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, help="100, or 3 with --fake")
    parser.add_argument("--batch-size", type=int, help="over all processes")
    parser.add_argument("--learning-rate", type=float, help="peak; 0.4 for each 1024 of a batch")
    parser.add_argument("--schedule", choices=("cosine", "step"), default="cosine")
    parser.add_argument("--image-size", type=int, help="224, or 32 with --fake")
    parser.add_argument("--workers", type=int, help="that load images, per process")
    parser.add_argument("--output", type=Path, default=Path("imagenet"), help="folder for results")
    parser.add_argument("--resume", action="store_true", help="go on from --output's checkpoint")
    options = parser.parse_args(arguments)
    paper = ARCHITECTURES[options.model]
    usual = {"alpha": paper.alpha, "epochs": 100, "image_size": 224, "workers": 8}
    usual["batch_size"] = paper.batch_size
    if options.fake:
        usual |= {"epochs": 3, "image_size": 32, "workers": 0, "batch_size": 32}
    for name, value in usual.items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    if options.learning_rate is None:
        options.learning_rate = training.PEAK_RATE * options.batch_size / training.PEAK_BATCH
    if options.epochs < 1:
        parser.error(f"--epochs must be at least 1, got {options.epochs}")
    return options


def run(options: argparse.Namespace, group: Processes) -> list[dict[str, Any]]:
    """Train from the start or from a checkpoint, leaving one after each epoch."""
    recipe = {name: getattr(options, name) for name in RECIPE} | {"processes": group.count}
    checkpoint = files.load_checkpoint(options.output)
    refuse_other_runs(options, recipe, checkpoint, group)
    options.output.mkdir(parents=True, exist_ok=True)
    folder = options.data
    if options.fake:
        folder = data.make_fake_images(options.output / f"images{group.rank}")
    train_images = data.training_set(folder, options.image_size)
    batches = data.training_batches(
        train_images, options.batch_size, options.workers, options.seed, group
    )
    validation = data.validation_batches(
        data.validation_set(folder, options.image_size), options.batch_size, options.workers, group
    )

    torch.manual_seed(options.seed)
    network = ARCHITECTURES[options.model].make(len(train_images.classes)).to(group.device)
    optimizer = training.optimizer_for(network, options.learning_rate)
    schedule = training.rate_schedule(optimizer, options.schedule, options.epochs, len(batches))
    scaler = GradScaler(group.device.type, enabled=group.device.type == "cuda")
    parts = {"network": network, "optimizer": optimizer, "schedule": schedule, "scaler": scaler}
    history: list[dict[str, Any]] = []
    if checkpoint is not None:
        history = checkpoint["history"]
        for name, part in parts.items():
            part.load_state_dict(checkpoint[name])
    shared = group.share(network)
    criterion = PowerGradCrossEntropyLoss(alpha=options.alpha)

    with progress(options, group, len(history), len(batches) + len(validation)) as advance:
        for epoch in range(len(history), options.epochs):
            began = perf_counter()
            # From the epoch alone, so that a run that goes on draws what it would have drawn.
            torch.manual_seed((options.seed * 100_003 + epoch) * 10_007 + group.rank)
            batches.sampler.set_epoch(epoch)
            line = {"epoch": epoch + 1} | training.train_epoch(
                shared, criterion, batches, optimizer, schedule, scaler, group, advance
            )
            group.agree_on_buffers(network)
            line |= training.evaluate(network, options.alpha, validation, group, advance)
            line |= {"seconds": perf_counter() - began, "commit": files.commit()}
            history.append(recipe | line)
            if group.is_first:
                states = {name: part.state_dict() for name, part in parts.items()}
                state = {"recipe": recipe, "history": history} | states
                files.save_checkpoint(options.output, state)
                files.save_metrics(options.output, history)
    return history


def refuse_other_runs(
    options: argparse.Namespace,
    recipe: dict[str, Any],
    checkpoint: dict[str, Any] | None,
    group: Processes,
) -> None:
    """End with a sentence rather than overwrite a run, or go on with another one."""
    if options.batch_size % group.count:
        sys.exit(
            f"examples.imagenet: --batch-size must be a multiple of the {group.count} processes, "
            f"got {options.batch_size}"
        )
    if checkpoint is None:
        return
    if not options.resume:
        sys.exit(
            f"examples.imagenet: {options.output} holds a run: add --resume to go on with it, or "
            "name another --output"
        )
    other = {name for name, value in recipe.items() if checkpoint["recipe"][name] != value}
    if other:
        began = ", ".join(f"{name} {checkpoint['recipe'][name]}" for name in sorted(other))
        sys.exit(f"examples.imagenet: the run in {options.output} was started with {began}")


@contextmanager
def progress(
    options: argparse.Namespace, group: Processes, epochs_done: int, steps: int
) -> Iterator[training.Advance]:
    """Show a bar over all batches in the first process."""
    console = Console(stderr=True, quiet=not group.is_first)
    with Progress(console=console) as bar:
        task = bar.add_task(
            f"{options.model}, α = {options.alpha:g}",
            total=options.epochs * steps,
            completed=epochs_done * steps,
        )
        yield lambda: bar.advance(task)


if __name__ == "__main__":
    main()
