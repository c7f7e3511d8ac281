"""Probabilities and validation losses at softmax(alpha z), against torch in float64."""

import pytest
import torch
import torch.nn.functional as F
from cases import make_problem

import powergrad_ext as pg
from powergrad_ext.calibration import negative_log_likelihood, probabilities


@pytest.mark.parametrize("alpha", [0.25, 1.0, torch.tensor(0.3, dtype=torch.float64)], ids=str)
def test_probabilities(dtype, alpha, device):
    logits = make_problem((5, 7, 3), dtype, device).logits
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    for dim in (1, -1):
        found = probabilities(logits, dim, alpha=alpha)
        assert found.dtype == wide
        expected = torch.softmax(float(alpha) * logits.double(), dim).to(wide)
        torch.testing.assert_close(found, expected)
    assert probabilities(logits).argmax(-1).equal(logits.argmax(-1))


@pytest.mark.parametrize("options", [{}, {"reduction": "sum"}, {"reduction": "none"}], ids=str)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("alpha", [0.25, torch.tensor(0.3, dtype=torch.float64)], ids=str)
def test_negative_log_likelihood(dtype, options, weighted, alpha, device):
    problem = make_problem((9, 7), dtype, device, weighted=weighted, ignore_index=2, **options)
    logits = problem.logits.requires_grad_()
    found = negative_log_likelihood(
        logits, problem.target, problem.weight, alpha=alpha, **problem.options
    )
    weight = None if problem.weight is None else problem.weight.double()
    expected = F.cross_entropy(
        float(alpha) * logits.double(), problem.target, weight, **problem.options
    )
    assert not found.requires_grad
    torch.testing.assert_close(found, expected.detach().to(found.dtype))


def test_half_precision_is_scaled_in_float32():
    """0.3 z rounded to bfloat16 would move the loss by a percent."""
    logits = torch.tensor([[60.0, 59.5, 3.0]], dtype=torch.bfloat16)
    found = negative_log_likelihood(logits, torch.tensor([1]), alpha=0.3)
    expected = F.cross_entropy(0.3 * logits.double(), torch.tensor([1]))
    torch.testing.assert_close(found, expected.float())


@pytest.mark.parametrize("alpha", [-1.0, None], ids=str)
def test_bad_alpha(alpha):
    logits = torch.randn(2, 5)
    with pytest.raises(ValueError, match="alpha"):
        pg.calibration.probabilities(logits, alpha=alpha)
    with pytest.raises(ValueError, match="alpha"):
        pg.calibration.negative_log_likelihood(logits, torch.tensor([0, 1]), alpha=alpha)
