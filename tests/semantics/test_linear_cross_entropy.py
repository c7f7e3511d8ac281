"""linear_cross_entropy is cross_entropy of linear: by the definition in float64."""

import itertools
import math

import linear
import pytest
import torch
import torch.nn.functional as F
from linear import (
    ALPHA,
    OPTIONS,
    TOLERANCE,
    assert_close,
    expected,
    make_grad_output,
    ours,
    prepared,
    solve,
)
from oracle import assert_loss

import powergrad_ext as pg

N, H, C = 150, 24, 37
options_of_the_loss = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())


def make_layer(dtype=torch.float64, device="cpu", rows=N):
    return linear.make_layer(rows, H, C, dtype, device)


def make_target(kind, device="cpu", rows=N, ignore_index=-100):
    random = torch.Generator().manual_seed(1)
    if kind == "probabilities":
        return torch.randn(rows, C, generator=random, dtype=torch.float64).softmax(1).to(device)
    target = torch.randint(0, C, (rows,), generator=random, dtype=kind)
    target[::7] = ignore_index
    return target.to(device)


@pytest.mark.parametrize("chunk_rows", [None, 1, 40, N + 1])
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@options_of_the_loss
@pytest.mark.parametrize("kind", [torch.int64, torch.int32, "probabilities"], ids=str)
def test_float64(kind, options, reduction, chunk_rows, device):
    layer, target = make_layer(device=device), make_target(kind, device)
    options = prepared(options, target, C, reduction=reduction)
    loss, gradients = solve(ours(target, chunk_rows=chunk_rows, **options), layer)
    right_loss, right_gradients = expected(target, layer, **options)
    torch.testing.assert_close(loss, right_loss, rtol=1e-13, atol=1e-13)
    assert_close(gradients, right_gradients, torch.float64)


@options_of_the_loss
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_other_types(dtype, reduction, options, device):
    layer, target = make_layer(dtype, device, rows=700), make_target(torch.int64, device, rows=700)
    options = prepared(options, target, C, reduction=reduction)
    loss, gradients = solve(ours(target, **options), layer)
    right_loss, right_gradients = expected(target, layer, **options)
    assert loss.dtype == torch.float32
    # A loss moves by what the target's logit and those beside it are rounded by.
    rounding = torch.finfo(dtype).eps * F.linear(*layer).abs().max().double()
    terms = len(target) if reduction == "sum" else 1
    torch.testing.assert_close(loss.double(), right_loss, rtol=1e-5, atol=terms * rounding.item())
    assert_close(gradients, right_gradients, dtype)


def test_loss_of_the_same_logits(device):
    """Chunks change nothing that can be seen in the loss."""
    layer, target = make_layer(torch.float32, device), make_target(torch.int64, device)
    of_logits = pg.cross_entropy(F.linear(*layer), target)
    assert_loss(ours(target, chunk_rows=7)(*layer), of_logits.double())


@pytest.mark.parametrize("reduction", ["none", "mean"])
@pytest.mark.parametrize("wanted", list(itertools.product([False, True], repeat=3))[1:], ids=str)
def test_only_gradients_that_are_asked_for(wanted, reduction, device):
    layer, target = make_layer(device=device), make_target(torch.int64, device)
    _, gradients = solve(ours(target, reduction=reduction), layer, wanted=wanted)
    _, right = expected(target, layer, reduction=reduction)
    assert [gradient is not None for gradient in gradients] == list(wanted)
    for gradient, each in zip(gradients, right, strict=True):
        if gradient is not None:
            torch.testing.assert_close(gradient, each, rtol=1e-11, atol=1e-13)


def test_one_of_the_gradients(device):
    """autograd.grad for one tensor, then for the others, through the same graph."""
    layer = [tensor.requires_grad_() for tensor in make_layer(device=device)]
    target = make_target(torch.int64, device)
    loss = ours(target)(*layer)
    found = [torch.autograd.grad(loss, tensor, retain_graph=True)[0] for tensor in layer]
    together = torch.autograd.grad(ours(target)(*layer), layer)
    torch.testing.assert_close(found, list(together), rtol=0, atol=0)


