"""With alpha = 1 this is torch's function: its values, its NaNs, its gradients and its words."""

import math

import pytest
import torch
from cases import TARGET_KINDS, make_logits, make_problem
from torch.nn.functional import cross_entropy as torch_cross_entropy

import powergrad_ext as pg

INF, NAN = math.inf, math.nan


def solve(function, logits, target, *arguments, **options):
    logits = logits.detach().clone().requires_grad_()
    loss = function(logits, target, *arguments, **options)
    loss.backward(torch.linspace(0.5, 2.0, loss.numel()).reshape(loss.shape).to(loss))
    return loss.detach(), logits.grad


def assert_like_torch(logits, target, *arguments, **options):
    """Float64 on both sides, so that only a difference in meaning can show."""
    ours = solve(pg.cross_entropy, logits, target, *arguments, alpha=1.0, **options)
    torchs = solve(torch_cross_entropy, logits, target.to(_known(target)), *arguments, **options)
    torch.testing.assert_close(ours, torchs, rtol=1e-12, atol=1e-13, equal_nan=True)


def _known(target):
    return torch.int64 if target.dtype == torch.int32 else target.dtype


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("smoothing", [0.0, 0.3])
@pytest.mark.parametrize("targets", TARGET_KINDS[:3])
@pytest.mark.parametrize("shape", [(5,), (6, 5), (3, 5, 4)], ids=str)
def test_values_and_gradients(shape, targets, smoothing, reduction, device):
    problem = make_problem(
        shape,
        torch.float64,
        device,
        targets=targets,
        weighted=True,
        ignore_index=1 if targets == "int64" else -100,
        label_smoothing=smoothing,
        reduction=reduction,
    )
    assert_like_torch(problem.logits, problem.target, problem.weight, **problem.options)


SPECIAL_ROWS = {
    "a masked class": [0.0, -INF, 1.0],
    "a masked target": [-INF, 0.0, 1.0],
    "all but the target masked": [1.0, -INF, -INF],
    "nothing possible": [-INF, -INF, -INF],
    "a NaN": [0.0, NAN, 1.0],
    "an infinity": [0.0, INF, 1.0],
    "far apart": [1e300, -1e300, 0.0],
}


@pytest.mark.parametrize("reduction", ["none", "mean"])
@pytest.mark.parametrize("smoothing", [0.0, 0.3])
@pytest.mark.parametrize("probabilities", [False, True], ids=["index", "probabilities"])
@pytest.mark.parametrize("row", SPECIAL_ROWS.values(), ids=SPECIAL_ROWS.keys())
def test_special_rows(row, probabilities, smoothing, reduction, device):
    logits = torch.tensor([row, [1.0, 2.0, 3.0]], dtype=torch.float64, device=device)
    target = torch.tensor([0, 2], device=device)
    if probabilities:
        target = torch.nn.functional.one_hot(target, 3).double()
    assert_like_torch(logits, target, label_smoothing=smoothing, reduction=reduction)


@pytest.mark.parametrize("dim", [0, 1, -1])
def test_log_softmax(dim, device):
    logits = make_logits((4, 5, 6), torch.float64, device)
    logits[0, 0, 0], logits[1, 2, 3], logits[2, 2, 2] = -INF, NAN, INF
    solved = []
    for function in (lambda z: pg.log_softmax(z, dim, alpha=1.0), lambda z: z.log_softmax(dim)):
        leaf = logits.clone().requires_grad_()
        output = function(leaf)
        output.backward(torch.linspace(-1.0, 1.0, 120).reshape(4, 5, 6).to(output))
        solved.append((output.detach(), leaf.grad))
    torch.testing.assert_close(*solved, rtol=1e-12, atol=1e-13, equal_nan=True)


LOGITS = make_logits((3, 5), torch.float32, "cpu")
WRONG = {
    "batch size": (LOGITS, torch.tensor([0, 1]), {}),
    "index too large": (LOGITS, torch.tensor([0, 10, 1]), {}),
    "index negative": (LOGITS, torch.tensor([0, -1, 1]), {}),
    "two target dimensions": (LOGITS, torch.zeros(3, 1).long(), {}),
    "spatial size": (LOGITS[..., None].expand(3, 5, 4), torch.zeros(3, 3).long(), {}),
    "reduction": (LOGITS, torch.tensor([0, 1, 2]), {"reduction": "average"}),
    "smoothing": (LOGITS, torch.tensor([0, 1, 2]), {"label_smoothing": 1.5}),
    "weight length": (LOGITS, torch.tensor([0, 1, 2]), {"weight": torch.ones(4)}),
    "weight dimensions": (LOGITS, torch.tensor([0, 1, 2]), {"weight": torch.ones(5, 1)}),
    "ignored probabilities": (LOGITS, LOGITS.softmax(1), {"ignore_index": 2}),
}


@pytest.mark.parametrize(("logits", "target", "options"), WRONG.values(), ids=WRONG.keys())
def test_words_of_errors(logits, target, options):
    """The same class, and torch's sentence within ours."""
    with pytest.raises((RuntimeError, ValueError, IndexError)) as torchs:
        torch_cross_entropy(logits, target, **options)
    with pytest.raises(torchs.type) as ours:
        pg.cross_entropy(logits, target, **options)
    assert str(torchs.value).rstrip(".") in str(ours.value)
