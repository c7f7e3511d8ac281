"""Nothing is timed that computes something else."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .cases import Problem

# Of a class's own p'/N, as wrong as F.cross_entropy itself gets: with half-precision logits it
# rounds log p to their type before it takes the exponential. At the target p' - 1 cancels, so the
# unit there is 1/N.
TOLERANCE = {
    torch.float64: 1e-9,
    torch.float32: 1e-3,
    torch.float16: 2e-2,
    torch.bfloat16: 1e-1,
}


class WrongGradientError(Exception):
    """Says where a gradient is off, and by how much."""


class GradientCheck:
    """Compares gradients of one problem with their definition, element by element."""

    def __init__(self, problem: Problem) -> None:
        self._problem = problem
        self._expected: dict[float, Tensor] = {}

    def __call__(self, gradient: Tensor, alpha: float) -> None:
        """Raise WrongGradientError if shape, type or a value is not as defined."""
        pristine = self._problem.pristine
        if gradient.shape != pristine.shape or gradient.dtype != pristine.dtype:
            raise WrongGradientError(
                f"wrong gradient: {gradient.dtype} {tuple(gradient.shape)} "
                f"for {pristine.dtype} {tuple(pristine.shape)}"
            )
        if alpha not in self._expected:
            self._expected[alpha] = expected_gradient(self._problem, alpha)
        expected = self._expected[alpha]
        unit = expected.abs().scatter_(1, self._problem.target[:, None], 1.0 / len(expected))
        unit.clamp_(min=torch.finfo(pristine.dtype).smallest_normal)
        error = (gradient.to(expected) - expected).abs_().div_(unit).nan_to_num_(nan=torch.inf)
        worst = float(error.max())
        if worst > TOLERANCE[pristine.dtype]:
            row, column = divmod(int(error.argmax()), error.shape[1])
            raise WrongGradientError(
                f"wrong gradient: off by {worst:.1e} at row {row}, class {column}"
            )


def expected_gradient(problem: Problem, alpha: float) -> Tensor:
    """What the gradient is by its definition: that of F.cross_entropy(alpha z) / alpha.

    Returns:
        (rows, classes), float64 for float64 logits, else float32.
    """
    wide = torch.promote_types(problem.pristine.dtype, torch.float32)
    logits = problem.pristine.to(wide).detach().requires_grad_()
    loss = F.cross_entropy(alpha * logits, problem.target) / alpha
    (gradient,) = torch.autograd.grad(loss, logits)
    return gradient
