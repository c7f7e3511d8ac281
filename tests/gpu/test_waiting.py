"""Nothing waits for the device: a step is launched and Python goes on."""

import math

import pytest
import torch
from cases import make_problem

import powergrad_ext as pg

pytestmark = pytest.mark.usefixtures("no_waiting")

ALPHAS = {
    "float": lambda: 0.3,
    "on the CPU": lambda: torch.tensor(0.3),
    "on the device": lambda: torch.full((), 0.3, device="cuda"),
}
alphas = pytest.mark.parametrize("make_alpha", ALPHAS.values(), ids=ALPHAS.keys())


@pytest.fixture
def problem(request, no_waiting):
    """Made before waiting is forbidden: its tensors are copied to the device."""
    torch.cuda.set_sync_debug_mode("default")
    made = make_problem((6, 50), torch.float32, "cuda", **getattr(request, "param", {}))
    torch.cuda.set_sync_debug_mode("error")
    return made


OPTIONS = [
    {},
    {"reduction": "none", "targets": "int32"},
    {"weighted": True, "label_smoothing": 0.1, "reduction": "sum"},
    {"targets": "probabilities"},
]


@alphas
@pytest.mark.parametrize("problem", OPTIONS, ids=str, indirect=True)
@pytest.mark.parametrize("inplace_backward", [False, True])
def test_cross_entropy(inplace_backward, problem, make_alpha):
    problem.alpha = make_alpha()
    logits = problem.logits.clone().requires_grad_()
    loss = problem.loss(logits * 1.0, problem.target, inplace_backward=inplace_backward)
    loss.backward(torch.ones_like(loss))


@alphas
@pytest.mark.parametrize("problem", OPTIONS, ids=str, indirect=True)
def test_second_order(problem, make_alpha):
    problem.alpha = make_alpha()
    logits = problem.logits.requires_grad_()
    loss = problem.loss(logits, problem.target).sum()
    (gradient,) = torch.autograd.grad(loss, logits, create_graph=True)
    gradient.square().sum().backward()


@alphas
def test_log_softmax(problem, make_alpha):
    logits = problem.logits.requires_grad_()
    output = pg.log_softmax(logits, alpha=make_alpha())
    (gradient,) = torch.autograd.grad(output.square().sum(), logits, create_graph=True)
    gradient.square().sum().backward()


def test_copied_layout(problem):
    """Logits that no kernel reads in place."""
    logits = problem.logits.new_zeros(12, 100)[::2, ::2].copy_(problem.logits).requires_grad_()
    problem.loss(logits, problem.target).backward()


def test_an_alpha_on_the_device_is_not_looked_at(problem):
    """So a wrong one is not an error; the value of the loss has no alpha in it."""
    problem.alpha = torch.full((), math.nan, device="cuda")
    loss = problem.loss(problem.logits, problem.target)
    torch.cuda.set_sync_debug_mode("default")
    assert loss.isfinite()
