"""The number that a sharded layer's gradients are multiplied by, on a mesh of one rank."""

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

import powergrad_ext as pg


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
