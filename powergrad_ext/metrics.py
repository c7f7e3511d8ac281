"""Log-probability, entropy and accuracy of each row, from the pass that computes the loss."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class RowMetrics(NamedTuple):
    """What ``return_metrics=True`` adds to a loss; of ``softmax(z)``, whatever alpha is.

    Each has the shape of the index target, and none requires a gradient. Rows that do not count
    (ignored, or of row weight 0) have 0, 0 and False; rows whose loss is NaN have NaN, NaN and
    False.
    """

    log_prob: Tensor
    """The target's log-probability, float64 for float64 logits, else float32."""
    entropy: Tensor
    """``-sum_j p_j log p_j``, of the same type."""
    correct: Tensor
    """Whether the target's logit is the maximum, bool."""


def metrics_of(values: Tensor, shape: tuple[int, ...]) -> RowMetrics:
    """RowMetrics from the last three rows of an operator's ``values`` (K, rows)."""
    # A copy: the operator may have saved the others for backward.
    own = values[-len(RowMetrics._fields) :].detach().clone()
    log_prob, entropy, correct = own.unbind(0)
    return RowMetrics(log_prob.reshape(shape), entropy.reshape(shape), correct.reshape(shape) != 0)


def metrics_of_logits(logits: Tensor, target: Tensor, counts: Tensor) -> RowMetrics:
    """In operators of torch's: logits (C), (N, C) or (N, C, d1, ..., dK), index targets.

    ``counts`` says which rows do, in the shape of ``target``.
    """
    class_dim = min(1, logits.dim() - 1)
    index = torch.where(counts, target, 0).unsqueeze(class_dim)
    log_p = torch.log_softmax(logits, class_dim)
    p = log_p.exp()
    entropy = -torch.where(p == 0, 0.0, p * log_p).sum(class_dim)
    log_prob = log_p.gather(class_dim, index).squeeze(class_dim)
    is_highest = logits.gather(class_dim, index).squeeze(class_dim) == logits.amax(class_dim)
    return RowMetrics(
        torch.where(counts, log_prob, 0.0),
        torch.where(counts, entropy, 0.0),
        counts & is_highest & (log_prob == log_prob),
    )
