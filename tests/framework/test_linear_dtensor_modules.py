"""The module of the last layer and its loss, sharded by plans of torch and by FSDP2."""

import itertools

import pytest
import torch
import torch.distributed as dist
from ranks import on_ranks
from sharded_layer import CLASSES, ROWS, WIDTH, problem
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Replicate, Shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    PrepareModuleInput,
    parallelize_module,
)

import powergrad_ext as pg

WHOLE_ROWS = PrepareModuleInput(
    input_layouts=(Replicate(), None), desired_input_layouts=(Replicate(), None)
)
PLANS = {
    "the layer's own": {"linear": ColwiseParallel()},
    "its output as a DTensor": {"linear": ColwiseParallel(use_local_output=False)},
    "its output whole": {"linear": ColwiseParallel(output_layouts=Replicate())},
    "the module's": {"": WHOLE_ROWS, "linear": ColwiseParallel()},
}


def parallel_plans():
    """As a model ends in it, its layer sharded by torch, whose plan says what a plain input is."""
    mesh = init_device_mesh("cpu", (2,))
    torch.manual_seed(0)
    x, target = torch.randn(ROWS, WIDTH), problem()[1]
    grad_output = torch.linspace(-1.0, 2.0, ROWS)
    for plan, reduction in itertools.product(PLANS.values(), ("mean", "none")):
        model = pg.PowerGradLinearCrossEntropyLoss(
            WIDTH, CLASSES, bias=True, alpha=0.4, reduction=reduction
        )
        g = grad_output if reduction == "none" else torch.tensor(1.7)
        given = x.clone().requires_grad_()
        right = model(given, target)
        gradients = torch.autograd.grad(right, [given, *model.parameters()], g)
        parallelize_module(model, mesh, plan)
        given = x.clone().requires_grad_()
        loss = model(given, target).full_tensor()
        loss.backward(g)
        torch.testing.assert_close(loss, right)
        found = [given.grad, *(parameter.grad.full_tensor() for parameter in model.parameters())]
        torch.testing.assert_close(found, list(gradients))
    # Where the plan says that a plain input holds this rank's rows, these are gathered.
    plan = {"linear": ColwiseParallel(input_layouts=Shard(0))}
    model = pg.PowerGradLinearCrossEntropyLoss(WIDTH, CLASSES, alpha=0.4)
    right = model(x[:12], target[:12])
    parallelize_module(model, mesh, plan)
    found = model(x[:12].chunk(2)[mesh.get_rank()], target[:12])
    torch.testing.assert_close(found.full_tensor(), right)
    rows = pg.PowerGradLinearCrossEntropyLoss(WIDTH, CLASSES, reduction="none")
    parallelize_module(rows, mesh, {"linear": ColwiseParallel(output_layouts=Shard(0))})
    with pytest.raises(RuntimeError, match=r"output layout of \.linear must be"):
        rows(x, target)


def fsdp_and_tensor_parallel():
    """The last layer on both dimensions of a mesh: a group of FSDP2's of its own, and not."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "tensor"))
    data, tensor = mesh["data"], mesh["tensor"]
    torch.manual_seed(0)
    x, target = torch.randn(ROWS - 1, WIDTH), problem()[1][1:]
    for own_group in (False, True):
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU())
        head = pg.PowerGradLinearCrossEntropyLoss(WIDTH, CLASSES, bias=True, alpha=0.4)
        model.head = head

        def forward(x, target, model=model, head=head):
            return head(model[1](model[0](x)), target)

        model.forward = forward
        right = forward(x, target)
        gradients = torch.autograd.grad(right, list(model.parameters()))
        parallelize_module(model, tensor, {"head.linear": ColwiseParallel()})
        if own_group:
            fully_shard(head.linear, mesh=data)
        fully_shard(model, mesh=data)
        rank = data.get_local_rank()
        loss = model(x.chunk(2)[rank], target.chunk(2)[rank]).full_tensor()
        loss.backward()
        mean = loss.detach().clone()
        dist.all_reduce(mean)
        torch.testing.assert_close(mean / mesh.size(), right.detach())
        found = [parameter.grad.full_tensor() for parameter in model.parameters()]
        torch.testing.assert_close(found, list(gradients))


@pytest.mark.parametrize(("count", "check"), [(2, parallel_plans), (4, fsdp_and_tensor_parallel)])
def test_sharded(count, check):
    on_ranks(count, check)


def test_a_layer_that_is_not_linear():
    """What computes something else is not fused in silence: adapters, wrappers."""

    class Adapted(nn.Linear):
        def forward(self, input):
            return super().forward(input) + 1

    model = pg.PowerGradLinearCrossEntropyLoss(WIDTH, CLASSES)
    model.linear = Adapted(WIDTH, CLASSES)
    with pytest.raises(TypeError, match=r"\.linear must compute what nn\.Linear does.* Adapted"):
        model(torch.randn(3, WIDTH), torch.tensor([0, 1, 2]))
