"""Good arguments of cross-entropy, and every way to call it with them and a bad one."""

import math

import torch

import powergrad_ext as pg
from powergrad_ext.options import Options

CLASSES = 5
OPS = torch.ops.powergrad
INDEX = torch.tensor([0, 4, 2])


def logits(*shape):
    return torch.linspace(-1.0, 1.0, math.prod(shape)).reshape(shape)


def probabilities(dtype=torch.float32):
    return torch.full((3, CLASSES), 1 / CLASSES, dtype=dtype)


def arguments(device="cpu", **bad):
    good = {"input": logits(3, CLASSES), "target": INDEX, **Options().keywords()}
    return {name: beside(device, value) for name, value in (good | bad).items()}


def beside(device, value):
    """The same argument on a device, unless it is meant to be elsewhere."""
    if isinstance(value, torch.Tensor) and value.device.type == "cpu":
        return value.to(device)
    return value


def as_operator_arguments(given):
    alpha = given["alpha"]
    if not isinstance(alpha, torch.Tensor):
        alpha = torch.tensor(alpha, dtype=torch.float64)
    return given | {"alpha": alpha}


def raw_forward(**given):
    return OPS.cross_entropy_forward(**as_operator_arguments(given), needs_backward=True)


def saved_by_forward(device):
    returned = raw_forward(**arguments(device))
    return dict(zip(("statistics", "total_weight"), returned[1:], strict=True))


def raw_backward(**given):
    device = given["input"].device
    given = as_operator_arguments(given) | saved_by_forward(device)
    return OPS.cross_entropy_backward(grad_output=torch.ones((), device=device), **given)


def operator(**given):
    return OPS.cross_entropy(**as_operator_arguments(given))


def in_place_backward(**given):
    return pg.cross_entropy(**given, inplace_backward=True)


def with_metrics(**given):
    return pg.cross_entropy(**given, return_metrics=True)


def raw_shard(**given):
    return OPS.cross_entropy_shard_forward(
        **as_operator_arguments(given), classes_before=0, classes_after=0, fingerprint=7
    )


def last_layer(input, target, **options):
    return pg.linear_cross_entropy(input, torch.eye(CLASSES).to(input), target, **options)


def last_layer_of_many_dimensions(input, target, row_weight, **options):
    layer = torch.eye(CLASSES).to(input).unsqueeze(1)
    if row_weight is not None:
        row_weight = row_weight.unsqueeze(1)
    return pg.linear_cross_entropy(
        input, layer, target.unsqueeze(1), row_weight=row_weight, **options
    )


CALLS = [
    pg.cross_entropy,
    in_place_backward,
    operator,
    raw_forward,
    raw_backward,
]
