"""What torch.ops.powergrad.* do on DTensors.

Where whole rows are shared out over their first dimension, rules tell DTensor so, and nothing is
communicated but the loss and the number that a mean divides by. No rule can say what takes an
exchange (classes that are shared out) or rows of several dimensions: there the work is done on the
local tensors. What neither covers, such as pending sums, is undone first.
"""

from __future__ import annotations

import functools
import sys
from typing import Any

import torch
from torch import Tensor

from powergrad_ext import shards
from powergrad_ext._constant import assume_constant_result
from powergrad_ext.alpha import as_tensor
from powergrad_ext.linear_shards import LinearCrossEntropy

ops = torch.ops.powergrad


def is_sharded(input: Tensor) -> bool:
    """Whether it is a DTensor, without importing what makes them."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(input, module.DTensor)


def cross_entropy(
    input: Any,
    target: Tensor,
    weight: Tensor | None,
    ignore_index: int,
    reduction: str,
    label_smoothing: float,
    alpha: float | Tensor,
) -> Tensor:
    """As :func:`powergrad_ext.cross_entropy`, of logits that are a DTensor.

    The ranks' rows weigh differently in a mean, which no placement can say: so it is a sum, which
    is pending, divided by the sum of weights.
    """
    is_mean = reduction == "mean"
    options = (ignore_index, "sum" if is_mean else reduction, label_smoothing)
    class_dim = min(input.ndim - 1, 1)
    if _has_rules(input, class_dim):
        _register()
        if weight is not None:
            weight = _replicated(weight, input)
        if not is_sharded(target):  # of the rows that this process has
            is_whole = target.ndim == input.ndim
            shape = (
                input.shape if is_whole else input.shape[:class_dim] + input.shape[class_dim + 1 :]
            )
            target = _from_local(target, input, input.placements, shape)
        loss, _, total_weight = ops.cross_entropy_forward(
            input, target, weight, *options, as_tensor(alpha, input), torch.is_grad_enabled()
        )
    else:
        arguments = (input, target, weight, *options, alpha, class_dim, (is_mean,))
        loss, total_weight = _cross_entropy_of_shards(*arguments)
    if not is_mean:
        return loss
    divisor: Any = total_weight
    return (loss / divisor.full_tensor()).to(loss.dtype)


def log_softmax(input: Any, dim: int, alpha: Tensor) -> Tensor:
    """As :func:`powergrad_ext.log_softmax`, of a DTensor."""
    class_dim = range(max(input.ndim, 1))[dim]
    if _has_rules(input, class_dim):
        _register()
        return ops.log_softmax_forward(input, dim, alpha, torch.is_grad_enabled())[0]
    input = _with_placements(input, _placements_of_shards(input, class_dim))
    shard = _shard_of(input, class_dim)
    local = input.to_local()
    if shard is None:
        output = ops.log_softmax_forward(local, class_dim, alpha, torch.is_grad_enabled())[0]
    else:
        output = shards.log_softmax(local, class_dim, alpha, shard)
    return _from_local(output, input, input.placements, input.shape)


def _has_rules(input: Any, class_dim: int) -> bool:
    """Whether whole rows lie on each rank, shared out over dimension 0 if over any."""
    return all(
        placement.is_replicate() or (class_dim > 0 and placement.is_shard(0))
        for placement in input.placements
    )


def _placements_of_shards(input: Any, class_dim: int) -> list[Any]:
    """The input's own, as far as its local tensors can be worked on: classes shared out once."""
    from torch.distributed.tensor import Replicate, Shard

    placements: list[Any] = []
    for placement in input.placements:
        repeated = placement == Shard(class_dim) and placement in placements
        is_plain = type(placement) is Shard and not repeated  # not strided, as under FSDP2
        placements.append(placement if is_plain else Replicate())
    return placements


def _with_placements(tensor: Any, placements: list[Any]) -> Any:
    if list(tensor.placements) == placements:
        return tensor
    return tensor.redistribute(placements=placements)


def _shard_of(input: Any, class_dim: int) -> shards.Shard | None:
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
            return shards.Shard(group, sizes, mesh.get_local_rank(mesh_dim))
    return None


