"""Weights, ignored rows, smoothing and reductions together: each changes what another means."""

import pytest
import torch
from cases import check, make_problem
from oracle import assert_gradient, assert_loss, definition

REDUCTIONS = pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
SMOOTHINGS = pytest.mark.parametrize("smoothing", [0.0, 0.2, 1.0])
WEIGHTED = pytest.mark.parametrize("weighted", [False, True], ids=["unweighted", "weighted"])
SHAPES = pytest.mark.parametrize("shape", [(9, 5), (3, 5, 4)], ids=["rows", "inner"])
IGNORE = {"torch's default": -100, "a class": 2, "the first class": 0, "beyond the classes": 255}


@REDUCTIONS
@SMOOTHINGS
@WEIGHTED
@SHAPES
@pytest.mark.parametrize("ignore_index", IGNORE.values(), ids=IGNORE.keys())
def test_index_targets(ignore_index, shape, weighted, smoothing, reduction, device):
    check(
        make_problem(
            shape,
            torch.float32,
            device,
            targets="int32" if ignore_index == 255 else "int64",
            weighted=weighted,
            ignore_index=ignore_index,
            label_smoothing=smoothing,
            reduction=reduction,
        )
    )


@REDUCTIONS
@SMOOTHINGS
@WEIGHTED
@SHAPES
@pytest.mark.parametrize("targets", ["probabilities", "float32_probabilities"])
def test_probability_targets(targets, shape, weighted, smoothing, reduction, device):
    check(
        make_problem(
            shape,
            torch.bfloat16,
            device,
            targets=targets,
            weighted=weighted,
            label_smoothing=smoothing,
            reduction=reduction,
        )
    )


def test_ignored_index_outside_int32(device):
    problem = make_problem((9, 5), torch.float32, device, ignore_index=2**40, reduction="mean")
    assert (problem.target == 2**40).any()
    check(problem)


def test_probabilities_that_do_not_add_up_to_one(device):
    """Nothing normalises them: their sum weighs the row."""
    problem = make_problem((9, 5), torch.float32, device, targets="probabilities")
    problem.target *= torch.linspace(0.0, 3.0, 9, device=device)[:, None]
    check(problem)


@REDUCTIONS
def test_gradient_of_the_target_alone(reduction, device):
    """As a student's logits that are not trained, and a teacher's probabilities that are."""
    problem = make_problem(
        (9, 5), torch.float32, device, targets="probabilities", weighted=True, reduction=reduction
    )
    target = problem.target.requires_grad_()
    loss = problem.loss(problem.logits, target)
    grad_output = problem.grad_output(loss)
    (gradient,) = torch.autograd.grad(loss, target, grad_output)
    expected = problem.expected(definition, grad_output)
    assert_loss(loss.detach(), expected.loss)
    assert_gradient(gradient, expected.target_gradient, 1)


def test_weight_in_the_type_of_half_logits(device):
    """It is read as it is, so the answer is that of the rounded weights."""
    problem = make_problem((9, 5), torch.bfloat16, device, weighted=True)
    problem.weight = problem.weight.bfloat16()
    check(problem)


def test_classes_of_weight_zero(device):
    problem = make_problem((9, 5), torch.float32, device, weighted=True)
    problem.weight[1::2] = 0.0
    check(problem)
