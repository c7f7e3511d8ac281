"""Every shape that torch takes, down to nothing at all."""

import pytest
import torch
from cases import Problem, check, make_logits, make_problem

SHAPES = {
    "(C)": (9,),
    "(N, C)": (4, 9),
    "(1, C)": (1, 9),
    "(N, C, d1)": (4, 9, 5),
    "(N, C, d1, d2)": (2, 9, 3, 4),
    "(N, C, d1, d2, d3)": (2, 9, 3, 1, 2),
    "one class": (4, 1),
    "one class, inner dimension": (4, 1, 5),
}
EMPTY_SHAPES = {
    "no rows": (0, 9),
    "no rows, inner dimension": (0, 9, 5),
    "no inner positions": (4, 9, 0),
    "neither rows nor classes": (0, 0),
}
REDUCTIONS = ["none", "mean", "sum"]


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("targets", ["int64", "int32", "probabilities"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_shape(shape, targets, reduction, device):
    check(make_problem(shape, torch.float32, device, targets=targets, reduction=reduction))


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("targets", ["int64", "probabilities"])
@pytest.mark.parametrize("shape", EMPTY_SHAPES.values(), ids=EMPTY_SHAPES.keys())
def test_empty(shape, targets, reduction, device):
    """The mean of nothing is NaN, the sum 0, and gradients have their shape."""
    check(make_problem(shape, torch.float32, device, targets=targets, reduction=reduction))


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("shape", [(9,), (4, 9), (2, 9, 3)], ids=str)
def test_all_rows_ignored(shape, smoothing, reduction, dtype, device):
    """The mean is NaN, as torch's is; the gradient is 0, not NaN."""
    target = torch.full(shape[:1] * (len(shape) > 1) + shape[2:], 3, device=device)
    options = {"ignore_index": 3, "label_smoothing": smoothing, "reduction": reduction}
    problem = Problem(make_logits(shape, dtype, device), target, options=options)
    check(problem)
    logits = problem.logits.requires_grad_()
    loss = problem.loss(logits, target)
    loss.backward(problem.grad_output(loss))
    assert (logits.grad == 0).all()
