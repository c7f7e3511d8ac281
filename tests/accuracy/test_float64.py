"""Float64 is real float64, held against the formulas in long double."""

import pytest
import torch
from cases import make_problem
from oracle import GRADIENT_SHARE, GRADIENT_ULPS, LOSS_SHARE, definition

import powergrad_ext as pg

SIZES = {
    "a tail": (5, 33),
    "ImageNet": (7, 1000),
    "chunks and a tail": (3, 5000),
    "a large vocabulary": (1, 128256),
}


def assert_long_double_close(actual, expected, allowed):
    excess = abs(actual.numpy().astype(expected.dtype) - expected) / allowed
    assert excess.max() <= 1, f"{float(excess.max()):.3g} times the allowed error"


@pytest.mark.parametrize("shape", SIZES.values(), ids=SIZES.keys())
@pytest.mark.parametrize("alpha", [1.0, 0.25, 0.3])
def test_loss_and_gradient(shape, alpha, isa):
    problem = make_problem(shape, torch.float64, targets="probabilities")
    logits = problem.logits.requires_grad_()
    losses = pg.cross_entropy(logits, problem.target, reduction="none", alpha=alpha)
    (gradients,) = torch.autograd.grad(losses.sum(), logits)

    expected_losses, expected = definition(logits, problem.target, alpha)
    share = LOSS_SHARE[torch.float64]
    assert_long_double_close(losses.detach(), expected_losses, share * abs(expected_losses))
    eps = torch.finfo(torch.float64).eps
    largest = abs(expected).max(axis=1, keepdims=True)
    allowed = GRADIENT_ULPS * eps * abs(expected) + GRADIENT_SHARE[torch.float64] * largest
    assert_long_double_close(gradients, expected, allowed)


def test_numbers_outside_float32(isa):
    """1e-60 and 1e60 exist only where nothing on the way is float32."""
    logits = torch.tensor([[0.0, -138.155]], dtype=torch.float64, requires_grad=True)
    loss = pg.cross_entropy(logits, torch.tensor([0]), alpha=1.0)
    loss.backward(torch.tensor(1e60, dtype=torch.float64))
    assert loss.item() == pytest.approx(1.0002e-60, rel=1e-4)
    assert logits.grad[0, 0].item() == pytest.approx(-1.0002, rel=1e-4)
    assert logits.grad[0, 1].item() == pytest.approx(1.0002, rel=1e-4)
