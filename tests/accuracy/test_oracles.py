"""The two oracles are the same function, so what one says of meaning holds for the other's digits.

Also for powergrad_ext.reference, which is the specification in the words of PyTorch.
"""

import pytest
import torch
from cases import make_problem
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
    upstream = problem.upstream(loss)
    torch.testing.assert_close(
        problem.expected(identity, upstream),
        problem.expected(definition, upstream),
        rtol=1e-12,
        atol=1e-13,
    )


@COMBINATIONS
@SHAPES
@ALPHAS
def test_reference_is_the_identity(alpha, shape, options):
    problem = make_problem(shape, torch.float64, alpha=alpha, **options)
    logits = problem.logits.requires_grad_()
    target = problem.target
    wanted = [logits, target.requires_grad_()] if target.is_floating_point() else [logits]
    loss = reference.cross_entropy(logits, target, problem.weight, alpha=alpha, **problem.options)
    gradients = torch.autograd.grad(loss, wanted, problem.upstream(loss))
    expected = problem.expected(identity, problem.upstream(loss))
    torch.testing.assert_close(loss.detach(), expected.loss)
    for gradient, right in zip(gradients, expected[1:], strict=False):
        torch.testing.assert_close(gradient, right, rtol=1e-12, atol=1e-13)
