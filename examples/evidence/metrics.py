"""How well logits (N, C) predict labels (N,)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from math import nan

import numpy as np
import torch
from scipy.stats import binned_statistic
from torch import Tensor

from powergrad_ext.calibration import negative_log_likelihood, probabilities

BINS = 15


def accuracy(logits: Tensor, labels: Tensor, top: int = 1) -> float:
    """Return the percent of labels among the classes with the highest logits."""
    found = logits.topk(top, dim=1).indices == labels[:, None]
    return 100 * found.any(dim=1).double().mean().item()


def nll(logits: Tensor, labels: Tensor, alpha: float) -> float:
    """Return the mean negative log-likelihood at softmax(alpha * z)."""
    return negative_log_likelihood(logits.double(), labels, alpha=alpha).item()


def calibration_error(logits: Tensor, labels: Tensor, alpha: float) -> float:
    """Return the expected calibration error at softmax(alpha * z), in percent.

    Predictions fall into BINS equal bins of confidence (Guo et al., arXiv 1706.04599); the error is
    how far accuracy and mean confidence of a bin lie apart, weighted by how many fall into it.
    """
    confidence, predicted = probabilities(logits.double(), alpha=alpha).max(dim=1)
    gap = confidence - (predicted == labels).double()
    sums, _, _ = binned_statistic(confidence.numpy(), gap.numpy(), "sum", BINS, range=(0, 1))
    return 100 * float(np.abs(sums).sum()) / len(labels)


def class_metrics(logits: Tensor, labels: Tensor, alpha: float) -> dict[str, float]:
    """Return what every classifier is judged by; alpha is the one that it was trained with.

    All is NaN where training diverged.
    """
    measures: dict[str, Callable[[Tensor, Tensor], float]] = {
        "accuracy": accuracy,
        "top5": partial(accuracy, top=5),
        "nll": partial(nll, alpha=1.0),
        "nll_trained": partial(nll, alpha=alpha),
        "calibration_error": partial(calibration_error, alpha=1.0),
        "calibration_error_trained": partial(calibration_error, alpha=alpha),
    }
    if not logits.isfinite().all():
        return dict.fromkeys(measures, nan)
    return {name: measure(logits, labels) for name, measure in measures.items()}


@torch.no_grad()
def logits_of(network: torch.nn.Module, inputs: Tensor, batch: int = 4096) -> Tensor:
    """Return a network's logits in evaluation mode, a batch at a time."""
    network.eval()
    return torch.cat([network(part) for part in inputs.split(batch)])