@options_of_the_loss
@pytest.mark.parametrize("kind", [torch.int64, "probabilities"], ids=str)
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_a_single_row(reduction, kind, options, device):
    layer = make_layer(device=device)
    layer[0] = layer[0][3]
    target = make_target(kind, device)[3]
    options = prepared(options, target, C, reduction=reduction)
    if "row_weight" in options:
        options["row_weight"] = torch.tensor(0.75, device=device)
    loss, gradients = solve(ours(target, **options), layer)
    right_loss, right_gradients = expected(target, layer, **options)
    assert loss.shape == right_loss.shape
    torch.testing.assert_close(loss, right_loss, rtol=1e-12, atol=1e-13)
    assert_close(gradients, right_gradients, torch.float64)


@pytest.mark.parametrize("targets", ["indices", "probabilities"])
def test_losses_of_many_dimensions(targets, device):
    """torch's weights (C, d1, ..., dK, H)."""
    random = torch.Generator(device).manual_seed(0)

    def make(*shape):
        return torch.randn(shape, dtype=torch.float64, device=device, generator=random)

    layer = [make(6, H), make(C, 2, 3, H), make(C, 2, 3)]
    target = make(6, C, 2, 3).softmax(1)
    options = {"row_weight": make(6, 2, 3).abs(), "z_loss": 0.05, "alpha": ALPHA}
    if targets == "indices":
        target = target.argmax(1)

    def composed(input, weight, bias, **more):
        logits = torch.einsum("nh,c...h->nc...", input, weight) + bias
        return pg.cross_entropy(logits, target, **options, **more)

    loss, gradients = solve(ours(target, **options), layer)
    right_loss, right = solve(composed, layer)
    torch.testing.assert_close(loss, right_loss, rtol=1e-12, atol=1e-13)
    assert_close(gradients, right, torch.float64)
    if targets == "indices":
        metrics = ours(target, **options, return_metrics=True)(*layer)[1]
        torch.testing.assert_close(metrics, composed(*layer, return_metrics=True)[1])


def torch_samples(dtype):
    """What PyTorch tests its function with: as arguments of ours."""
    pytest.importorskip("expecttest")
    from torch.testing._internal import common_methods_invocations as invocations

    for kind in ("", "_chunked", "_chunked_none"):
        make = getattr(invocations, f"sample_inputs_linear_cross_entropy{kind}")
        for sample in make(None, "cpu", dtype, False):
            options = dict(sample.kwargs)
            options.pop("options", None)
            yield sample.input, *sample.args, options


@pytest.mark.skipif(not hasattr(F, "linear_cross_entropy"), reason="torch has it from 2.13")
@pytest.mark.parametrize("chunk_rows", [None, 2, 3])
def test_samples_of_torch(chunk_rows):
    count = 0
    for input, linear_weight, target, options in torch_samples(torch.float64):
        count += 1
        bias = options.pop("linear_bias", None)
        layer = [input, linear_weight, bias if bias is not None else input.new_zeros(())]

        def torchs(input, weight, bias, target=target, options=options):
            bias = bias if bias.dim() else None
            return F.linear_cross_entropy(input, weight, target, linear_bias=bias, **options)

        def mine(input, weight, bias, target=target, options=options):
            return pg.linear_cross_entropy(
                input,
                weight,
                target,
                linear_bias=bias if bias.dim() else None,
                alpha=1.0,
                chunk_rows=chunk_rows,
                **options,
            )

        result, right = solve(mine, layer), solve(torchs, layer)
        torch.testing.assert_close(result, right, rtol=1e-10, atol=1e-12, equal_nan=True)
    assert count > 50


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_ignored_rows(reduction, device):
    """Their index is never followed, their gradient is 0, also where no row counts or none is."""
    layer = make_layer(torch.float32, device)
    for rows, ignore_index in itertools.product((0, N), (-100, 3, 2**40)):
        target = torch.full((rows,), ignore_index, device=device)
        some = [layer[0][:rows], *layer[1:]]
        options = {"reduction": reduction, "ignore_index": ignore_index}
        result = solve(ours(target, **options), some)
        right = solve(lambda *t, o=options, y=target: F.cross_entropy(F.linear(*t), y, **o), some)
        torch.testing.assert_close(result, right, equal_nan=True)


