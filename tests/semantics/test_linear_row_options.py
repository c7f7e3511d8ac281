"""row_weight and z_loss of linear_cross_entropy, through the definition of the loss in float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from oracle import definition as definition_of_logits
from row_options import IGNORED, assert_near

import powergrad_ext as pg

ROWS, FEATURES, CLASSES, ALPHA = 21, 6, 17, 0.4
# Of the largest number. Half precision rounds the logits, and their gradients before the products.
TOLERANCE = {torch.float64: 1e-13, torch.float32: 1e-5, torch.bfloat16: 4e-2, torch.float16: 6e-3}
OPTIONS = {
    "row weights": {"weighted_rows": True},
    "z-loss": {"z_loss": 0.05},
    "all": {
        "weighted_rows": True,
        "z_loss": 0.05,
        "label_smoothing": 0.1,
        "weight": torch.linspace(0.5, 2.0, CLASSES),
    },
}
OPTIONS["all, capped"] = OPTIONS["all"] | {"logit_scale": 0.7, "softcap": 3.0}
options_of_rows = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())


def make_layer(dtype=torch.float64, device="cpu"):
    random = torch.Generator().manual_seed(2)
    shapes = ((ROWS, FEATURES), (CLASSES, FEATURES), (CLASSES,))
    layer = [torch.randn(shape, generator=random, dtype=torch.float64) for shape in shapes]
    target = torch.randint(CLASSES, (ROWS,), generator=random)
    target[::6] = IGNORED
    row_weight = 0.25 + torch.rand(ROWS, generator=random)
    row_weight[1::4] = 0.0
    return [each.to(device, dtype) for each in layer], target.to(device), row_weight.to(device)


def definition(layer, target, grad_output, *, logit_scale=1.0, softcap=None, **options):
    """The loss and the layer's gradients, with torch's derivative of the layer alone."""
    wide = [each.detach().double().requires_grad_() for each in layer]
    logits = logit_scale * F.linear(*wide)
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    right = definition_of_logits(logits, target, grad_output, alpha=ALPHA, **options)
    gradient = right.gradient.to(logits.device)
    return right.loss.to(logits.device), torch.autograd.grad(logits, wide, gradient)


def prepared(options, row_weight):
    options = dict(options)
    if options.pop("weighted_rows", False):
        options["row_weight"] = row_weight
    if "weight" in options:
        options["weight"] = options["weight"].to(row_weight.device)
    return options


@options_of_rows
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("chunk_rows", [None, 1, 4])
def test_indices(chunk_rows, reduction, options, dtype, device):
    layer, target, row_weight = make_layer(dtype, device)
    options = prepared(options, row_weight) | {"reduction": reduction}
    leaves = [each.requires_grad_() for each in layer]
    loss = pg.linear_cross_entropy(
        *leaves[:2], target, linear_bias=leaves[2], alpha=ALPHA, chunk_rows=chunk_rows, **options
    )
    grad_output = torch.linspace(-1.5, 2.0, loss.numel(), device=device).reshape(loss.shape)
    gradients = torch.autograd.grad(loss, leaves, grad_output.to(loss))
    right, its_gradients = definition(layer, target, grad_output, **options)
    assert_near(loss.detach(), right, TOLERANCE[dtype])
    for found, expected in zip(gradients, its_gradients, strict=True):
        assert_near(found, expected, TOLERANCE[dtype])


@options_of_rows
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_probabilities(reduction, options):
    layer, _, row_weight = make_layer()
    target = torch.linspace(-1.0, 1.0, ROWS * CLASSES).double().sin().view(ROWS, CLASSES).softmax(1)
    options = prepared(options, row_weight) | {"reduction": reduction}
    leaves = [each.requires_grad_() for each in layer]
    for its_target in (target, target.clone().requires_grad_()):  # by chunks, and as a whole
        loss = pg.linear_cross_entropy(
            *leaves[:2], its_target, linear_bias=leaves[2], alpha=ALPHA, chunk_rows=4, **options
        )
        grad_output = torch.linspace(-1.5, 2.0, loss.numel()).double().reshape(loss.shape)
        gradients = torch.autograd.grad(loss, leaves, grad_output)
        right, its_gradients = definition(layer, target, grad_output, **options)
        assert_near(loss.detach(), right, 1e-13)
        for found, expected in zip(gradients, its_gradients, strict=True):
            assert_near(found, expected, 1e-13)


@pytest.mark.parametrize("kind", ["one row", "a layer of three dimensions"])
def test_shapes(kind):
    layer, target, row_weight = make_layer()
    input, weight, bias = layer
    if kind == "one row":
        input, target, row_weight = input[2], target[2], row_weight[2]
        logits = F.linear(input, weight, bias)
    else:
        weight, bias = torch.stack([weight, -weight], 1), None
        target, row_weight = torch.stack([target, target], 1), torch.stack([row_weight] * 2, 1)
        logits = torch.einsum("nh,ckh->nck", input, weight)
    options = {"row_weight": row_weight, "z_loss": 0.05}
    loss, metrics = pg.linear_cross_entropy(
        input, weight, target, linear_bias=bias, **options, return_metrics=True
    )
    expected = pg.cross_entropy(logits, target, **options, return_metrics=True)
    torch.testing.assert_close((loss, *metrics), (expected[0], *expected[1]))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("grad_output", [1.0, float("inf")])
def test_rows_of_weight_zero(grad_output, bad):
    """Get a gradient of 0, whatever they hold, and whatever the loss is multiplied by."""
    layer, target, row_weight = make_layer(torch.float32)
    target = torch.where(row_weight == 0, 10**6, target)
    layer[0][row_weight == 0] = bad
    leaves = [each.requires_grad_() for each in layer]
    loss, metrics = pg.linear_cross_entropy(
        *leaves[:2],
        target,
        linear_bias=leaves[2],
        row_weight=row_weight,
        z_loss=0.1,
        return_metrics=True,
    )
    assert loss.isfinite()
    assert not any(metric[row_weight == 0].any() for metric in metrics)
    (loss * grad_output).backward()
    assert not leaves[0].grad[row_weight == 0].any()


@pytest.mark.parametrize("scale", [2.0**-10, 1.0, 2.0**10])
def test_float16_with_row_weights_of_any_size(scale):
    """The rows' gradients are given a size that the products can hold."""
    layer, target, row_weight = make_layer(torch.float16)
    row_weight = row_weight * scale
    leaves = [each.requires_grad_() for each in layer]
    options = {"row_weight": row_weight, "reduction": "sum", "z_loss": 0.5}
    loss = pg.linear_cross_entropy(
        *leaves[:2], target, linear_bias=leaves[2], alpha=ALPHA, **options
    )
    grad_output = torch.tensor(2.0**-4)
    gradients = torch.autograd.grad(loss, leaves, grad_output)
    right, its_gradients = definition(layer, target, grad_output, **options)
    assert_near(loss.detach(), right, TOLERANCE[torch.float16])
    for found, expected in zip(gradients, its_gradients, strict=True):
        assert_near(found, expected, TOLERANCE[torch.float16])


@pytest.mark.parametrize("options", [{}, {"z_loss": 0.5}, {"label_smoothing": 0.1}], ids=str)
def test_float16_beside_an_ignored_row_of_a_large_weight(options):
    """The weights of rows that do not count give no size to the others' gradients."""
    layer, target, row_weight = make_layer(torch.float16)
    target[0] = IGNORED
    row_weight[0] = 1e8
    leaves = [each.requires_grad_() for each in layer]
    options = {"row_weight": row_weight, "reduction": "sum", **options}
    loss = pg.linear_cross_entropy(
        *leaves[:2], target, linear_bias=leaves[2], alpha=ALPHA, **options
    )
    gradients = torch.autograd.grad(loss, leaves)
    _, its_gradients = definition(layer, target, torch.ones(()), **options)
    for found, expected in zip(gradients, its_gradients, strict=True):
        assert_near(found, expected, TOLERANCE[torch.float16])