def _cross_entropy_of_shards(
    input: Any,
    target: Tensor,
    weight: Tensor | None,
    ignore_index: int,
    reduction: str,
    label_smoothing: float,
    alpha: float | Tensor,
    class_dim: int,
    agreed: tuple[Any, ...],
) -> tuple[Any, Any]:
    """The loss, and what a mean divides by, from the local tensors."""
    from torch.distributed.tensor import Replicate, Shard

    input = _with_placements(input, _placements_of_shards(input, class_dim))
    of_rows: list[Any] = []  # the placements of a number for each row
    for placement in input.placements:
        if not placement.is_shard() or placement.dim == class_dim:
            of_rows.append(Replicate())
        else:
            of_rows.append(Shard(placement.dim - (placement.dim > class_dim)))
    if is_sharded(target):
        of_target = list(input.placements) if target.ndim == input.ndim else of_rows
        target = _with_placements(target, of_target).to_local()  # else it is local already
    if weight is not None:
        weight = _replicated(weight, input).to_local()
    arguments = (input.to_local(), target, weight, ignore_index, reduction, label_smoothing)
    shard = _shard_of(input, class_dim)
    if shard is None:
        loss, _, total_weight = ops.cross_entropy_forward(
            *arguments, as_tensor(alpha, input), torch.is_grad_enabled()
        )
    else:
        loss, total_weight = shards.cross_entropy(*arguments, alpha, shard, agreed)
    rows = input.shape[:class_dim] + input.shape[class_dim + 1 :]
    return _loss_of(loss, total_weight, input, of_rows, rows if reduction == "none" else None)


def linear_cross_entropy(
    input: Any,
    linear_weight: Any,
    target: Tensor,
    linear_bias: Tensor | None,
    weight: Tensor | None,
    ignore_index: int,
    reduction: str,
    label_smoothing: float,
    alpha: float | Tensor,
    chunk_rows: int | None,
) -> Tensor:
    """As :func:`powergrad_ext.linear_cross_entropy`, of a layer that is a DTensor.

    Each process makes the logits of its classes, and gradients that are pending where others have
    parts of them: that of input over the classes, those of the layer over rows.
    """
    from torch.distributed.tensor import Partial, Replicate, Shard

    layer = (input, linear_weight) if linear_bias is None else (input, linear_weight, linear_bias)
    input, linear_weight, *bias = (
        _as_autocast(tensor if is_sharded(tensor) else _replicated(tensor, linear_weight))
        for tensor in layer
    )
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
    of_layer = _placements_of_shards(linear_weight, 0)
    of_layer = [p if p == Shard(0) else Replicate() for p in of_layer]
    of_rows = [
        Shard(0) if rows == Shard(0) and layer == Replicate() else Replicate()
        for rows, layer in zip(input.placements, of_layer, strict=True)
    ]
    of_input_gradient = [
        Partial() if layer == Shard(0) else rows
        for rows, layer in zip(of_rows, of_layer, strict=True)
    ]
    of_layer_gradient = [
        Partial() if rows == Shard(0) else layer
        for rows, layer in zip(of_rows, of_layer, strict=True)
    ]
    shard = _shard_of(_with_placements(linear_weight, of_layer), 0)

    def local(tensor: Any, placements: list[Any], of_gradient: list[Any]) -> Tensor:
        return _with_placements(tensor, placements).to_local(grad_placements=of_gradient)

    loss, total_weight = LinearCrossEntropy.apply(
        "sum" if reduction == "mean" else reduction,
        torch.is_grad_enabled(),
        local(input, of_rows, of_input_gradient),
        local(linear_weight, of_layer, of_layer_gradient),
        local(bias[0], of_layer, of_layer_gradient) if bias else None,
        _with_placements(target, of_rows).to_local() if is_sharded(target) else target,
        None if weight is None else _replicated(weight, linear_weight).to_local(),
        ignore_index,
        label_smoothing,
        as_tensor(alpha, input),
        chunk_rows,
        (reduction, None if isinstance(alpha, Tensor) else alpha, weight is not None),
        shard or shards.Shard(None, (linear_weight.shape[0],), 0),
    )
    loss, divisor = _loss_of(
        loss, total_weight, input, of_rows, input.shape[:1] if reduction == "none" else None
    )
    return (loss / divisor.full_tensor()).to(loss.dtype) if reduction == "mean" else loss