def test_strides(device):
    layer, target = make_layer(torch.float32, device), make_target(torch.int64, device)
    _, right = solve(ours(target), layer)
    strided = [layer[0].T.contiguous().T, layer[1][:, None].expand(-1, 2, -1)[:, 1], layer[2]]
    strided[2] = torch.stack([layer[2]] * 2, 1)[:, 0]
    assert not strided[0].is_contiguous()
    assert not strided[2].is_contiguous()
    tensors = [tensor.requires_grad_() for tensor in strided]
    found = torch.autograd.grad(ours(target)(*tensors), tensors, torch.tensor(-1.5, device=device))
    torch.testing.assert_close(list(found), right)


def test_logits_with_infinities(device):
    """A class that is masked by its bias."""
    layer, target = make_layer(torch.float32, device), make_target(torch.int64, device)
    layer[2][5] = -math.inf
    target[target == 5] = 6
    loss, gradients = solve(ours(target), layer)
    right_loss, right = expected(target, layer)
    torch.testing.assert_close(loss.double(), right_loss, rtol=1e-5, atol=0)
    assert_close(gradients, right, torch.float32)


def test_alpha_tensor(device):
    layer, target = make_layer(device=device), make_target(torch.int64, device)
    for where in {torch.device("cpu"), device}:
        alpha = torch.tensor(ALPHA, device=where, dtype=torch.float64)
        found = solve(ours(target, alpha=alpha), layer)
        torch.testing.assert_close(found, solve(ours(target), layer))


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_a_second_backward(reduction, device):
    """The same bits for the same grad_output, and right ones for another."""
    layer = [tensor.requires_grad_() for tensor in make_layer(torch.float32, device)]
    loss = ours(make_target(torch.int64, device), reduction=reduction)(*layer)
    grad_output = make_grad_output(loss)

    def backward(grad_output):
        return torch.autograd.grad(loss, layer, grad_output, retain_graph=True)

    first = backward(grad_output)
    kept = [gradient.clone() for gradient in first]
    third = backward(4 * grad_output)
    torch.testing.assert_close(backward(grad_output), first, rtol=0, atol=0)
    torch.testing.assert_close(list(first), kept, rtol=0, atol=0)
    torch.testing.assert_close(third, tuple(4 * gradient for gradient in first))


def test_arguments_changed_after_forward(device):
    """Forward has computed the gradients: an optimizer may step. A second backward says so."""
    layer = [tensor.requires_grad_() for tensor in make_layer(device=device)]
    target = make_target(torch.int64, device)
    right = torch.autograd.grad(ours(target)(*layer), layer)
    loss = ours(target)(*layer)
    with torch.no_grad():
        layer[1].zero_()
    found = torch.autograd.grad(loss, layer, retain_graph=True)
    torch.testing.assert_close(found, right)
    with pytest.raises(RuntimeError, match="changed in place since"):
        torch.autograd.grad(loss, layer)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(dtype, device):
    """The layer's arguments as F.linear has them; gradients come back in their own type."""
    layer, target = make_layer(torch.float32, device), make_target(torch.int64, device)
    options = prepared(OPTIONS["all"], target, C, alpha=ALPHA)

    def of_logits(*layer, **more):
        return pg.cross_entropy(F.linear(*layer), target, **options, **more)

    with torch.autocast(device.type, dtype=dtype):
        loss, gradients = solve(ours(target, **options), layer)
        right_loss, right = solve(of_logits, layer)
        metrics = ours(target, **options, return_metrics=True)(*layer)[1]
        right_metrics = of_logits(*layer, return_metrics=True)[1]
    assert loss.dtype == torch.float32
    assert all(gradient.dtype == torch.float32 for gradient in gradients)
    torch.testing.assert_close((loss, *metrics), (right_loss, *right_metrics))
    for gradient, each in zip(gradients, right, strict=True):
        assert (gradient - each).abs().max() <= TOLERANCE[dtype] * each.abs().max()


@options_of_the_loss
def test_gradient_of_probabilities(options, device):
    """A target that learns is not seen by chunks."""
    layer, target = make_layer(device=device), make_target("probabilities", device).requires_grad_()
    (found,) = torch.autograd.grad(ours(target)(*layer), target)
    (right,) = torch.autograd.grad(F.cross_entropy(F.linear(*layer), target), target)
    torch.testing.assert_close(found, right)
    options = prepared(options, target, C)
    _, gradients = solve(ours(target, **options), layer)
    assert_close(gradients, expected(target, layer, **options)[1], torch.float64)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("factor", [1.0, math.inf])
