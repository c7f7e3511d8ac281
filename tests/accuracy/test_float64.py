"""Float64 is float64 throughout: its range and its digits."""

import pytest
import torch
from cases import check, make_problem

import powergrad_ext as pg


def test_numbers_outside_float32(device, isa):
    """1e-60 and 1e60 exist only where nothing on the way is float32."""
    logits = torch.tensor([[0.0, -138.155]], dtype=torch.float64, device=device).requires_grad_()
    loss = pg.cross_entropy(logits, torch.tensor([0], device=device), alpha=1.0)
    loss.backward(torch.full_like(loss, 1e60))
    assert loss.item() == pytest.approx(1.0002e-60, rel=1e-4)
    assert logits.grad[0, 0].item() == pytest.approx(-1.0002, rel=1e-4)
    assert logits.grad[0, 1].item() == pytest.approx(1.0002, rel=1e-4)


def test_digits_of_alpha_weight_and_smoothing(device):
    """A third is not a float32, wherever it is given."""
    problem = make_problem(
        (6, 50), torch.float64, device, alpha=1 / 3, weighted=True, label_smoothing=1 / 3
    )
    problem.weight += 1 / 3
    check(problem)
