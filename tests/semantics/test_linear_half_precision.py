"""linear_cross_entropy in half precision: nothing overflows or vanishes on the way.

A result that its type can hold is right, to the rounding of that type; whatever the number of rows,
how many count, and how heavy they are.
"""

import linear
import pytest
import torch
import torch.nn.functional as F
from linear import TOLERANCE, expected, ours, solve
from torch import nn

import powergrad_ext as pg

HALF = pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)


def make_layer(rows, features, classes, dtype, device, mean=0.0):
    return linear.make_layer(rows, features, classes, dtype, device, mean, scale=0.1)


def make_target(rows, classes, device):
    random = torch.Generator().manual_seed(1)
    return torch.randint(0, classes, (rows,), generator=random).to(device)


def check(layer, target, dtype, *, chunk_rows=None, **options):
    """For the grad_output that makes the largest element 16384.

    Where it has a number for each row, the logits' gradients are in half precision with it: 64.
    """
    exponent = 6 if options.get("reduction") == "none" else 14
    right = expected(target, layer, torch.ones_like, **options)[1]
    for i, each in enumerate(right):
        factor = 2.0 ** (exponent - each.abs().max().log2().floor().item())
        function = ours(target, chunk_rows=chunk_rows, **options)
        found = solve(function, layer, lambda loss, by=factor: torch.full_like(loss, by))[1][i]
        assert found.dtype == dtype
        error = (found.double() / factor - each).abs().max() / each.abs().max()
        assert error <= TOLERANCE[dtype], (i, error.item())


@pytest.mark.parametrize("chunk_rows", [None, 100])
@HALF
def test_many_rows_of_large_features(dtype, chunk_rows, device):
    """All of one class: what they add up to is beyond float16 long before it is divided."""
    layer = make_layer(4096, 6, 5, dtype, device, mean=200.0)
    layer[1] *= 0.01
    check(layer, torch.zeros(4096, dtype=torch.int64, device=device), dtype, chunk_rows=chunk_rows)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@HALF
def test_one_row_that_counts(dtype, reduction, device):
    layer = make_layer(16384, 6, 5, dtype, device, mean=60.0)
    layer[1] *= 0.01
    target = torch.full((16384,), -100, device=device)
    target[9000] = 2
    check(layer, target, dtype, reduction=reduction)


@pytest.mark.parametrize("kind", ["indices", "smoothed", "probabilities"])
@pytest.mark.parametrize("unit", [1e-20, 1.0, 1e20])
@HALF
def test_weights_far_from_one(dtype, unit, kind, device):
    """A mean does not depend on their unit; one class is a thousand times as heavy."""
    rows, classes = 2000, 7
    layer = make_layer(rows, 6, classes, dtype, device)
    target = make_target(rows, classes, device)
    weight = torch.linspace(0.5, 1.5, classes, device=device)
    weight[3] = 1000.0
    options = {"weight": unit * weight}
    if kind == "probabilities":
        target = F.one_hot(target, classes).float()
        options["weight"] = weight
    elif kind == "smoothed":
        options["label_smoothing"] = 0.1
    check(layer, target, dtype, **options)


@HALF
def test_smoothing_that_outweighs_the_targets(dtype, device):
    """Each row has a share of classes a million times as heavy as that of the targets."""
    layer = make_layer(400, 6, 7, dtype, device)
    target = torch.full((400,), 2, device=device)
    weight = torch.linspace(0.5, 1.5, 7, device=device)
    weight[2] = 1e-6
    check(layer, target, dtype, weight=weight, label_smoothing=0.1)


@pytest.mark.parametrize("largest", [1.0, 3e4, 1e30])
@HALF
def test_losses_of_weights_far_from_one(dtype, largest, device):
    layer = make_layer(150, 6, 37, dtype, device)
    target = make_target(150, 37, device)
    weight = torch.linspace(0.1, 1.0, 37, device=device)
    loss = pg.linear_cross_entropy(*layer[:2], target, weight=largest * weight)
    logits = F.linear(*layer[:2])
    torch.testing.assert_close(loss, pg.cross_entropy(logits, target, weight), rtol=1e-5, atol=0)


@HALF
def test_like_gradients_of_many_chunks(dtype, device):
    """Sums in half precision would stop growing: they are made in float32."""
    rows = 512
    layer = [torch.ones(rows, 24), torch.zeros(37, 24), torch.zeros(37)]
    layer = [tensor.to(device, dtype) for tensor in layer]
    target = torch.zeros(rows, dtype=torch.int64, device=device)

    _, found = solve(ours(target, reduction="sum", chunk_rows=1), layer, torch.ones_like)
    # Of uniform logits, whatever alpha is.
    right = rows / 37 - rows * F.one_hot(torch.tensor(0), 37).double().to(device)
    for each in (found[2], *found[1].T):
        torch.testing.assert_close(each.double(), right, rtol=2**-7, atol=0)


