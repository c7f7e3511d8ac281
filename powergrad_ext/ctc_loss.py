"""Connectionist temporal classification over log-probabilities, with their own derivative."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Lengths = Tensor | tuple[int, ...]


def ctc_loss(
    log_probs: Tensor,
    targets: Tensor,
    input_lengths: Lengths,
    target_lengths: Lengths,
    blank: int = 0,
    reduction: str = "mean",
    zero_infinity: bool = False,
) -> Tensor:
    r"""`torch.nn.functional.ctc_loss` for :func:`powergrad_ext.log_softmax`.

    Let ``o`` be the probability that the target's alignment is at class k in frame t; it sums to 1
    over the classes. The loss's derivative with respect to ``log_probs`` is ``-o``. torch returns
    ``exp(log_probs) - o`` instead, the derivative with respect to the logits: it sums to 0, so a
    log-softmax returns it unchanged, whatever alpha is. This function returns ``-o``: with logits
    ``z``, per frame::

        ctc_loss(log_softmax(z, alpha=alpha), ...)    has the gradient    softmax(alpha z) - o

    and after torch's log-softmax the ordinary one. Value, arguments and errors are torch's.
    """
    if reduction not in ("none", "mean", "sum"):
        raise ValueError(f"{reduction} is not a valid value for reduction")
    frames: Any = input_lengths  # F.ctc_loss is typed for tensors only
    labels: Any = target_lengths

    def unreduced(zero_infinity: bool) -> Tensor:
        return F.ctc_loss(log_probs, targets, frames, labels, blank, "none", zero_infinity)

    losses = unreduced(zero_infinity)
    correction = _zero_with_gradient(log_probs, input_lengths)
    if zero_infinity:  # infinite losses have become 0 and get no gradient
        with torch.no_grad():
            infinite = unreduced(False).isinf()
        correction = torch.where(infinite, 0.0, correction)
    losses = losses - correction
    if reduction == "none":
        return losses
    if reduction == "sum":
        return losses.sum()
    counts = torch.as_tensor(target_lengths, device=losses.device).reshape(losses.shape)
    return (losses / counts.clamp(min=1)).mean()


def _zero_with_gradient(log_probs: Tensor, input_lengths: Lengths) -> Tensor:
    """0 for each sample, with the derivative exp(log_probs) in the frames that count."""
    samples = log_probs.shape[1:-1]
    lengths = torch.as_tensor(input_lengths, device=log_probs.device).reshape(samples)
    frames = torch.arange(log_probs.shape[0], device=log_probs.device)
    counts = frames.reshape(-1, *[1] * len(samples)) < lengths
    # Masked before exp: in the derivative, 0 times an infinite padding would be NaN.
    total = log_probs.masked_fill(~counts.unsqueeze(-1), -torch.inf).exp().sum((0, -1))
    return total - total.detach()
