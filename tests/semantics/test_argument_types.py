"""Targets, probabilities and weights in other types than the logits'."""

import pytest
import torch
import torch.nn.functional as F
from cases import DTYPES, LAYOUTS, check, make_problem

import powergrad_ext as pg

SHAPES = {"rows": (6, 50), "inner": (3, 5, 37)}
OTHERS = pytest.mark.parametrize("other", DTYPES, ids=lambda other: f"with {other}")


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("ignore_index", [-100, 2])
@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_uint8_targets(reduction, ignore_index, layout, dtype, device):
    problem = make_problem(
        SHAPES[layout], dtype, device, reduction=reduction, ignore_index=ignore_index, weighted=True
    )
    problem.target = problem.target.clamp(min=0).to(torch.uint8)
    check(problem)
    loss = pg.PowerGradCrossEntropyLoss(
        problem.weight, ignore_index, reduction, alpha=problem.alpha
    )(problem.logits, problem.target)
    as_int64 = problem.loss(problem.logits, problem.target.long())
    torch.testing.assert_close(loss, as_int64, rtol=0, atol=0)


def test_uint8_ignore_index_of_segmentation(device):
    """255, the label of what is not to be learned."""
    logits = torch.randn(2, 5, 7, dtype=torch.float64, device=device)
    target = torch.randint(0, 5, (2, 7), device=device)
    target[0, 3] = target[1, 0] = 255
    expected = F.cross_entropy(logits, target, ignore_index=255)
    ours = pg.cross_entropy(logits, target.byte(), ignore_index=255)
    torch.testing.assert_close(ours, expected)


@OTHERS
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_probabilities(reduction, layout, other, dtype, device):
    """As if they had been converted first; their gradient comes back in their own type."""
    problem = make_problem(
        SHAPES[layout], dtype, device, reduction=reduction, targets="probabilities", weighted=True
    )
    problem.target = problem.target.to(other)
    logits, wide = problem.logits.clone().requires_grad_(), problem.logits.clone().requires_grad_()
    target = problem.target.requires_grad_()
    same = problem.target.detach().to(torch.promote_types(dtype, torch.float32)).requires_grad_()
    for z, q in ((logits, target), (wide, same)):
        loss = problem.loss(z, q)
        loss.backward(problem.grad_output(loss))
    assert target.grad.dtype == other
    torch.testing.assert_close(logits.grad, wide.grad)
    torch.testing.assert_close(target.grad, same.grad.to(other))


@OTHERS
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("targets", ["int64", "probabilities"])
def test_weights(targets, autocast, other, dtype, device):
    problem = make_problem((6, 50), dtype, device, targets=targets, weighted=True)
    problem.weight = problem.weight.to(other)
    loss_of = problem.loss

    def loss(logits, target):
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=autocast):
            return loss_of(logits, target)

    problem.loss = loss
    check(problem)
