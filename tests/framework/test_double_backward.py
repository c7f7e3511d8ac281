"""create_graph=True: the gradient differentiated, against the float64 identity.

A gradient whose derivative is silently zero, or that of ordinary cross-entropy, trains on quietly.
"""

import pytest
import torch
from cases import generator, make_logits, make_problem
from torch.nn.functional import cross_entropy as torch_cross_entropy

import powergrad_ext as pg
from powergrad_ext import reference

CASES = {
    "mean": {},
    "sum, weights, smoothing": {"reduction": "sum", "weighted": True, "label_smoothing": 0.1},
    "none, a class ignored": {"reduction": "none", "ignore_index": 2, "weighted": True},
    "probabilities": {"targets": "probabilities", "weighted": True},
    "row weights, z-loss": {"weighted_rows": True, "z_loss": 0.1, "weighted": True},
    "the same, none, smoothing": {
        "weighted_rows": True,
        "z_loss": 0.1,
        "reduction": "none",
        "label_smoothing": 0.1,
    },
    "the same, probabilities": {
        "weighted_rows": True,
        "z_loss": 0.1,
        "targets": "probabilities",
        "reduction": "sum",
    },
    "z-loss and metrics": {"z_loss": 0.1, "return_metrics": True},
}
calls = pytest.mark.parametrize("options", CASES.values(), ids=CASES.keys())
shapes = pytest.mark.parametrize("shape", [(6, 7), (2, 7, 3), (7,)], ids=str)


def random_like(tensor, seed):
    return torch.randn(tensor.shape, generator=generator(seed), dtype=torch.float64).to(tensor)


def derivatives(loss, logits, orders):
    """The gradient of the loss, of a projection of it, and so on; and of grad_outputs."""
    loss = loss[0] if isinstance(loss, tuple) else loss  # with metrics
    grad_output = random_like(loss, 5).requires_grad_()
    found = list(torch.autograd.grad(loss, logits, grad_output, create_graph=True))
    for order in range(1, orders):
        projected = (found[-1] * random_like(logits, order)).sum()
        wanted = [grad_output, logits] if order == 1 else [logits]
        found += torch.autograd.grad(projected, wanted, create_graph=True)
    return [tensor.detach() for tensor in found]


def identity_of(problem, logits):
    """A function whose ordinary derivatives, from the first on, are those that are right."""
    if "z_loss" in problem.options:  # torch's function has none
        return reference.cross_entropy(
            logits, problem.target, problem.weight, alpha=problem.alpha, **problem.options
        )
    return (
        torch_cross_entropy(
            problem.alpha * logits, problem.target, problem.weight, **problem.options
        )
        / problem.alpha
    )


@calls
@shapes
@pytest.mark.parametrize("alpha", [1.0, 0.3])
def test_three_orders(alpha, shape, options, device):
    problem = make_problem(shape, torch.float64, device, alpha=alpha, **options)
    ours = problem.logits.clone().requires_grad_()
    right = problem.logits.clone().requires_grad_()
    torch.testing.assert_close(
        derivatives(problem.loss(ours, problem.target), ours, 3),
        derivatives(identity_of(problem, right), right, 3),
        rtol=1e-10,
        atol=1e-13,
    )


def test_bfloat16_logits(device):
    """Second derivatives are rounded once, to the logits' own type."""
    problem = make_problem((6, 7), torch.bfloat16, device)
    ours = problem.logits.clone().requires_grad_()
    right = problem.logits.double().requires_grad_()
    (gradient,) = torch.autograd.grad(problem.loss(ours, problem.target), ours, create_graph=True)
    (expected,) = torch.autograd.grad(identity_of(problem, right), right, create_graph=True)
    projection = random_like(right, 1)
    (second,) = torch.autograd.grad((gradient * projection).sum(), ours)
    (expected,) = torch.autograd.grad((expected * projection).sum(), right)
    assert second.dtype == torch.bfloat16
    torch.testing.assert_close(second.double(), expected, rtol=2e-2, atol=2e-3)


