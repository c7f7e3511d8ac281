"""A last layer, whole and as a DTensor, for the tests that compare the two."""

import torch
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

import powergrad_ext as pg

ROWS, WIDTH, CLASSES = 13, 6, 11
WHOLE_ROWS, SHARDED_CLASSES = [Replicate()], [Shard(0)]


def problem(dtype=torch.float64):
    random = torch.Generator().manual_seed(0)
    shapes = ((ROWS, WIDTH), (CLASSES, WIDTH), (CLASSES,))
    tensors = [torch.randn(shape, dtype=torch.float64, generator=random) for shape in shapes]
    target = torch.randint(CLASSES, (ROWS,), generator=random)
    target[[1, 6, 12]] = 3  # the ignored index of some options
    return [tensor.to(dtype) for tensor in tensors], target


def solve(arguments, target, grad_output, **options):
    """The loss, its gradients and its metrics, if there are any."""
    input, linear_weight, linear_bias = arguments
    returned = pg.linear_cross_entropy(
        input, linear_weight, target, linear_bias=linear_bias, alpha=0.4, **options
    )
    loss, metrics = returned if isinstance(returned, tuple) else (returned, ())
    gradients = torch.autograd.grad(
        loss, [tensor for tensor in arguments if tensor is not None], grad_output(loss)
    )
    return [loss, *gradients, *metrics]


def leaves(tensors, mesh, of_rows=WHOLE_ROWS, of_layer=SHARDED_CLASSES):
    """The rows, the layer's weight and its bias, if there is one, as DTensors."""
    return [
        None if tensor is None else distribute_tensor(tensor.detach(), mesh, of).requires_grad_()
        for tensor, of in zip(tensors, (of_rows, of_layer, of_layer), strict=True)
    ]
