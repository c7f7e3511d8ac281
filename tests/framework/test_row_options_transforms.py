"""row_weight, z_loss and return_metrics under what torch does to operators."""

from __future__ import annotations

import pytest
import torch
from last_layer import N, make_layer, make_target
from row_options import make_rows
from torch.func import grad, vmap

import powergrad_ext as pg


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("shape", [(4, 6, 7), (4, 2, 7, 3), (4, 7)], ids=str)
@pytest.mark.parametrize("kind", ["indices", "probabilities"])
def test_vmap_of_row_weights(kind, shape, reduction):
    """Of each sample; test_functorch.py has those that samples share."""
    samples = [make_rows(shape[1:], torch.float64, seed=seed) for seed in range(shape[0])]
    logits, target, row_weight = (torch.stack(each) for each in zip(*samples, strict=True))
    logits.select(min(2, len(shape) - 1), 0).fill_(0.5)
    if kind == "probabilities":
        target = logits.flip(0).softmax(min(2, len(shape) - 1))
    options = {"weight": torch.linspace(0.5, 2.0, 7).double(), "z_loss": 0.1}

    def loss(z, y, r):
        return pg.cross_entropy(z, y, row_weight=r, reduction=reduction, **options).sum()

    found = vmap(loss)(logits, target, row_weight)
    gradients = vmap(grad(loss))(logits, target, row_weight)
    for i in range(shape[0]):
        leaf = logits[i].clone().requires_grad_()
        alone = pg.reference.cross_entropy(
            leaf, target[i], row_weight=row_weight[i], reduction=reduction, **options
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
