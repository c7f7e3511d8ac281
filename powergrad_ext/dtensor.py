"""The public functions of DTensors, by their local tensors.

Rows and classes that are sharded stay where they are; any other placement, such as pending sums, is
undone first. Sharded classes take an exchange (vocab_parallel.py), a mean of sharded rows the sum
of what it divides by; nothing else is communicated.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from powergrad_ext import vocab_parallel
from powergrad_ext.metrics import RowMetrics, metrics_of
from powergrad_ext.options import LastLayerOptions, Options

ops = torch.ops.powergrad


def is_dtensor(tensor: object) -> bool:
    """Whether it is one, without importing what makes them."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def cross_entropy(input: Any, target: Tensor, options: Options, return_metrics: bool) -> Any:
    """As :func:`powergrad_ext.cross_entropy`, of logits that are a DTensor."""
    class_dim = min(input.ndim - 1, 1)
    input = _with_placements(input, _placements_of_logits(input, class_dim))
    of_rows = _placements_of_rows(input, class_dim)
    if is_dtensor(target):
        of_target = list(input.placements) if target.ndim == input.ndim else of_rows
        _require_mesh("cross_entropy", "target", target, "input", input)
        target = _with_placements(target, of_target).to_local()  # else it is local already
    rows = input.shape[:class_dim] + input.shape[class_dim + 1 :]
    options = _with_local_rows("cross_entropy", options, "input", input, of_rows, rows)
    options, is_mean = _without_mean(options)
    local, shard = input.to_local(), _shard_of(input, class_dim)
    if shard is None:
        loss, metrics, total_weight = ops.cross_entropy_forward(
            local, target, *options.for_operator(local), torch.is_grad_enabled(), return_metrics
        )
    else:
        loss, total_weight, metrics = vocab_parallel.cross_entropy(
            local, target, options, shard, return_metrics, is_mean
        )
    if is_mean:
        loss = _mean(loss, total_weight, options, input, of_rows)
    metrics = metrics_of(metrics, tuple(target.shape)) if return_metrics else None
    return _assembled(loss, metrics, options.reduction, input, of_rows, rows)


def log_softmax(input: Any, dim: int, alpha: Tensor) -> Tensor:
    """As :func:`powergrad_ext.log_softmax`, of a DTensor."""
    class_dim = range(max(input.ndim, 1))[dim]
    input = _with_placements(input, _placements_of_logits(input, class_dim))
    local, shard = input.to_local(), _shard_of(input, class_dim)
    if shard is None:
        output = ops.log_softmax(local, class_dim, alpha=alpha)
    else:
        output = vocab_parallel.log_softmax(local, class_dim, alpha, shard)
    return _from_local(output, input, input.placements, input.shape)


def linear_cross_entropy(
    input: Any,
    linear_weight: Any,
    target: Tensor,
    linear_bias: Tensor | None,
    options: Options,
    last_layer: LastLayerOptions,
    return_metrics: bool,
) -> Any:
    """As :func:`powergrad_ext.linear_cross_entropy`, of a layer that is a DTensor.

    Each process makes the logits of its classes, and gradients that are pending where others have
    parts of them: that of input over the classes, those of the layer over rows.
    """
    from torch.distributed.tensor import Partial, Replicate, Shard

    _require_layer(input, linear_weight, target, linear_bias)
    layer = (input, linear_weight) if linear_bias is None else (input, linear_weight, linear_bias)
    input, linear_weight, *bias = (
        _as_autocast(tensor if is_dtensor(tensor) else _replicated(tensor, linear_weight))
        for tensor in layer
    )
    # In each dimension of the mesh, of rows and layer and of their gradients.
    placements: list[tuple[Any, ...]] = []
    for rows, layer_rows in zip(
        input.placements, _placements_of_logits(linear_weight, 0), strict=True
    ):
        if layer_rows == Shard(0):
            placements.append((Replicate(), Shard(0), Partial(), Shard(0)))
        elif rows == Shard(0):
            placements.append((Shard(0), Replicate(), Shard(0), Partial()))
        else:
            placements.append((Replicate(),) * 4)
    of_rows, of_layer, of_input_gradient, of_layer_gradient = map(
        list, zip(*placements, strict=True)
    )
    linear_weight = _with_placements(linear_weight, of_layer)
    if is_dtensor(target):
        target = _with_placements(target, of_rows).to_local()

    def local(tensor: Any, placements: list[Any], of_gradient: list[Any]) -> Tensor:
        return _with_placements(tensor, placements).to_local(grad_placements=of_gradient)

    of_mesh = linear_weight.device_mesh.get_group(0).group_name
    # Alone in a group: nothing is exchanged, and create_graph=True is refused all the same.
    whole = vocab_parallel.Shard(of_mesh, (linear_weight.shape[0],), 0)
    shard = _shard_of(linear_weight, 0) or whole
    own = local(input, of_rows, of_input_gradient)
    options = _with_local_rows(
        "linear_cross_entropy", options, "linear_weight", linear_weight, of_rows, input.shape[:1]
    )
    options, is_mean = _without_mean(options)
    agreed = (*last_layer, is_mean, return_metrics, *options.constants())
    options = options.for_operator(own)
    total_weight = vocab_parallel.agree(own, target, options, shard, *agreed)
    last_layer.require_values("linear_cross_entropy")
    operator = ops.linear_cross_entropy_metrics if return_metrics else ops.linear_cross_entropy
    returned = operator(
        own,
        local(linear_weight, of_layer, of_layer_gradient),
        target,
        local(bias[0], of_layer, of_layer_gradient) if bias else None,
        **options.keywords(),
        **last_layer.keywords(),
        group=shard.group,
        ranks=len(shard.sizes),
        classes_before=shard.before,
        classes_after=shard.after,
    )
    loss = returned[0] if return_metrics else returned
    if is_mean:
        loss = _mean(loss, total_weight, options, input, of_rows)
    metrics = metrics_of(returned[1], tuple(target.shape)) if return_metrics else None
    return _assembled(loss, metrics, options.reduction, input, of_rows, input.shape[:1])


