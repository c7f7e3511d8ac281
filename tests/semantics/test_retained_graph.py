"""Backward more than once: every gradient is right, and none changes one handed out before."""

import pytest
import torch
from cases import generator, make_problem
from oracle import assert_gradient, definition

import powergrad_ext as pg

SHAPES = pytest.mark.parametrize("shape", [(6, 50), (3, 5, 37)], ids=["rows", "inner"])
REDUCTIONS = pytest.mark.parametrize("reduction", ["none", "mean", "sum"])


def grad_outputs(loss):
    """One first: a gradient computed ahead for it must not be handed out as another's."""
    random = torch.randn((2, *loss.shape), generator=generator(3)).to(loss)
    return [torch.ones_like(loss), random[0], random[1], torch.zeros_like(loss)]


@SHAPES
@REDUCTIONS
@pytest.mark.parametrize("order", [1, -1], ids=["one first", "one last"])
def test_different_grad_outputs(order, reduction, shape, dtype, device):
    problem = make_problem(shape, dtype, device, reduction=reduction)
    logits = problem.logits.clone().requires_grad_()
    loss = problem.loss(logits, problem.target)
    asked = grad_outputs(loss)[::order]
    gradients = [torch.autograd.grad(loss, logits, up, retain_graph=True)[0] for up in asked]
    for gradient, grad_output in zip(gradients, asked, strict=True):
        expected = problem.expected(definition, grad_output)
        assert_gradient(gradient, expected.gradient, problem.class_dim)
    assert torch.equal(logits.detach(), problem.logits)


@SHAPES
@REDUCTIONS
@pytest.mark.parametrize("rows", [{}, {"weighted_rows": True, "z_loss": 0.1}], ids=str)
def test_gradient_belongs_to_who_asked(rows, reduction, shape, dtype, device):
    """Overwriting one changes neither the next, which has the same bits, nor the logits."""
    problem = make_problem(shape, dtype, device, reduction=reduction, **rows)
    logits = problem.logits.clone().requires_grad_()
    loss = problem.loss(logits, problem.target)
    grad_output = problem.grad_output(loss)
    (first,) = torch.autograd.grad(loss, logits, grad_output, retain_graph=True)
    kept = first.clone()
    first.fill_(torch.nan)
    (second,) = torch.autograd.grad(loss, logits, grad_output, retain_graph=True)
    assert torch.equal(second, kept)
    assert torch.equal(torch.autograd.grad(loss, logits, grad_output)[0], kept)
    assert torch.equal(logits.detach(), problem.logits)


@SHAPES
@REDUCTIONS
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_gradcheck(smoothing, reduction, shape, device):
    """Of ordinary cross-entropy: PGT's gradient is not the value's derivative."""
    problem = make_problem(
        shape, torch.float64, device, reduction=reduction, label_smoothing=smoothing, alpha=1.0
    )
    logits = problem.logits.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda z: problem.loss(z, problem.target), logits)
    assert torch.autograd.gradcheck(lambda z: pg.log_softmax(z, 1, alpha=1.0), logits)
    assert torch.autograd.gradgradcheck(lambda z: problem.loss(z, problem.target), logits)


@REDUCTIONS
def test_accumulation(reduction, device):
    """Two losses of the same logits add up in .grad, as any gradients do."""
    problem = make_problem((6, 50), torch.float64, device, reduction=reduction)
    logits = problem.logits.clone().requires_grad_()
    for _ in range(2):
        loss = problem.loss(logits, problem.target)
        loss.backward(problem.grad_output(loss))
    expected = problem.expected(definition, problem.grad_output(loss))
    assert_gradient(logits.grad, 2 * expected.gradient, 1)


@pytest.mark.parametrize("scale", [65536.0, 2.0**-20], ids=["loss scale", "tiny"])
def test_scaled_losses(scale, dtype, device):
    """A GradScaler multiplies the grad_output; float16 must not underflow before it does."""
    problem = make_problem((500, 40), dtype, device)
    logits = problem.logits.clone().requires_grad_()
    loss = problem.loss(logits, problem.target)
    (gradient,) = torch.autograd.grad(loss, logits, torch.full_like(loss, scale))
    expected = problem.expected(definition, torch.full_like(loss, scale))
    assert_gradient(gradient, expected.gradient, 1)


@pytest.mark.parametrize(
    "make_grad_output",
    [
        lambda device: torch._neg_view(torch.tensor(1.0, device=device)),
        lambda device: torch._efficientzerotensor((), device=device),
    ],
    ids=["lazily negated", "lazy zero"],
)
def test_grad_output_that_is_not_memory(make_grad_output, device):
    """What lies in memory is not the number: 1 for -1, and nothing at all for 0."""
    problem = make_problem((6, 50), torch.float32, device, reduction="mean")
    grad_output = make_grad_output(device)
    logits = problem.logits.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(problem.loss(logits, problem.target), logits, grad_output)
    expected = problem.expected(definition, grad_output.clone())
    assert_gradient(gradient, expected.gradient, problem.class_dim)
