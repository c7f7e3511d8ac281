"""The oracles and the specification are the same function.

So what the identity says of meaning holds for the digits of the definition.
"""

import pytest
import torch
from cases import make_logits, make_problem
from oracle import definition, identity

from powergrad_ext import reference

COMBINATIONS = pytest.mark.parametrize(
    "options",
    [
        {"targets": "int64", "reduction": "mean", "weighted": True},
        {"targets": "int64", "reduction": "sum", "label_smoothing": 0.2, "weighted": True},
        {"targets": "int32", "reduction": "mean", "label_smoothing": 0.2, "ignore_index": 1},
        {"targets": "int64", "reduction": "none", "label_smoothing": 1.0},
        {"targets": "probabilities", "reduction": "mean", "weighted": True},
        {"targets": "probabilities", "reduction": "none", "label_smoothing": 0.2},
    ],
    ids=str,
)
SHAPES = pytest.mark.parametrize("shape", [(7,), (6, 7), (3, 7, 5)], ids=str)
ALPHAS = pytest.mark.parametrize("alpha", [1.0, 0.3, 2.0])


@COMBINATIONS
@SHAPES
@ALPHAS
def test_identity_is_the_definition(alpha, shape, options):
    problem = make_problem(shape, torch.float64, alpha=alpha, **options)
    loss = problem.loss(problem.logits, problem.target)
    grad_output = problem.grad_output(loss)
    torch.testing.assert_close(
        problem.expected(identity, grad_output)[:3],
        problem.expected(definition, grad_output)[:3],
        rtol=1e-12,
        atol=1e-13,
    )


@COMBINATIONS
@SHAPES
@ALPHAS
@pytest.mark.parametrize(
    "rows", [{}, {"weighted_rows": True}, {"z_loss": 0.05}, {"weighted_rows": True, "z_loss": 0.3}]
)
def test_reference_is_the_definition(rows, alpha, shape, options):
    problem = make_problem(shape, torch.float64, alpha=alpha, **options, **rows)
    logits = problem.logits.requires_grad_()
    target = problem.target
    wanted = [logits, target.requires_grad_()] if target.is_floating_point() else [logits]
    loss = reference.cross_entropy(logits, target, problem.weight, alpha=alpha, **problem.options)
    gradients = torch.autograd.grad(loss, wanted, problem.grad_output(loss))
    expected = problem.expected(definition, problem.grad_output(loss))
    torch.testing.assert_close(loss.detach(), expected.loss)
    for gradient, right in zip(gradients, expected[1:3], strict=False):
        torch.testing.assert_close(gradient, right, rtol=1e-12, atol=1e-13)


def test_reference_computes_half_logits_in_float32():
    problem = make_problem((6, 7), torch.bfloat16, weighted=True, targets="int32")
    logits = problem.logits.requires_grad_()
    loss = reference.cross_entropy(logits, problem.target, problem.weight)
    loss.backward()
    expected = problem.expected(identity, torch.ones_like(loss))
    assert loss.dtype == torch.float32
    assert logits.grad.dtype == torch.bfloat16
    torch.testing.assert_close(loss.detach().double(), expected.loss, rtol=1e-6, atol=0)
    torch.testing.assert_close(logits.grad.double(), expected.gradient, rtol=1e-2, atol=1e-5)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_reference_keeps_ignored_rows_out(smoothing):
    logits = make_logits((4, 7), torch.float64, "cpu")
    logits[1] = torch.nan
    logits.requires_grad_()
    target = torch.tensor([0, -100, 2, 3])
    loss = reference.cross_entropy(logits, target, label_smoothing=smoothing)
    loss.backward()
    assert loss.isfinite()
    assert logits.grad.isfinite().all()
    assert (logits.grad[1] == 0).all()


def test_reference_leaves_the_logits_alone():
    """inplace_backward is a permission, and the specification has no use for it."""
    problem = make_problem((6, 7), torch.float64)
    logits = problem.logits.clone().requires_grad_()
    reference.cross_entropy(logits, problem.target, inplace_backward=True).backward()
    assert torch.equal(logits.detach(), problem.logits)


@pytest.mark.parametrize("name", ["cross_entropy", "log_softmax"])
def test_reference_keeps_the_alpha_of_forward(name):
    """A schedule may overwrite its tensor before backward runs."""
    z = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    options = (torch.tensor([1, 0, 4]),) if name == "cross_entropy" else (1,)

    def loss(alpha):
        return getattr(reference, name)(z, *options, alpha=alpha).square().sum()

    alpha = torch.tensor(0.3, dtype=torch.float64)
    value = loss(alpha)
    alpha.fill_(2.0)
    found = torch.autograd.grad(value, z)
    torch.testing.assert_close(found, torch.autograd.grad(loss(0.3), z))