def has_hooks(layer: nn.Module) -> bool:
    """Whether FSDP2 or a parallel plan has to act before its parameters can be used."""
    fsdp = sys.modules.get("torch.distributed.fsdp")
    if fsdp is not None and isinstance(layer, fsdp.FSDPModule):
        return True
    return is_dtensor(layer.weight) and len(layer._forward_pre_hooks) > 0


def within_layer(layer: nn.Module, loss: Callable[[Tensor], Tensor], input: Tensor) -> Tensor:
    """``loss(input)`` in place of the layer's forward, so that its hooks run around it.

    Those of FSDP2 gather its parameters and reduce their gradients, those of a parallel plan such
    as ColwiseParallel say which placements a plain input has. What a plan does to logits can be
    done to the loss as well where that has a last dimension with an element for each rank.
    """
    from torch.distributed.tensor import DTensor, Replicate, Shard

    mesh: Any = None
    shape: Any = None

    def forward(input: Tensor) -> Tensor:
        nonlocal mesh, shape
        value: Any = loss(input)
        if not is_dtensor(value) or value.device_mesh.ndim > 1:
            return value
        mesh, shape = value.device_mesh, value.shape
        copies = value.full_tensor().unsqueeze(-1)
        return DTensor.from_local(copies, mesh, [Shard(value.ndim)], run_check=False)

    layer.forward = forward
    try:
        output = layer(input)
    finally:
        del layer.forward
    if mesh is None:
        return output
    copies = output.to_local() if is_dtensor(output) else output
    if copies.shape[:-1] != shape:
        raise RuntimeError(
            "PowerGradLinearCrossEntropyLoss: the output layout of .linear must be Shard(-1) or "
            f"Replicate(), since another changes the loss from shape {list(shape)} to "
            f"{list(copies.shape[:-1])}"
        )
    own = copies[..., mesh.get_local_rank() if copies.shape[-1] > 1 else 0]
    return DTensor.from_local(own, mesh, [Replicate()], run_check=False)


def _require_layer(
    input: Tensor, linear_weight: Tensor, target: Tensor, linear_bias: Tensor | None
) -> None:
    """The errors of a layer that is a DTensor, before anything is communicated."""
    if not is_dtensor(input):
        raise TypeError(
            "linear_cross_entropy(): argument 'input' must be a DTensor where 'linear_weight' is "
            "one, since a plain tensor does not say whether its rows are the same on every rank: "
            "pass DTensor.from_local(input, linear_weight.device_mesh, [Replicate()]) where they "
            "are. A weight that FSDP2 has sharded is whole in the forward of the module that "
            "fully_shard() was given"
        )
    for name, tensor in (("input", input), ("linear_bias", linear_bias), ("target", target)):
        _require_mesh("linear_cross_entropy", name, tensor, "linear_weight", linear_weight)
    if target.is_floating_point():
        raise NotImplementedError(
            "linear_cross_entropy(): where argument 'linear_weight' is a DTensor, 'target' must "
            f"hold class indices, got {target.dtype}"
        )
    if input.ndim != 2 or linear_weight.ndim != 2:
        raise NotImplementedError(
            "linear_cross_entropy(): where argument 'linear_weight' is a DTensor, it must have "
            f"shape (C, H) and 'input' (N, H), got {list(linear_weight.shape)} and "
            f"{list(input.shape)}"
        )


def _require_mesh(function: str, name: str, tensor: Any, like_name: str, like: Any) -> None:
    if is_dtensor(tensor) and tensor.device_mesh != like.device_mesh:
        raise ValueError(
            f"{function}(): argument '{name}' must have the device mesh of '{like_name}', "
            f"{like.device_mesh}, got {tensor.device_mesh}"
        )


def _placements_of_logits(input: Any, class_dim: int) -> list[Any]:
    """The input's own, as far as its local tensors can be worked on: classes sharded once."""
    from torch.distributed.tensor import Replicate, Shard

    placements: list[Any] = []
    for placement in input.placements:
        repeated = placement == Shard(class_dim) and placement in placements
        is_plain = type(placement) is Shard and not repeated  # not strided, as under FSDP2
        placements.append(placement if is_plain else Replicate())
    return placements


