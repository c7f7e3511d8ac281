"""Alpha: what is taken for one, when it is read, and what is refused."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from cases import check, check_log_softmax, make_logits, make_problem
from oracle import assert_gradient, definition
from torch._subclasses.fake_tensor import FakeTensorMode

import powergrad_ext as pg
from powergrad_ext import reference

NUMBERS = {
    "float": 0.3,
    "int": 1,
    "numpy float32": np.float32(0.3),
    "numpy float64": np.float64(0.3),
    "numpy integer": np.int64(2),
    "fraction": Fraction(1, 3),
    "float64 tensor": torch.tensor(0.3, dtype=torch.float64),
    "float32 tensor": torch.tensor(0.3),
    "bfloat16 tensor": torch.tensor(0.3, dtype=torch.bfloat16),
}
REFUSED = {
    "zero": 0.0,
    "negative": -0.3,
    "nan": math.nan,
    "infinite": math.inf,
    "more than any float": 10**400,
    "text": "0.3",
    "none": None,
    "complex": 0.3j,
    "list": [0.3],
    "vector": torch.tensor([0.3]),
    "zero tensor": torch.tensor(0.0),
    "nan tensor": torch.tensor(math.nan),
    "infinite tensor": torch.tensor(math.inf),
    "complex tensor": torch.tensor(0.3j),
    "integer tensor": torch.tensor(1),
}
CALLS = {
    "cross_entropy": lambda z, alpha: pg.cross_entropy(z, torch.tensor([1, 2]), alpha=alpha),
    "log_softmax": lambda z, alpha: pg.log_softmax(z, alpha=alpha),
    "reference.cross_entropy": lambda z, alpha: reference.cross_entropy(
        z, torch.tensor([1, 2]), alpha=alpha
    ),
    "reference.log_softmax": lambda z, alpha: reference.log_softmax(z, alpha=alpha),
}


@pytest.mark.parametrize("alpha", NUMBERS.values(), ids=NUMBERS.keys())
def test_numbers(alpha, device):
    check(make_problem((6, 50), torch.float64, device, alpha=alpha))


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())
@pytest.mark.parametrize("alpha", REFUSED.values(), ids=REFUSED.keys())
def test_refused(alpha, call):
    with pytest.raises(ValueError, match="alpha"):
        call(torch.randn(2, 5, requires_grad=True), alpha)


@pytest.mark.parametrize("alpha", [1e38, 3e38, 1e300], ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_so_large_that_only_the_largest_logits_are_left(dtype, alpha, device):
    """They share all of p', however many bits of the type's range alpha takes."""
    z = torch.tensor([[0.0, 4.0, 4.0, -1.0, -torch.inf]] * 2, dtype=dtype, device=device)
    logits = z.requires_grad_()
    target = torch.tensor([1, 3], device=device)
    loss = pg.cross_entropy(logits, target, alpha=alpha, reduction="none")
    (gradient,) = torch.autograd.grad(loss, logits, torch.ones_like(loss))
    assert gradient.tolist() == [[0.0, -0.5, 0.5, 0.0, 0.0], [0.0, 0.5, 0.5, -1.0, 0.0]]
    grad_output = torch.tensor([[1.0, 0.0, 0.0, 0.0, 0.0]] * 2, dtype=dtype, device=device)
    output = pg.log_softmax(logits, alpha=alpha)
    (gradient,) = torch.autograd.grad(output, logits, grad_output)
    assert gradient.tolist() == [[1.0, -0.5, -0.5, 0.0, 0.0]] * 2


@pytest.mark.parametrize("alpha", [1e-40, 1e-300], ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_so_small_that_all_unmasked_classes_are_alike(dtype, alpha, device):
    z = torch.tensor([[0.0, 4.0, 2.0, -1.0, -torch.inf]], dtype=dtype, device=device)
    logits = z.requires_grad_()
    loss = pg.cross_entropy(logits, torch.tensor([1], device=device), alpha=alpha)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert gradient.tolist() == [[0.25, -0.75, 0.25, 0.25, 0.0]]


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())
def test_no_gradient_is_defined_for_alpha(call):
    with pytest.raises(RuntimeError, match="alpha"):
        call(torch.randn(2, 5), torch.tensor(0.3, requires_grad=True))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_tensor_on_the_device_of_the_logits(dtype, device):
    """On a GPU the kernels read it there."""
    alpha = torch.tensor(0.3, dtype=dtype, device=device)
    check(make_problem((6, 50), torch.float64, device, alpha=alpha))
    check_log_softmax(make_logits((6, 50), torch.float64, device), 1, alpha=alpha)


@pytest.mark.parametrize("reduction", ["none", "mean"])
@pytest.mark.parametrize("beside_the_logits", [False, True], ids=["on the CPU", "on the device"])
def test_schedule_that_updates_a_tensor_between_steps(beside_the_logits, reduction, device):
    alpha = torch.tensor(1.0, device=device if beside_the_logits else "cpu")
    for step in (1.0, 0.5, 0.3):
        alpha.fill_(step)
        check(make_problem((6, 50), torch.float32, device, alpha=alpha, reduction=reduction))


def test_change_after_the_gradient_was_computed_in_forward():
    """On a CPU a mean keeps its gradient from forward: that is the one of the alpha of forward."""
    problem = make_problem((6, 50), torch.float64, "cpu")
    problem.alpha = torch.tensor(0.3, dtype=torch.float64)
    logits = problem.logits.requires_grad_()
    loss = problem.loss(logits, problem.target)
    grad_output = problem.grad_output(loss)
    expected = problem.expected(definition, grad_output)
    problem.alpha.fill_(2.0)
    (gradient,) = torch.autograd.grad(loss, logits, grad_output)
    assert_gradient(gradient, expected.gradient, 1)


def under_torch_func(call, logits):
    torch.func.grad(lambda z: call(z).sum())(logits)


def under_a_fake_mode(call, logits):
    with FakeTensorMode(allow_non_fake_inputs=True):
        call(logits)


def in_inference_mode(call, logits):
    with torch.inference_mode():
        call(logits)


@pytest.mark.parametrize("function", ["cross_entropy", "log_softmax"])
@pytest.mark.parametrize(
    ("first", "alpha"),
    [(under_torch_func, 0.8125), (under_a_fake_mode, 0.8135), (in_inference_mode, 0.8145)],
    ids=["torch.func", "a fake mode", "inference mode"],
)
def test_a_number_that_was_first_seen_elsewhere(first, alpha, function):
    """The tensor that is made of it and kept for the next step belongs to no mode or transform."""
    alpha += 0.01 * (function == "log_softmax")  # in no other test
    logits = make_logits((2, 5), torch.float64, torch.device("cpu"))
    first(lambda z: CALLS[function](z, alpha), logits)
    logits.requires_grad_()
    found, right = (
        torch.autograd.grad(CALLS[function](logits, each).square().sum(), logits)
        for each in (alpha, torch.tensor(alpha, dtype=torch.float64))
    )
    assert type(found[0]) is torch.Tensor
    torch.testing.assert_close(found, right, rtol=0, atol=0)