def _as_autocast(tensor: Any) -> Any:
    """As autocast gives it to F.linear."""
    kind = tensor.device.type
    if not torch.is_autocast_enabled(kind) or tensor.dtype == torch.float64:
        return tensor
    return tensor.to(torch.get_autocast_dtype(kind))


def _loss_of(
    loss: Tensor, total_weight: Tensor, like: Any, of_rows: list[Any], rows: torch.Size | None
) -> tuple[Any, Any]:
    """As DTensors: each row's, or sums that are pending where rows are shared out."""
    from torch.distributed.tensor import Partial, Replicate

    pending = [Partial() if placement.is_shard() else Replicate() for placement in of_rows]
    if rows is not None:
        whole = _from_local(loss, like, of_rows, rows)
    else:
        whole = _from_local(loss, like, pending, torch.Size())
    return whole, _from_local(total_weight, like, pending, torch.Size())


def _from_local(local: Tensor, like: Any, placements: Any, shape: torch.Size) -> Any:
    """A DTensor of a contiguous whole, whose ranks may have unequal parts."""
    from torch.distributed.tensor import DTensor

    strides = torch.empty(shape, device="meta").stride()
    return DTensor.from_local(
        local, like.device_mesh, placements, run_check=False, shape=shape, stride=strides
    )


def _replicated(tensor: Any, like: Any) -> Any:
    from torch.distributed.tensor import DTensor, Replicate

    if is_sharded(tensor):
        return _with_placements(tensor, [Replicate()] * tensor.device_mesh.ndim)
    return DTensor.from_local(tensor, like.device_mesh, run_check=False)


@assume_constant_result
def _register() -> None:
    """As a compiler takes it: it calls this while it traces, and does not look into it."""
    _register_once()


@functools.cache
def _register_once() -> None:
    """Tell DTensor which placements the raw operators take, and which they return."""
    from torch.distributed.tensor import Partial, Replicate, Shard
    from torch.distributed.tensor.experimental import register_sharding

    everywhere, rows, of_statistics = Replicate(), Shard(0), Shard(1)

    @register_sharding(ops.cross_entropy_forward.default)
    def _(input: Any, target: Any, weight: Any, ignore_index: int, reduction: str, *_: Any) -> Any:
        of_weight = None if weight is None else everywhere
        others = [of_weight, None, None, None, everywhere, None]
        shardings: list[Any] = [([everywhere] * 3, [everywhere, everywhere, *others])]
        if input.ndim > 1 and reduction != "mean":
            loss = rows if reduction == "none" else Partial()
            shardings.append(([loss, of_statistics, Partial()], [rows, rows, *others]))
        return shardings

    @register_sharding(ops.cross_entropy_backward.default)
    def _(
        grad_output: Any,
        input: Any,
        target: Any,
        weight: Any,
        ignore_index: int,
        reduction: str,
        *_: Any,
    ) -> Any:
        others = [None if weight is None else everywhere, None, None, None, everywhere]
        shardings: list[Any] = [([everywhere], [everywhere] * 3 + others + [everywhere] * 2)]
        if input.ndim > 1 and reduction != "mean":
            upstream = rows if reduction == "none" else everywhere
            shardings.append(([rows], [upstream, rows, rows, *others, of_statistics, Partial()]))
        return shardings

    @register_sharding(ops.log_softmax_forward.default)
    def _(input: Any, dim: int, *_: Any) -> Any:
        shardings: list[Any] = [([everywhere] * 2, [everywhere, None, everywhere, None])]
        if dim % max(input.ndim, 1) > 0:
            shardings.append(([rows, of_statistics], [rows, None, everywhere, None]))
        return shardings

    @register_sharding(ops.log_softmax_backward.default)
    def _(grad_output: Any, input: Any, dim: int, *_: Any) -> Any:
        shardings: list[Any] = [
            ([everywhere], [everywhere, everywhere, None, everywhere, everywhere])
        ]
        if dim % max(input.ndim, 1) > 0:
            shardings.append(([rows], [rows, rows, None, everywhere, of_statistics]))
        return shardings