@HALF
def test_light_rows_beside_heavy_ones(dtype, device):
    """Of a class that no row has, however heavy, the rows do not suffer."""
    classes = 300
    layer = make_layer(2000, 6, classes, dtype, device)
    weight = torch.ones(classes, device=device)
    weight[7] = 1e8
    target = make_target(2000, classes, device)
    target[target == 7] = 8
    check(layer, target, dtype, weight=weight)


@HALF
@pytest.mark.parametrize("rows", [1, 40, 70000])
def test_means_of_any_number_of_rows(dtype, rows, device):
    """Divided by their number, gradients of float16 would vanish before a loss scale lifts them."""
    check(make_layer(rows, 3, 4, dtype, device), make_target(rows, 4, device), dtype)


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_many_classes_and_features(dtype, reduction, device):
    """More than a block of classes in a product, and than a grain of its sum."""
    rows, features, classes = 300, 96, 1100
    layer = make_layer(rows, features, classes, dtype, device)
    target = make_target(rows, classes, device)
    target[::5] = -100
    check(layer, target, dtype, chunk_rows=128, reduction=reduction)


def train(loss_of, rows, dtype, device, steps=25):
    """As by GradScaler's tutorial: how many steps it took, its scale, and the layer."""
    torch.manual_seed(0)
    x = 60 + torch.randn(rows, 8)
    target = torch.randint(0, 50, (rows,))
    target[::9] = -100
    layer = nn.Linear(8, 50)
    x, target, layer = x.to(device), target.to(device), layer.to(device)
    optimizer = torch.optim.SGD(layer.parameters(), lr=1e-5)
    scaler = torch.amp.GradScaler(device.type)
    taken = 0
    for _ in range(steps):
        optimizer.zero_grad()
        with torch.autocast(device.type, dtype=dtype):
            loss = loss_of(x, layer, target)
        scaler.scale(loss).backward()
        before = scaler.get_scale()
        scaler.step(optimizer)
        scaler.update()
        taken += scaler.get_scale() >= before
    return taken, scaler.get_scale(), layer.weight.detach()


@pytest.mark.parametrize("weighted", [False, True], ids=["", "weighted"])
@HALF
def test_training_with_a_loss_scale(dtype, weighted, device):
    """The scaler takes the steps that it takes where the loss has logits of its own."""
    weight = torch.linspace(0.1, 40.0, 50, device=device) if weighted else None

    def fused(x, layer, target):
        return pg.linear_cross_entropy(
            x, layer.weight, target, linear_bias=layer.bias, weight=weight
        )

    def unfused(x, layer, target):
        return pg.cross_entropy(layer(x), target, weight)

    taken, scale, result = train(fused, 8192, dtype, device)
    right_taken, right_scale, right_result = train(unfused, 8192, dtype, device)
    assert taken >= right_taken > 0
    assert scale >= right_scale
    assert (result - right_result).abs().max() <= 0.02 * right_result.abs().max()


@HALF
def test_a_sum_of_targets_that_weigh_nothing(dtype, device):
    """Of a mean see test_linear_autograd.py."""
    layer, target = make_layer(4, 5, 3, dtype, device), torch.zeros(4, dtype=torch.int64)
    weight = torch.tensor([0.0, 1.0, 2.0], device=device)
    _, found = solve(ours(target.to(device), weight=weight, reduction="sum"), layer)
    assert not any(gradient.any() for gradient in found)


@HALF
def test_chunks_whose_sums_cancel(dtype, device):
    """One row is left of both: rounding either chunk's sum, a hundred times it, would hide it."""
    input, weight, bias = make_layer(128, 6, 5, dtype, device)
    layer = [torch.cat([input, input]), weight, bias]
    target = torch.zeros(256, dtype=torch.int64, device=device)
    grad_output = torch.ones(256, device=device)
    grad_output[128:] = -1.0
    grad_output[200] = -2.0

    found = solve(ours(target, reduction="none", chunk_rows=128), layer, lambda _: grad_output)[1][
        2
    ]
    right = expected(target, layer, lambda _: grad_output.double(), reduction="none")[1][2]
    assert (found - right).abs().max() <= TOLERANCE[dtype] * right.abs().max()


@pytest.mark.parametrize("scale", [2.0**-10, 1.0, 2.0**10])
def test_row_weights_of_any_size(scale, device):
    """The rows' gradients are given a size that the products can hold."""
    layer, target = make_layer(21, 6, 17, torch.float16, device), make_target(21, 17, device)
    row_weight = scale * (torch.arange(21, device=device) % 4)
    check(layer, target, torch.float16, row_weight=row_weight, reduction="sum", z_loss=0.5)


@pytest.mark.parametrize("options", [{}, {"z_loss": 0.5}, {"label_smoothing": 0.1}], ids=str)
def test_an_ignored_row_of_a_large_weight(options, device):
    """The weights of rows that do not count give no size to the others' gradients."""
    layer, target = make_layer(21, 6, 17, torch.float16, device), make_target(21, 17, device)
    target[0] = -100
    row_weight = torch.ones(21, device=device)
    row_weight[0] = 1e8
    check(layer, target, torch.float16, row_weight=row_weight, reduction="sum", **options)
