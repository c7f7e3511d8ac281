"""The last layer shared out over its classes and fused with the loss, in real processes."""

import itertools
import os

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.debug import CommDebugMode
from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module

import powergrad_ext as pg

ROWS, WIDTH, CLASSES = 13, 6, 11
CHUNK_ROWS = 4
OPTIONS = {
    "plain": {},
    "all": {
        "weight": torch.linspace(0.0, 1.5, CLASSES, dtype=torch.float64),
        "label_smoothing": 0.1,
        "ignore_index": 3,
    },
}


def problem(dtype=torch.float64):
    random = torch.Generator().manual_seed(0)
    shapes = ((ROWS, WIDTH), (CLASSES, WIDTH), (CLASSES,))
    tensors = [torch.randn(shape, dtype=torch.float64, generator=random) for shape in shapes]
    target = torch.randint(CLASSES, (ROWS,), generator=random)
    return [tensor.to(dtype) for tensor in tensors], target


def solve(arguments, target, upstream, **options):
    input, linear_weight, linear_bias = arguments
    loss = pg.linear_cross_entropy(
        input, linear_weight, target, linear_bias=linear_bias, alpha=0.4, **options
    )
    gradients = torch.autograd.grad(
        loss, [tensor for tensor in arguments if tensor is not None], upstream(loss)
    )
    return [loss, *gradients]


def check(mesh, of_rows, of_layer, reduction, options, dtype=torch.float64, bias=True):
    tensors, target = problem(dtype)
    if not bias:
        tensors[2] = None
    rows = torch.linspace(-1.0, 2.0, ROWS, dtype=torch.float64)

    def upstream(loss):
        whole = rows if reduction == "none" else torch.tensor(1.7)
        whole = whole.to(loss.dtype)
        if not isinstance(loss, DTensor):
            return whole
        placements = [Replicate() if p.is_partial() else p for p in loss.placements]
        return distribute_tensor(whole, mesh, placements, src_data_rank=None)

    def leaf(tensor):
        return None if tensor is None else tensor.requires_grad_()

    wide = [leaf(None if tensor is None else tensor.double()) for tensor in tensors]
    right = solve(wide, target, upstream, reduction=reduction, **options)
    given = [
        leaf(None if tensor is None else distribute_tensor(tensor.detach(), mesh, placements))
        for tensor, placements in zip(tensors, (of_rows, of_layer, of_layer), strict=True)
    ]
    its_target = distribute_tensor(target, mesh, of_rows)
    with CommDebugMode() as communication:
        found = solve(
            given,
            its_target,
            upstream,
            reduction=reduction,
            chunk_rows=CHUNK_ROWS,
            **options,
        )
    bound = 1e-12 if dtype == torch.float64 else 3e-2
    for one, other in zip(found, right, strict=True):
        torch.testing.assert_close(one.full_tensor().double(), other, rtol=bound, atol=bound)
    return communication.get_total_counts()