def _placements_of_rows(input: Any, class_dim: int) -> list[Any]:
    """Of a number for each row of such logits."""
    from torch.distributed.tensor import Replicate, Shard

    return [
        Shard(placement.dim - (placement.dim > class_dim))
        if placement.is_shard() and placement.dim != class_dim
        else Replicate()
        for placement in input.placements
    ]


def _with_placements(tensor: Any, placements: list[Any]) -> Any:
    if list(tensor.placements) == placements:
        return tensor
    return tensor.redistribute(placements=placements)


def _shard_of(input: Any, class_dim: int) -> vocab_parallel.Shard | None:
    """Which classes this process has; None for all."""
    mesh = input.device_mesh
    for mesh_dim, placement in enumerate(input.placements):
        if placement.is_shard(class_dim):
            classes, processes = input.shape[class_dim], mesh.size(mesh_dim)
            of_each = -(-classes // processes)  # as torch.chunk does, and so DTensor
            sizes = tuple(
                max(0, min(of_each, classes - rank * of_each)) for rank in range(processes)
            )
            group = mesh.get_group(mesh_dim).group_name
            return vocab_parallel.Shard(group, sizes, mesh.get_local_rank(mesh_dim))
    return None


def _as_autocast(tensor: Any) -> Any:
    """As autocast gives it to F.linear."""
    kind = tensor.device.type
    if not torch.is_autocast_enabled(kind) or tensor.dtype == torch.float64:
        return tensor
    return tensor.to(torch.get_autocast_dtype(kind))


def _pending_over_rows(of_rows: list[Any]) -> list[Any]:
    """The placements of a sum over rows."""
    from torch.distributed.tensor import Partial, Replicate

    return [Partial() if placement.is_shard() else Replicate() for placement in of_rows]


def _without_mean(options: Options) -> tuple[Options, bool]:
    """For local tensors, and whether their losses' sum has yet to become a mean.

    The ranks' rows weigh differently in a mean, which no placement can say: it is a sum, which is
    pending, divided by the sum of weights.
    """
    is_mean = options.reduction == "mean"
    weight: Any = options.weight
    if is_dtensor(weight):
        options = options._replace(weight=weight.full_tensor())
    return options._replace(reduction="sum") if is_mean else options, is_mean


def _mean(
    loss: Tensor, total_weight: Tensor, options: Options, like: Any, of_rows: list[Any]
) -> Tensor:
    """This rank's share of it."""
    pending = _pending_over_rows(of_rows)
    total_weight = _from_local(total_weight, like, pending, torch.Size()).full_tensor()
    return (loss / options.divisor(total_weight)).to(loss.dtype)


def _assembled(
    loss: Tensor,
    metrics: RowMetrics | None,
    reduction: str,
    like: Any,
    of_rows: list[Any],
    rows: torch.Size,
) -> Any:
    """As DTensors: each row's loss, or a sum that is pending where rows are sharded; metrics."""
    if reduction == "none":
        loss = _from_local(loss, like, of_rows, rows)
    else:
        loss = _from_local(loss, like, _pending_over_rows(of_rows), torch.Size())
    if metrics is None:
        return loss
    return loss, RowMetrics(*(_from_local(metric, like, of_rows, rows) for metric in metrics))


def refuse_row_weight(function: str, row_weight: object) -> None:
    """A TypeError where row_weight is a DTensor and the logits are not."""
    if row_weight is not None and is_dtensor(row_weight):
        raise TypeError(
            f"{function}(): argument 'row_weight' must be a plain tensor where the logits are, got "
            "a DTensor"
        )


def _with_local_rows(
    function: str,
    options: Options,
    like_name: str,
    like: Any,
    of_rows: list[Any],
    rows: torch.Size,
) -> Options:
    """With the weights of this rank's rows; those of a plain tensor are, as a plain target's."""
    row_weight: Any = options.row_weight
    if not is_dtensor(row_weight):
        return options
    _require_mesh(function, "row_weight", row_weight, like_name, like)
    if row_weight.shape != rows:
        raise RuntimeError(
            f"{function}(): argument 'row_weight' must have a number for each row, shape "
            f"{list(rows)}, got shape {list(row_weight.shape)}"
        )
    if row_weight.requires_grad:
        raise RuntimeError(
            f"{function}(): the derivative for 'row_weight' is not implemented; pass "
            "row_weight.detach()"
        )
    return options._replace(row_weight=_with_placements(row_weight, of_rows).to_local())


def _from_local(local: Tensor, like: Any, placements: Any, shape: torch.Size) -> Any:
    """A DTensor of a contiguous whole, whose ranks may have unequal parts."""
    from torch.distributed.tensor import DTensor

    strides = torch.empty(shape, device="meta").stride()
    return DTensor.from_local(
        local, like.device_mesh, placements, run_check=False, shape=shape, stride=strides
    )


def _replicated(tensor: Any, like: Any) -> Any:
    """A plain tensor that is the same on every rank."""
    from torch.distributed.tensor import DTensor, Replicate

    placements = [Replicate()] * like.device_mesh.ndim
    return DTensor.from_local(tensor, like.device_mesh, placements, run_check=False)