@pytest.mark.parametrize("reduction", ["none", "mean"])
@pytest.mark.parametrize("rows", [{}, {"weighted_rows": True, "z_loss": 0.1}], ids=str)
def test_mixed_derivatives_with_probabilities(rows, reduction, device):
    """The gradient of the logits depends on the target, and the other way round."""
    options = {"targets": "probabilities", "weighted": True, "reduction": reduction}
    problem = make_problem((6, 7), torch.float64, device, **options, **rows)

    def mixed(module):
        logits = problem.logits.clone().requires_grad_()
        target = problem.target.clone().requires_grad_()
        options = {"alpha": 0.3, "label_smoothing": 0.2, **problem.options}
        loss = module.cross_entropy(logits, target, problem.weight, **options)
        grad_output = random_like(loss, 5)
        first = torch.autograd.grad(loss, (logits, target), grad_output, create_graph=True)
        projected = sum((g * random_like(g, i)).sum() for i, g in enumerate(first))
        second = torch.autograd.grad(projected, (logits, target))
        return (*first, *second)

    torch.testing.assert_close(mixed(pg), mixed(reference), rtol=1e-10, atol=1e-13)
    if rows:  # a row of weight 0 may hold anything
        problem.logits[problem.options["row_weight"] == 0] = torch.nan
        torch.testing.assert_close(mixed(pg), mixed(reference), rtol=1e-10, atol=1e-13)


def test_gradient_penalty(device):
    """A use: the norm of an input's gradient as part of a loss, through a model."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(5, 8), torch.nn.Tanh(), torch.nn.Linear(8, 7))
    model = model.double().to(device)
    x = random_like(torch.empty(6, 5, dtype=torch.float64, device=device), 1).requires_grad_()
    target = torch.arange(6, device=device)

    def gradients(module):
        loss = module.cross_entropy(model(x), target, alpha=0.3)
        (of_input,) = torch.autograd.grad(loss, x, create_graph=True)
        return torch.autograd.grad(loss + of_input.square().sum(), list(model.parameters()))

    torch.testing.assert_close(gradients(pg), gradients(reference), rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("dim", [0, 1, -1])
def test_log_softmax(dim, device):
    logits = make_logits((4, 5, 6), torch.float64, device)
    ours, right = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    torch.testing.assert_close(
        derivatives(pg.log_softmax(ours, dim, alpha=0.3), ours, 3),
        derivatives(torch.log_softmax(0.3 * right, dim) / 0.3, right, 3),
        rtol=1e-10,
        atol=1e-13,
    )


def test_ignored_rows_may_hold_anything(device):
    """NaN logits of an ignored row stay out of second derivatives too."""
    logits = make_logits((4, 5), torch.float64, device)
    logits[1] = torch.nan
    logits.requires_grad_()
    target = torch.tensor([0, -100, 2, 3], device=device)
    (gradient,) = torch.autograd.grad(pg.cross_entropy(logits, target), logits, create_graph=True)
    (second,) = torch.autograd.grad(gradient.square().sum(), logits)
    assert second.isfinite().all()
    assert (second[1] == 0).all()


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("target", [[-100, -100, -100], [0, 0, 0], [0, -100, 0]], ids=str)
def test_a_mean_that_divides_by_0(target, weighted, label_smoothing, device):
    """No row counts, or all have a class of weight 0: what torch's own second derivatives are."""
    logits = make_logits((3, 4), torch.float64, device)
    target = torch.tensor(target, device=device)
    weight = torch.tensor([0.0, 1.0, 2.0, 0.5], dtype=torch.float64, device=device)
    options = {"weight": weight if weighted else None, "label_smoothing": label_smoothing}
    ours, right = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    torch.testing.assert_close(
        derivatives(pg.cross_entropy(ours, target, alpha=0.3, **options), ours, 2),
        derivatives(torch_cross_entropy(0.3 * right, target, **options) / 0.3, right, 2),
        equal_nan=True,
    )
