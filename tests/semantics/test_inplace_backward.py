"""inplace_backward=True: the gradient lands over the logits, and whoever needs them is told.

In every test a model's output plays the logits, as in training; `x` is what it was computed from.
"""

import pytest
import torch
from cases import make_problem
from oracle import assert_gradient, assert_loss, definition

import powergrad_ext as pg

SHAPES = pytest.mark.parametrize("shape", [(6, 50), (3, 5, 37)], ids=["rows", "inner"])
REDUCTIONS = pytest.mark.parametrize("reduction", ["none", "mean"])
MODIFIED = "modified by an inplace operation"


def solve(problem, logits):
    loss = problem.loss(logits, problem.target, inplace_backward=True)
    loss.backward(problem.grad_output(loss))
    return loss.detach()


@SHAPES
@REDUCTIONS
@pytest.mark.parametrize("targets", ["int64", "float32_probabilities"])
@pytest.mark.parametrize("rows", [{}, {"weighted_rows": True, "z_loss": 0.1}], ids=str)
def test_gradient_lands_over_the_logits(rows, targets, reduction, shape, dtype, device):
    problem = make_problem(shape, dtype, device, reduction=reduction, targets=targets, **rows)
    x = problem.logits.clone().requires_grad_()
    logits = x * 1.0
    loss = solve(problem, logits)
    expected = problem.expected(definition, problem.grad_output(loss))
    assert_loss(loss, expected.loss)
    assert_gradient(x.grad, expected.gradient, problem.class_dim, expected.terms)
    assert torch.equal(logits.detach(), x.grad)


def test_probabilities_that_want_a_gradient_too(device):
    """Theirs needs the logits, and is computed before they go."""
    problem = make_problem((6, 50), torch.float32, device, targets="probabilities")
    problem.target.requires_grad_()
    x = problem.logits.clone().requires_grad_()
    loss = solve(problem, x * 1.0)
    expected = problem.expected(definition, problem.grad_output(loss))
    assert_gradient(x.grad, expected.gradient, 1, expected.terms)
    assert_gradient(problem.target.grad, expected.target_gradient, 1)


@pytest.mark.parametrize("part", [slice(None), slice(1, None, 2)], ids=["whole", "view"])
def test_a_leaf_does_not_become_its_own_gradient(part, device):
    """Nor a view of one: torch's own in-place operations refuse both."""
    problem = make_problem((6, 50), torch.float32, device)
    leaf = problem.logits.clone().requires_grad_()
    problem.logits, problem.target = problem.logits[part], problem.target[part]
    loss = solve(problem, leaf if part == slice(None) else leaf[part])
    expected = problem.expected(definition, problem.grad_output(loss))
    assert_gradient(leaf.grad[part], expected.gradient, 1)
    assert torch.equal(leaf.detach()[part], problem.logits)


@REDUCTIONS
def test_second_backward_is_refused(reduction, device):
    problem = make_problem((6, 50), torch.float32, device, reduction=reduction)
    logits = problem.logits.clone().requires_grad_() * 1.0
    loss = problem.loss(logits, problem.target, inplace_backward=True)
    grad_output = problem.grad_output(loss)
    loss.backward(grad_output, retain_graph=True)
    with pytest.raises(RuntimeError, match=MODIFIED):
        loss.backward(grad_output)


@REDUCTIONS
def test_others_that_saved_the_logits_are_refused(reduction, device):
    """Their backward would read a gradient for logits."""
    problem = make_problem((6, 50), torch.float32, device, reduction=reduction)
    logits = problem.logits.clone().requires_grad_() * 1.0
    penalty = (logits * logits).sum()
    solve(problem, logits)
    with pytest.raises(RuntimeError, match=MODIFIED):
        penalty.backward()


def test_two_losses_on_the_same_logits(device):
    """The second backward raises; it does not return the gradient of a gradient."""
    problem = make_problem((6, 50), torch.float32, device)
    logits = problem.logits.clone().requires_grad_() * 1.0
    losses = [problem.loss(logits, problem.target, inplace_backward=True) for _ in range(2)]
    losses[0].backward()
    with pytest.raises(RuntimeError, match=MODIFIED):
        losses[1].backward()


def overlapping(logits):
    return logits[:1].expand(6, 50)


def spread(logits):
    return logits.repeat_interleave(2, 1).repeat_interleave(2, 0)[::2, ::2]


@pytest.mark.parametrize("place", [overlapping, spread], ids=lambda place: place.__name__)
def test_permission_that_cannot_be_used(place, device):
    """Where a layout forbids it the gradient is right and the logits stay."""
    problem = make_problem((6, 50), torch.float32, device)
    problem.logits = place(problem.logits)
    x = problem.logits.clone().requires_grad_()
    logits = place(x)
    before = logits.detach().clone()
    loss = problem.loss(logits, problem.target, inplace_backward=True)
    (gradient,) = torch.autograd.grad(loss, logits, problem.grad_output(loss))
    expected = problem.expected(definition, problem.grad_output(loss))
    assert_gradient(gradient, expected.gradient, 1)
    assert torch.equal(logits.detach(), before)


def test_part_of_a_tensor(device):
    """Only the logits are overwritten, not what lies around them in the same memory."""
    problem = make_problem((6, 50), torch.float32, device)
    x = torch.nn.functional.pad(problem.logits, (3, 5), value=7.0).requires_grad_()
    whole = x * 1.0
    solve(problem, whole[:, 3:-5])
    assert (whole[:, :3] == 7.0).all()
    assert (whole[:, -5:] == 7.0).all()
    assert torch.equal(whole[:, 3:-5].detach(), x.grad[:, 3:-5])


def test_without_gradient_nothing_is_written(device):
    problem = make_problem((6, 50), torch.float32, device)
    before = problem.logits.clone()
    with torch.no_grad():
        problem.loss(problem.logits, problem.target, inplace_backward=True)
    assert torch.equal(problem.logits, before)


def test_create_graph_keeps_the_logits(device):
    """A gradient that is to be differentiated needs them once more."""
    problem = make_problem((6, 50), torch.float64, device)
    logits = problem.logits.clone().requires_grad_()
    loss = pg.cross_entropy(logits * 1.0, problem.target, inplace_backward=True)
    (gradient,) = torch.autograd.grad(loss, logits, create_graph=True)
    (second,) = torch.autograd.grad(gradient.square().sum(), logits)
    plain = pg.cross_entropy(logits, problem.target)
    (gradient,) = torch.autograd.grad(plain, logits, create_graph=True)
    torch.testing.assert_close(second, torch.autograd.grad(gradient.square().sum(), logits)[0])


@pytest.mark.parametrize("stride", [0, 2, 6], ids=["the same row", "windows", "one in common"])
def test_rows_that_share_memory_are_left_alone(stride, device):
    """The gradient of one would be read as the logits of another."""
    x = torch.randn(64, device=device, requires_grad=True)
    target = torch.tensor([0, 3, 6, 2], device=device)

    def solve(**options):
        logits = (x * 1.0).as_strided((4, 7), (stride, 1))
        before = logits.detach().clone()
        loss = pg.cross_entropy(logits, target, reduction="none", **options)
        (gradient,) = torch.autograd.grad(loss.sum(), x)
        return loss.detach(), gradient, torch.equal(logits.detach(), before)

    found = solve(inplace_backward=True)
    assert found[2]
    torch.testing.assert_close(found, solve())
