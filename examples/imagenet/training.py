"""The recipe, an epoch of training, an evaluation."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.amp import GradScaler, autocast
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader

from powergrad_ext.calibration import negative_log_likelihood

from .processes import Processes

MOMENTUM = 0.9
WEIGHT_DECAY = 5e-4
PEAK_RATE = 0.4
PEAK_BATCH = 1024
WARM_UP_EPOCHS = 5
STEP_EPOCHS = 30

Advance = Callable[[], None]


def optimizer_for(network: nn.Module, rate: float) -> SGD:
    """Return the paper's optimizer, at the rate that warm-up ends with."""
    return SGD(network.parameters(), rate, MOMENTUM, weight_decay=WEIGHT_DECAY, nesterov=True)


def rate_schedule(optimizer: Optimizer, shape: str, epochs: int, steps: int) -> LambdaLR:
    """Return the schedule of the rate, for a step at a time, of so many to an epoch."""
    warm_up = min(WARM_UP_EPOCHS, epochs // 2) * steps
    return LambdaLR(optimizer, partial(share_of_rate, shape, warm_up, epochs * steps, steps))


def share_of_rate(shape: str, warm_up: int, total: int, steps: int, step: int) -> float:
    """Return the share of the peak rate at a step: a rise, then "cosine" or "step"."""
    if step < warm_up:
        return (step + 1) / warm_up
    if shape == "step":
        return 0.1 ** (step // (STEP_EPOCHS * steps))
    return 0.5 + 0.5 * math.cos(math.pi * (step - warm_up) / max(total - warm_up, 1))


def train_epoch(
    network: nn.Module,
    criterion: nn.Module,
    batches: DataLoader,
    optimizer: Optimizer,
    schedule: LambdaLR,
    scaler: GradScaler,
    processes: Processes,
    advance: Advance,
) -> dict[str, float]:
    """Train for an epoch; return the mean loss and the accuracy in percent while training."""
    network.train()
    sums = torch.zeros(3, dtype=torch.float64, device=processes.device)
    for images, labels in batches:
        images, labels = images.to(processes.device), labels.to(processes.device)
        with autocast(processes.device.type, enabled=scaler.is_enabled()):
            logits = network(images)
            loss = criterion(logits, labels)
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        schedule.step()
        hits = (logits.detach().argmax(1) == labels).sum()
        sums += torch.stack([loss.detach() * len(labels), hits, hits.new_tensor(len(labels))])
        advance()
    loss_sum, right, count = processes.total(sums).tolist()
    return {"train_loss": loss_sum / count, "train_top1": 100 * right / count}


@torch.inference_mode()
def evaluate(
    network: nn.Module, alpha: float, batches: DataLoader, processes: Processes, advance: Advance
) -> dict[str, float]:
    """Return top-1 in percent and the mean losses at softmax(z) and at softmax(alpha z)."""
    network.eval()
    sums = torch.zeros(4, dtype=torch.float64, device=processes.device)
    for images, labels in batches:
        logits, labels = network(images.to(processes.device)), labels.to(processes.device)
        sums += torch.stack(
            [
                (logits.argmax(1) == labels).sum(),
                total_loss(logits, labels, 1.0),
                total_loss(logits, labels, alpha),
                labels.new_tensor(len(labels)),
            ]
        )
        advance()
    right, nll, nll_trained, count = processes.total(sums).tolist()
    return {
        "top1": 100 * right / count,
        "nll": nll / count,
        "nll_trained": nll_trained / count,
        "images": count,
    }


def total_loss(logits: Tensor, labels: Tensor, alpha: float) -> Tensor:
    """Return the sum of the losses at softmax(alpha z)."""
    return negative_log_likelihood(logits, labels, reduction="sum", alpha=alpha)
