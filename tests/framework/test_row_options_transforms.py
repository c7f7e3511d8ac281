"""row_weight, z_loss and return_metrics under what torch does to operators."""

from __future__ import annotations

import pytest
import torch
import torch._dynamo.testing
from last_layer import N, make_layer, make_target
from row_options import make_finite_rows, make_rows
from torch.func import functionalize, grad, vmap

import powergrad_ext as pg

REDUCTIONS = ("none", "mean", "sum")

# Double backward


def second(function, logits, target, **options):
    leaf = logits.clone().requires_grad_()
    loss = function(leaf, target, **options)
    loss = loss[0] if options.get("return_metrics") else loss
    grad_output = torch.linspace(-1.0, 2.0, loss.numel()).double().reshape(loss.shape)
    grad_output.requires_grad_()
    (gradient,) = torch.autograd.grad(loss, leaf, grad_output, create_graph=True)
    direction = torch.linspace(1.0, -2.0, logits.numel()).double().sin().reshape(logits.shape)
    return gradient, *torch.autograd.grad(gradient, (leaf, grad_output), direction)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("shape", [(6, 7), (2, 7, 3), (7,)], ids=str)
@pytest.mark.parametrize("kind", ["indices", "probabilities", "metrics"])
def test_double_backward(kind, shape, reduction):
    logits, target, row_weight = make_finite_rows(shape)
    if kind == "probabilities":
        target = logits.flip(0).softmax(min(1, len(shape) - 1))
    options = {
        "reduction": reduction,
        "alpha": 0.4,
        "row_weight": row_weight,
        "z_loss": 0.1,
        "return_metrics": kind == "metrics",
    }
    found = second(pg.cross_entropy, logits, target, **options)
    right = second(pg.reference.cross_entropy, logits, target, **options)
    torch.testing.assert_close(found, right, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_derivatives_for_probabilities(reduction):
    """Of the loss and of its gradient; a row of weight 0 may hold NaN."""
    logits, _, row_weight = make_finite_rows()
    logits[row_weight == 0] = torch.nan
    q = make_finite_rows()[0].flip(0).softmax(1)
    results = []
    for function in (pg.cross_entropy, pg.reference.cross_entropy):
        z, target = logits.clone().requires_grad_(), q.clone().requires_grad_()
        loss = function(
            z, target, row_weight=row_weight, z_loss=0.1, reduction=reduction, alpha=0.4
        ).sum()
        first = torch.autograd.grad(loss, (z, target), create_graph=True)
        (mixed,) = torch.autograd.grad(first[0].square().sum(), target)
        results.append((*first, mixed))
    torch.testing.assert_close(*results, rtol=1e-10, atol=1e-12)


def test_double_backward_of_the_last_layer():
    layer, target = make_layer("cpu"), make_target("cpu")
    options = {"row_weight": (torch.arange(N) % 4).double(), "z_loss": 0.1, "alpha": 0.4}

    def fused(input, weight, bias):
        return pg.linear_cross_entropy(input, weight, target, linear_bias=bias, **options)

    def of_logits(*layer):
        return pg.reference.cross_entropy(torch.nn.functional.linear(*layer), target, **options)

    results = []
    for function in (fused, of_logits):
        first = torch.autograd.grad(function(*layer), layer, create_graph=True)
        together = sum(each.square().sum() for each in first)
        results.append((*first, *torch.autograd.grad(together, layer)))
    torch.testing.assert_close(*results, rtol=1e-9, atol=1e-11)


# torch.func


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("shape", [(4, 6, 7), (4, 2, 7, 3), (4, 7)], ids=str)
@pytest.mark.parametrize("row_dim", [0, None], ids=["weights of samples", "shared weights"])
@pytest.mark.parametrize("kind", ["indices", "probabilities"])
def test_vmap(kind, row_dim, shape, reduction):
    samples = [make_rows(shape[1:], torch.float64, seed=seed) for seed in range(shape[0])]
    logits, target, row_weight = (torch.stack(each) for each in zip(*samples, strict=True))
    logits.select(min(2, len(shape) - 1), 0).fill_(0.5)
    if kind == "probabilities":
        target = logits.flip(0).softmax(min(2, len(shape) - 1))
    row_weight = row_weight if row_dim == 0 else row_weight[0]

    def loss(z, y, r):
        return pg.cross_entropy(z, y, row_weight=r, z_loss=0.1, reduction=reduction).sum()

    dims = (0, 0, row_dim)
    found = vmap(loss, dims)(logits, target, row_weight)
    gradients = vmap(grad(loss), dims)(logits, target, row_weight)
    for i in range(shape[0]):
        leaf = logits[i].clone().requires_grad_()
        rows = row_weight[i] if row_dim == 0 else row_weight
        alone = pg.reference.cross_entropy(
            leaf, target[i], row_weight=rows, z_loss=0.1, reduction=reduction
        ).sum()
        torch.testing.assert_close(found[i], alone)
        torch.testing.assert_close(gradients[i], torch.autograd.grad(alone, leaf)[0])


@pytest.mark.parametrize("shape", [(4, 6, 7), (4, 2, 7, 3), (4, 7)], ids=str)
def test_metrics_under_torch_func(shape):
    samples = [make_rows(shape[1:], torch.float64, seed=seed) for seed in range(shape[0])]
    logits, target, row_weight = (torch.stack(each) for each in zip(*samples, strict=True))

    def loss(z, y, r):
        return pg.cross_entropy(z, y, row_weight=r, z_loss=0.1, return_metrics=True)

    found, metrics = vmap(loss)(logits, target, row_weight)
    _, of_gradient = vmap(grad(loss, has_aux=True))(logits, target, row_weight)
    for i in range(shape[0]):
        alone, its_metrics = loss(logits[i], target[i], row_weight[i])
        torch.testing.assert_close(found[i], alone)
        for each in (metrics, of_gradient):
            torch.testing.assert_close([m[i] for m in each], list(its_metrics))


def test_the_last_layer_under_torch_func():
    layer, target = make_layer("cpu"), make_target("cpu")
    row_weight = (torch.arange(N) % 4).double()

    def loss(input, weight, bias):
        return pg.linear_cross_entropy(
            input,
            weight,
            target,
            linear_bias=bias,
            row_weight=row_weight,
            z_loss=0.1,
            return_metrics=True,
        )

    expected, metrics = loss(*layer)
    gradients, its_metrics = grad(loss, (0, 1, 2), has_aux=True)(*layer)
    torch.testing.assert_close(gradients, torch.autograd.grad(expected, layer))
    torch.testing.assert_close(its_metrics, metrics)
    batched, of_batch = vmap(loss, (0, None, None))(torch.stack([layer[0]] * 2), *layer[1:])
    torch.testing.assert_close(batched, torch.stack([expected] * 2).detach())
    torch.testing.assert_close(of_batch.entropy[1], metrics.entropy)


def test_functionalization():
    logits, target, row_weight = make_finite_rows()

    def loss(z):
        value, metrics = pg.cross_entropy(
            z, target, row_weight=row_weight, z_loss=0.1, return_metrics=True
        )
        return value, *metrics

    torch.testing.assert_close(functionalize(loss)(logits), loss(logits))
