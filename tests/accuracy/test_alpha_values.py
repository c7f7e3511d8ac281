"""Every exponent keeps the promised accuracy: kernels treat some of them specially."""

import pytest
import torch
from cases import check, make_problem

ALPHAS = {
    "ordinary cross-entropy": 1.0,
    "the square root": 0.5,
    "the cube root, not a binary number": 1 / 3,
    "the fourth root": 0.25,
    "the default": 0.3,
    "the fifth root": 0.2,
    "just off a root": 0.2501,
    "no root": 0.7,
    "nearly uniform": 0.01,
    "above one": 2.0,
    "far above one": 8.0,
}
SHAPES = {"rows": (5, 77), "inner": (2, 11, 19)}


@pytest.mark.parametrize("alpha", ALPHAS.values(), ids=ALPHAS.keys())
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_gradient(shape, alpha, dtype, device, isa):
    check(make_problem(shape, dtype, device, alpha=alpha, reduction="none"))
    check(make_problem(shape, dtype, device, alpha=alpha, targets="probabilities"))


@pytest.mark.parametrize("alpha", [1.0, 0.25, 0.3])
def test_tensor_alpha_gives_the_bits_of_a_float(alpha, dtype, device):
    """A float64 tensor holds the same number as the float."""
    problem = make_problem((6, 50), dtype, device, alpha=alpha)
    gradients = []
    for exponent in (alpha, torch.tensor(alpha, dtype=torch.float64)):
        problem.alpha = exponent
        logits = problem.logits.clone().requires_grad_()
        problem.loss(logits, problem.target).backward()
        gradients.append(logits.grad)
    assert torch.equal(*gradients)
