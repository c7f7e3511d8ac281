"""Nothing is timed that computes something else."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .cases import FORWARD, LOG_SOFTMAX_FORWARD, SMOOTHING, WEIGHTS
from .problem import Problem

# As wrong as F.cross_entropy itself gets: with half-precision logits it rounds log p to their type
# before it takes the exponential, and past 16 bfloat16 has steps of 1/8. Of a class's own part of
# the gradient, |g| + p' sum|g|: where g - p' sum(g) cancels, no more than that can be asked for.
TOLERANCE = {
    torch.float64: 1e-9,
    torch.float32: 1e-3,
    torch.float16: 2e-2,
    torch.bfloat16: 1.5e-1,
}


class WrongResultError(Exception):
    """Says where a gradient or a loss is off, and by how much."""


class ResultCheck:
    """Compares what a step returns with its definition: the gradient, or of forward the output."""

    def __init__(self, problem: Problem) -> None:
        self._problem = problem
        self._tolerance = TOLERANCE[problem.pristine.dtype]
        self._of_alpha: dict[float, tuple[Tensor, Tensor]] = {}

    def __call__(self, result: Tensor, alpha: float) -> None:
        """Raise WrongResultError if shape, type or a value is not as defined."""
        if self._problem.group.mode == FORWARD:
            self._check_loss(result)
        elif self._problem.group.mode == LOG_SOFTMAX_FORWARD:
            self._check_log_probabilities(result)
        else:
            self._check_gradient(result, alpha)

    def _check_loss(self, loss: Tensor) -> None:
        logits, target = widened(self._problem.pristine), self._problem.target
        expected = float(F.cross_entropy(logits, target))
        error = abs(float(loss) - expected) / expected
        if not error <= self._tolerance:
            raise WrongResultError(f"wrong loss: off by {error:.1e}")

    def _check_log_probabilities(self, result: Tensor) -> None:
        expected = widened(self._problem.pristine).log_softmax(dim=1)
        error = float(((result.to(expected) - expected) / expected).abs_().max())
        if not error <= self._tolerance:
            raise WrongResultError(f"wrong log-probability: off by {error:.1e}")

    def _check_gradient(self, gradient: Tensor, alpha: float) -> None:
        pristine = self._problem.pristine
        if gradient.shape != pristine.shape or gradient.dtype != pristine.dtype:
            raise WrongResultError(
                f"wrong gradient: {gradient.dtype} {tuple(gradient.shape)} "
                f"for {pristine.dtype} {tuple(pristine.shape)}"
            )
        if alpha not in self._of_alpha:
            self._of_alpha[alpha] = expected_gradient(self._problem, alpha)
        expected, unit = self._of_alpha[alpha]
        error = (gradient.to(expected) - expected).abs_().div_(unit).nan_to_num_(nan=torch.inf)
        worst = float(error.max())
        if worst > self._tolerance:
            row, column, *_ = torch.unravel_index(error.argmax(), error.shape)
            raise WrongResultError(
                f"wrong gradient: off by {worst:.1e} at row {int(row)}, class {int(column)}"
            )


def expected_gradient(problem: Problem, alpha: float) -> tuple[Tensor, Tensor]:
    """By its definition, g - p' sum(g), and the unit of its error, |g| + p' sum|g|.

    Returns:
        Both in the shape of the logits, float64 for float64 logits, else float32.
    """
    transformed = (alpha * widened(problem.pristine)).softmax(dim=1)
    g = gradient_of_log_probabilities(problem)
    smallest = torch.finfo(problem.pristine.dtype).smallest_normal
    unit = (g.abs() + transformed * g.abs().sum(dim=1, keepdim=True)).clamp_(min=smallest)
    return g - transformed * g.sum(dim=1, keepdim=True), unit


def gradient_of_log_probabilities(problem: Problem) -> Tensor:
    """What a log-softmax gets in backward: grad_output itself, for a loss -grad_output * q."""
    grad_output, logits = problem.grad_output, widened(problem.pristine)
    if grad_output is not None and grad_output.shape == logits.shape:
        return grad_output.to(logits)
    if problem.target.is_floating_point():
        target = problem.target.to(logits)
    else:
        target = torch.zeros_like(logits).scatter_(1, problem.target.unsqueeze(1), 1.0)
    rows = logits[:, :1].numel()
    if problem.group.mode == SMOOTHING:
        share = problem.options["label_smoothing"]
        target = (1.0 - share) * target + share / logits.shape[1]
    elif problem.group.mode == WEIGHTS:
        of_class = problem.options["weight"].to(logits)
        target = target * of_class.view(-1, *(1 for _ in problem.group.case.inner))
        rows = target.sum()  # as far as they count
    return target * (-1.0 / rows if grad_output is None else -grad_output.unsqueeze(1))


def widened(tensor: Tensor) -> Tensor:
    """In float32 at least."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