def shared_out(mesh):
    combinations = itertools.product(("mean", "sum", "none"), OPTIONS.values(), (True, False))
    chunks = -(-ROWS // CHUNK_ROWS)
    for reduction, options, bias in combinations:
        seen = check(mesh, [Replicate()], [Shard(0)], reduction, options, bias=bias)
        assert seen == chunks
    check(mesh, [Replicate()], [Shard(0)], "mean", OPTIONS["all"], torch.bfloat16)
    for of_rows, of_layer in itertools.product((Replicate(), Shard(0)), (Replicate(), Shard(1))):
        check(mesh, [of_rows], [of_layer], "mean", {}, bias=False)


def two_dimensions(mesh):
    for of_rows, of_layer in (
        ([Shard(0), Replicate()], [Replicate(), Shard(0)]),
        ([Replicate(), Shard(0)], [Shard(0), Replicate()]),
        ([Shard(0), Shard(0)], [Replicate(), Shard(0)]),
        ([Replicate(), Replicate()], [Shard(0), Shard(0)]),
    ):
        for reduction in ("mean", "none"):
            check(mesh, of_rows, of_layer, reduction, OPTIONS["all"])


def module(mesh):
    """As a model ends in it, its layer shared out by torch; input is a plain tensor."""
    torch.manual_seed(0)
    x, target = torch.randn(ROWS, WIDTH), problem()[1]
    model = pg.PowerGradLinearCrossEntropyLoss(WIDTH, CLASSES, bias=True, alpha=0.4)
    right = torch.autograd.grad(model(x, target), list(model.parameters()))
    parallelize_module(model, mesh, {"linear": ColwiseParallel()})
    x.requires_grad_()
    model(x, target).full_tensor().backward()
    found = [parameter.grad.full_tensor() for parameter in model.parameters()]
    torch.testing.assert_close(found, list(right))
    other = nn.functional.linear(x.detach(), *(p.full_tensor() for p in model.parameters()))
    other.requires_grad_()
    (of_logits,) = torch.autograd.grad(pg.cross_entropy(other, target, alpha=0.4), other)
    torch.testing.assert_close(x.grad, of_logits @ model.linear.weight.full_tensor().detach())


def refusals(mesh):
    tensors, target = problem()
    layer = distribute_tensor(tensors[1], mesh, [Shard(0)])
    with pytest.raises(NotImplementedError, match=r"must have shape \(C, H\) and 'input' \(N, H\)"):
        pg.linear_cross_entropy(tensors[0][0], layer, target[0])
    with pytest.raises(IndexError, match="out of bounds"):
        pg.linear_cross_entropy(tensors[0], layer, target + CLASSES)
    with pytest.raises(NotImplementedError, match="'target' must hold class indices"):
        pg.linear_cross_entropy(tensors[0], layer, torch.rand(ROWS, CLASSES).double())
    rank = mesh.get_rank()
    # Of one rank alone: the other is told.
    error, message = ((RuntimeError, "an error of its own"), (IndexError, "out of bounds"))[rank]
    with pytest.raises(error, match=message):
        pg.linear_cross_entropy(tensors[0], layer, target + CLASSES * rank)
    for options in (
        {"reduction": ("sum", "mean")[rank]},
        {"alpha": 0.3 + rank},
        {"weight": torch.ones(CLASSES) if rank == 0 else None},
    ):
        with pytest.raises(RuntimeError, match="arguments that differ"):
            pg.linear_cross_entropy(tensors[0], layer, target, **options)


def autocast(mesh):
    """The layer in bfloat16, as F.linear would have it, in forward and backward."""
    tensors, target = problem(torch.float32)
    for reduction in ("mean", "none"):
        placements = ([Replicate()], [Shard(0)], [Shard(0)])
        given = [
            distribute_tensor(tensor, mesh, of).requires_grad_()
            for tensor, of in zip(tensors, placements, strict=True)
        ]
        alone = [tensor.bfloat16().float().requires_grad_() for tensor in tensors]
        with torch.autocast("cpu", torch.bfloat16):
            found = solve(
                given, target, torch.ones_like, reduction=reduction, chunk_rows=CHUNK_ROWS
            )
        right = solve(alone, target, torch.ones_like, reduction=reduction)
        for one, other in zip(found, right, strict=True):
            bound = 3e-2 * other.abs().max().item()
            torch.testing.assert_close(one.full_tensor().float(), other, rtol=0, atol=bound)


def run(rank, rendezvous, shape, checks):
    """In a process of its own; why it ends itself is told in test_distributed.py."""
    torch.set_num_threads(1)
    processes = torch.Size(shape).numel()
    dist.init_process_group(
        "gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=processes
    )
    mesh = init_device_mesh("cpu", shape)
    for each in checks:
        each(mesh)
    dist.barrier()
    os._exit(0)


@pytest.mark.parametrize(
    ("shape", "checks"),
    [((2,), [shared_out, module, refusals, autocast]), ((2, 2), [two_dimensions])],
    ids=["two ranks", "two by two"],
)
def test_linear(shape, checks, tmp_path):
    processes = torch.Size(shape).numel()
    torch.multiprocessing.spawn(run, (tmp_path / "rendezvous", shape, checks), processes)
