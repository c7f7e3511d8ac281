"""The same numbers anywhere in memory give the same answer."""

import pytest
import torch
from cases import TARGET_KINDS, check, check_log_softmax, make_problem
from torch import Tensor


def transposed(x: Tensor) -> Tensor:
    return x.transpose(0, -1).contiguous().transpose(0, -1)


def offset(x: Tensor) -> Tensor:
    """Starts one element late, so no vector is aligned."""
    return x.new_zeros(x.numel() + 1)[1:].view(x.shape).copy_(x)


def every_second_class(x: Tensor) -> Tensor:
    return x.repeat_interleave(2, min(1, x.dim() - 1))[:, ::2]


def every_second_row(x: Tensor) -> Tensor:
    return x.repeat_interleave(2, 0)[::2]


def last_rows_first(x: Tensor) -> Tensor:
    return x.flip(0)


def padded_rows(x: Tensor) -> Tensor:
    """Rows that are contiguous, but not next to each other."""
    return torch.nn.functional.pad(x, (3, 5))[..., 3:-5]


def channels_last(x: Tensor) -> Tensor:
    return x.movedim(1, -1).contiguous().movedim(-1, 1)


def classes_slowest(x: Tensor) -> Tensor:
    return x.transpose(0, 1).contiguous().transpose(0, 1)


def middle_slowest(x: Tensor) -> Tensor:
    return x.movedim(2, 0).contiguous().movedim(0, 2) if x.dim() > 2 else x


PLACES = [
    transposed,
    offset,
    every_second_class,
    every_second_row,
    last_rows_first,
    padded_rows,
    channels_last,
    classes_slowest,
    middle_slowest,
]
SHAPES = {"rows": (7, 40), "inner": (3, 5, 37), "images": (2, 21, 4, 9)}

everywhere = pytest.mark.parametrize("place", PLACES, ids=lambda place: place.__name__)
shapes = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())


@everywhere
@shapes
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_logits(dtype, shape, place, device):
    problem = make_problem(shape, dtype, device, reduction="none", weighted=True)
    problem.logits = place(problem.logits)
    check(problem)


@everywhere
@shapes
def test_probabilities(shape, place, device):
    """In another place than the logits, which are where they always are."""
    problem = make_problem(shape, torch.float32, device, targets="probabilities", reduction="none")
    problem.target = place(problem.target)
    check(problem)
    problem.logits = transposed(problem.logits)
    check(problem)


@shapes
def test_indices_and_weights(shape, device):
    problem = make_problem(shape, torch.float32, device, weighted=True)
    problem.target = problem.target.repeat_interleave(3, -1)[..., 1::3]
    problem.weight = problem.weight.repeat_interleave(2)[::2]
    check(problem)
    problem.target = transposed(problem.target)
    check(problem)


@pytest.mark.parametrize("targets", TARGET_KINDS[:3])
@pytest.mark.parametrize("dimension", [0, 1, 2], ids=["batch", "classes", "inner"])
def test_expanded_logits(dimension, targets, device):
    """Elements that share memory: read in place or copied, and each has a gradient of its own."""
    problem = make_problem((3, 5, 7), torch.float32, device, targets=targets)
    problem.logits = problem.logits.narrow(dimension, 0, 1).expand(3, 5, 7)
    check(problem)


def test_expanded_targets_and_weight(device):
    problem = make_problem((6, 5), torch.float32, device)
    problem.target = torch.tensor(2, device=device).expand(6)
    problem.weight = torch.tensor(0.5, device=device).expand(5)
    check(problem)
    problem.target = torch.full((1, 5), 0.2, device=device).expand(6, 5)
    problem.options = {}
    check(problem)


UPSTREAM = torch.linspace(-1.0, 2.0, 24).reshape(4, 6)


@pytest.mark.parametrize(
    "grad_output",
    [
        UPSTREAM,
        transposed(UPSTREAM),
        UPSTREAM[:, :1].expand(4, 6),
        UPSTREAM[:1].expand(4, 6),
        UPSTREAM[0, 0].expand(4, 6),
    ],
    ids=["contiguous", "transposed", "one per image", "one per pixel", "one for all, as of sum()"],
)
def test_grad_output(grad_output, device):
    problem = make_problem((4, 5, 6), torch.float32, device, reduction="none")
    problem.grad_output = lambda like: grad_output.to(device)
    check(problem)


@everywhere
@pytest.mark.parametrize("dim", [0, 1, -1])
def test_log_softmax(dim, place, device):
    check_log_softmax(place(make_problem((5, 6, 20), torch.float32, device).logits), dim)