def test_rows_of_weight_zero(factor, bad, device):
    """Get a gradient of 0, whatever they hold, and whatever the loss is multiplied by."""
    layer, target = make_layer(torch.float32, device), make_target(torch.int64, device)
    options = prepared(OPTIONS["row weights"], target, C, z_loss=0.1)
    skipped = options["row_weight"] == 0
    layer[0][skipped] = bad
    function = ours(torch.where(skipped, 10**6, target), **options)
    loss, gradients = solve(function, layer, lambda loss: factor * torch.ones_like(loss))
    assert loss.isfinite()
    assert not gradients[0][skipped].any()
    metrics = ours(target, **options, return_metrics=True)(*layer)[1]
    assert not any(metric[skipped].any() for metric in metrics)


def test_nothing_is_kept_without_a_gradient(device):
    layer, target = make_layer(device=device), make_target(torch.int64, device)
    with torch.no_grad():
        loss = ours(target)(*[tensor.requires_grad_() for tensor in layer])
    assert not loss.requires_grad
    assert not ours(target)(*[tensor.detach() for tensor in layer]).requires_grad


LAYER = (torch.zeros(4, 3), torch.zeros(5, 3))
TARGET = torch.zeros(4, dtype=torch.int64)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "words"),
    [
        ((torch.zeros(2, 4, 3), LAYER[1], TARGET), {}, RuntimeError, r"dimensionality 1 or 2"),
        ((LAYER[0], torch.zeros(3), TARGET), {}, RuntimeError, r"linear_weight.*shape \[3\]"),
        (
            (LAYER[0], torch.zeros(5, 7), TARGET),
            {},
            RuntimeError,
            r"in_features\), got 3 and 7.*\[4, 3\] and \[5, 7\]",
        ),
        (
            (LAYER[0], torch.zeros(5, 2, 7), TARGET),
            {},
            RuntimeError,
            r"in_features\), got 3 and 7.*\(4, 3\) and \(5, 2, 7\)",
        ),
        ((torch.zeros(3), torch.zeros(5, 2, 3), TARGET), {}, RuntimeError, "batched input"),
        ((*LAYER, TARGET), {"linear_bias": torch.zeros(6)}, RuntimeError, r"\(5,\), got \[6\]"),
        ((LAYER[0], LAYER[1].double(), TARGET), {}, RuntimeError, "linear_weight.*type.*Double"),
        ((*LAYER, TARGET[:3]), {}, ValueError, r"batch_size \(4\) to match target.*\(3\)"),
        ((*LAYER, TARGET + 5), {}, IndexError, "Target 5 is out of bounds.*C = 5"),
        ((*LAYER, TARGET), {"weight": torch.ones(4)}, RuntimeError, "all 5 classes.*4"),
        ((*LAYER, TARGET), {"label_smoothing": 2.0}, RuntimeError, "label_smoothing.*2"),
        ((*LAYER, TARGET), {"reduction": "avg"}, ValueError, "avg"),
        ((*LAYER, TARGET), {"alpha": 0.0}, ValueError, "alpha.*got 0"),
        ((*LAYER, TARGET), {"chunk_rows": 0}, ValueError, "chunk_rows.*greater than 0, got 0"),
        ((*LAYER, TARGET), {"chunk_rows": 1.5}, TypeError, "chunk_rows.*int or None"),
        ((*LAYER, [0] * 4), {}, TypeError, "target.*Tensor, not list"),
        ((LAYER[0].long(), LAYER[1], TARGET), {}, TypeError, "input.*float32.*Long"),
        (
            (LAYER[0], torch.nested.nested_tensor([torch.zeros(5, 3)]), TARGET),
            {},
            RuntimeError,
            "linear_weight.*nested",
        ),
    ],
)
def test_errors(arguments, options, error, words):
    with pytest.raises(error, match=words):
        pg.linear_cross_entropy(*arguments, **options)


def test_a_target_out_of_bounds_is_found_before_anything_is_computed():
    """The last row's, in chunks of one: in the first chunks' time nothing has been written."""
    layer = make_layer()
    target = make_target(torch.int64)
    target[-1] = C
    with pytest.raises(IndexError, match=f"Target {C} is out of bounds"):
        ours(target, chunk_rows=1)(*layer)
