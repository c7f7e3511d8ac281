"""One training run, and what it measures on the way."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from time import perf_counter

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR

from examples.evidence.threads import thread_count
from powergrad_ext.calibration import negative_log_likelihood

from .data import Split, load_split, shuffled_batches
from .methods import Criterion, Method
from .network import residual_network

BATCH_SIZE = 64
MOMENTUM = 0.9
WEIGHT_DECAY = 5e-4
THREADS = 1
"""Sharing tensors this small gains little, and costs a lot where something else is running too."""


@dataclass(frozen=True)
class Evaluation:
    """How a network does on one set: accuracy in percent, and mean negative log-likelihoods."""

    accuracy: float
    nll: float
    """At softmax(z)."""
    nll_trained: float
    """At softmax(alpha * z), the probabilities that training drives towards the data."""


@dataclass
class Run:
    """One seed of one method: an evaluation per epoch, a pair of durations per step."""

    train: list[Evaluation] = field(default_factory=list)
    test: list[Evaluation] = field(default_factory=list)
    loss_seconds: list[float] = field(default_factory=list)
    step_seconds: list[float] = field(default_factory=list)


@thread_count(THREADS)
def train(
    method: Method, seed: int, epochs: int, after_epoch: Callable[[Run], None] = lambda run: None
) -> Run:
    """Train one network; the seed alone fixes data split, initial weights and batch order.

    Two methods with the same seed therefore differ in nothing but the loss and its learning rate,
    which is what makes their runs a pair.
    """
    split = load_split(seed)
    batches = shuffled_batches(split, BATCH_SIZE, seed)
    torch.manual_seed(seed)
    network = residual_network()
    optimizer = SGD(network.parameters(), method.learning_rate, MOMENTUM, weight_decay=WEIGHT_DECAY)
    schedule = CosineAnnealingLR(optimizer, epochs * len(batches))

    run = Run()
    for _ in range(epochs):
        network.train()
        for images, labels in batches:
            loss_seconds, step_seconds = step(network, method.criterion, optimizer, images, labels)
            run.loss_seconds.append(loss_seconds)
            run.step_seconds.append(step_seconds)
            schedule.step()
        evaluate_into(run, network, split, method.alpha)
        after_epoch(run)
    return run


def step(
    network: nn.Module, criterion: Criterion, optimizer: Optimizer, images: Tensor, labels: Tensor
) -> tuple[float, float]:
    """Take one optimizer step; return the seconds spent in the loss and in the whole step.

    Backward is the chain rule in two calls, cut at the logits: the same gradients as one call, and
    the loss's own forward and backward can be timed apart from the network's.
    """
    step_began = perf_counter()
    logits = network(images)
    leaf = logits.detach().requires_grad_()

    loss_began = perf_counter()
    (gradient,) = torch.autograd.grad(criterion(leaf, labels), leaf)
    loss_seconds = perf_counter() - loss_began

    torch.autograd.backward(logits, gradient)
    optimizer.step()
    optimizer.zero_grad()
    return loss_seconds, perf_counter() - step_began


@torch.no_grad()
def evaluate_into(run: Run, network: nn.Module, split: Split, alpha: float) -> None:
    """Append the network's evaluation on both sets to the run."""
    network.eval()
    run.train.append(evaluate(network(split.train_images), split.train_labels, alpha))
    run.test.append(evaluate(network(split.test_images), split.test_labels, alpha))


def evaluate(logits: Tensor, labels: Tensor, alpha: float) -> Evaluation:
    """Judge logits (N, C) against labels (N,)."""
    return Evaluation(
        accuracy=100 * (logits.argmax(dim=1) == labels).double().mean().item(),
        nll=F.cross_entropy(logits, labels).item(),
        nll_trained=negative_log_likelihood(logits, labels, alpha=alpha).item(),
    )
