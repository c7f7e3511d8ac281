"""A last layer that is a DTensor in half precision: roundings, autocast, what underflows."""

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from ranks import on_ranks
from sharded_layer import CLASSES, leaves, problem, solve
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

import powergrad_ext as pg
from powergrad_ext.reference import cross_entropy as reference


def exact_layer(dtype):
    """Many rows, whose logits are exact in half precision, and a class that is never a target.

    The first feature is 1, so the gradient of its weights is that of the bias.
    """
    random = torch.Generator().manual_seed(0)
    input = torch.randint(0, 2, (600, 4), generator=random)
    input[:, 0] = 1
    linear_weight = torch.randint(-2, 3, (CLASSES, 4), generator=random)
    linear_bias = torch.randint(-1, 2, (CLASSES,), generator=random)
    target = torch.randint(1, CLASSES, (600,), generator=random)
    target[::7] = 3
    return [tensor.to(dtype) for tensor in (input, linear_weight, linear_bias)], target


def check_half(found, tensors, target, dtype, options):
    """Each gradient of the logits is right to 2 ulp, and what is summed of them in float32."""
    input, linear_weight, linear_bias = (tensor.double() for tensor in tensors)
    logits = (input @ linear_weight.t() + linear_bias).requires_grad_()
    loss = reference(logits, target, alpha=0.4, **options)
    (gradient,) = torch.autograd.grad(loss, logits)
    torch.testing.assert_close(found[0].double(), loss.detach(), rtol=4e-6, atol=0)
    eps = torch.finfo(dtype).eps
    # float16 cannot hold the gradients of a mean to that precision.
    error = 2 * eps * gradient.abs() + (2**-24 if dtype == torch.float16 else 0)
    right = (gradient @ linear_weight, gradient.t() @ input, gradient.sum(0))
    bounds = (error @ linear_weight.abs(), error.t() @ input.abs(), error.sum(0))
    for one, other, bound in zip(found[1:], right, bounds, strict=True):
        rounding = eps / 2 * other.abs() + 1e-5 * other.abs().max()
        assert ((one.double() - other).abs() <= bound + rounding).all()
    of_weight, of_bias = (one.double() for one in found[2:])
    # In bfloat16 a CPU rounds each chunk's product, as that of a layer that is no DTensor.
    of_products = eps / 2 * gradient.abs().sum(0) if dtype == torch.bfloat16 else 0.0
    assert ((of_weight[:, 0] - of_bias).abs() <= of_products + eps * of_bias.abs()).all()


def half_precision(mesh):
    for dtype in (torch.bfloat16, torch.float16):
        tensors, target = exact_layer(dtype)
        given = leaves(tensors, mesh)
        for reduction in ("mean", "sum"):
            options = {"reduction": reduction, "ignore_index": 3}
            found = solve(given, target, torch.ones_like, chunk_rows=4, **options)
            assert all(one.dtype == dtype for one in found[1:])
            whole = [one.full_tensor() for one in found]
            check_half(whole, tensors, target, dtype, options)


def autocast(mesh):
    """The layer in bfloat16, as F.linear would have it; float64 stays as it is."""
    tensors, target = exact_layer(torch.float32)
    for reduction in ("mean", "none"):
        given = leaves(tensors, mesh)
        with torch.autocast("cpu", torch.bfloat16):
            loss, *gradients = solve(
                given, target, torch.ones_like, reduction=reduction, chunk_rows=50
            )
        assert loss.dtype == torch.float32
        found = [loss.sum().full_tensor(), *(gradient.full_tensor() for gradient in gradients)]
        assert all(gradient.dtype == torch.float32 for gradient in gradients)
        options = {"reduction": "sum" if reduction == "none" else reduction}
        check_half(found, tensors, target, torch.bfloat16, options)
    tensors, target = problem()
    alone = [tensor.clone().requires_grad_() for tensor in tensors]
    with torch.autocast("cpu", torch.bfloat16):
        found = solve(leaves(tensors, mesh), target, torch.ones_like)
    found = [each.full_tensor() for each in found]
    torch.testing.assert_close(found, solve(alone, target, torch.ones_like), rtol=1e-12, atol=1e-12)


def run():
    mesh = init_device_mesh("cpu", (2,))
    half_precision(mesh)
    autocast(mesh)


def test_two_ranks():
    on_ranks(2, run)


@pytest.fixture
def mesh(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


def gradients(mesh, input, weight, target, grad_output, **options):
    x = distribute_tensor(input, mesh, [Replicate()]).requires_grad_()
    w = distribute_tensor(weight, mesh, [Shard(0)]).requires_grad_()
    loss = pg.linear_cross_entropy(x, w, target, **options).full_tensor()
    (loss * grad_output).backward()
    return x.grad.full_tensor(), w.grad.full_tensor()


def test_a_mean_in_float16_does_not_underflow(mesh):
    """Each logit's share is below what float16 holds, until a loss scale lifts the sums."""
    torch.manual_seed(0)
    input, weight = torch.randn(4096, 8).half(), torch.randn(1000, 8).half()
    target = torch.randint(1000, (4096,))
    scale = 4096.0
    found = gradients(mesh, input, weight, target, scale, alpha=0.3)
    x, w = input.double().requires_grad_(), weight.double().requires_grad_()
    (F.cross_entropy(0.3 * F.linear(x, w), target) / 0.3 * scale).backward()
    for ours, right in zip(found, (x.grad, w.grad), strict=True):
        assert (ours.double() - right).norm() <= 2e-3 * right.norm()


@pytest.mark.parametrize("ignored", [slice(None), slice(0, 3)], ids=["all", "some"])
def test_ignored_rows_under_an_infinite_gradient(mesh, ignored):
    torch.manual_seed(0)
    target = torch.randint(7, (5,))
    target[ignored] = -100
    of_input, of_weight = gradients(
        mesh, torch.randn(5, 4), torch.randn(7, 4), target, torch.inf, reduction="sum"
    )
    assert of_input[ignored].eq(0.0).all()
    assert of_weight.eq(0.0).all() == (ignored == slice(None))
