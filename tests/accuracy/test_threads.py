"""The same bits for any number of threads: work is cut by size, never by who is there to do it."""

import pytest
import torch
from cases import make_problem

import powergrad_ext as pg

# More threads than this machine may have: what counts is how the work is cut.
THREADS = [1, 2, 3, 7, 13]

SHAPES = {
    "many rows": (3000, 100),
    "one row, split over the threads": (1, 262144),
    "fewer rows than threads": (2, 50257),
    "a few rows more than are summed at once, split": (11, 33000),
    "segmentation": (2, 21, 64, 33),
}


def bits_of_cross_entropy(problem):
    logits = problem.logits.detach().requires_grad_()
    loss = problem.loss(logits, problem.target)
    return loss.detach(), torch.autograd.grad(loss, logits, problem.grad_output(loss))[0]


def bits_of_log_softmax(problem):
    logits = problem.logits.detach().requires_grad_()
    output = pg.log_softmax(logits, problem.class_dim)
    return output.detach(), torch.autograd.grad(output, logits, problem.grad_output(output))[0]


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
@pytest.mark.parametrize("reduction", ["none", "mean"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.usefixtures("threads")
def test_cross_entropy(dtype, reduction, shape, isa):
    plain = make_problem(shape, dtype, reduction=reduction)
    smoothed = make_problem(shape, dtype, reduction=reduction, label_smoothing=0.1, weighted=True)
    assert_same_bits(bits_of_cross_entropy, plain)
    assert_same_bits(bits_of_cross_entropy, smoothed)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
@pytest.mark.usefixtures("threads")
def test_log_softmax(shape, isa):
    assert_same_bits(bits_of_log_softmax, make_problem(shape, torch.float32))


def assert_same_bits(bits, problem):
    torch.set_num_threads(1)
    expected = bits(problem)
    for count in THREADS[1:]:
        torch.set_num_threads(count)
        for actual, alone in zip(bits(problem), expected, strict=True):
            assert torch.equal(actual, alone), f"{count} threads"
