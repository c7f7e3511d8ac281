"""Losses of logits whose classes are sharded over processes (vocabulary parallel)."""

from __future__ import annotations

import operator
from contextlib import suppress
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.distributed as dist
from torch import Tensor

from powergrad_ext import dtensor
from powergrad_ext._constant import assume_constant_result
from powergrad_ext.alpha import as_alpha
from powergrad_ext.metrics import metrics_of
from powergrad_ext.options import Options, require_tensor, require_type
from powergrad_ext.vocab_parallel import Shard, SizesDifferError, cross_entropy


def vocab_parallel_cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    *,
    alpha: float | Tensor = 0.3,
    group: dist.ProcessGroup | None = None,
    row_weight: Tensor | None = None,
    z_loss: float = 0.0,
    return_metrics: bool = False,
) -> Any:
    r"""Cross-entropy with the PowerGrad Transform of logits sharded over their classes.

    In value and gradient it is :func:`powergrad_ext.cross_entropy` of the shards of all ranks, one
    beside the other in the order of ranks: every rank gets the loss, the same bits of it, and the
    gradient of its own columns. All ranks of the group have to call it, with the same arguments but
    for input. One all-gather of five numbers a row and rank, of the accumulate type (float64 for
    float64 logits, else float32); none in backward. How many classes each rank has is exchanged
    once and remembered for the group and the number that this rank has. Where layers take turns
    whose shards are as large on one rank and differ on another, each turn takes two gathers more on
    a CPU, and on a GPU and under torch.compile it is an error: give such layers groups of their own
    (torch.distributed.new_group).

    Args:
        input: this rank's columns of the logits, (N, C_r) or as cross_entropy's with C_r classes,
            which may be 0 and differ between ranks; float32, float64, bfloat16 or float16.
        target: class indices among the classes of all ranks, whole, as cross_entropy's.
        weight: (C), of the classes of all ranks.
        ignore_index: rows with this index count for nothing and get a zero gradient.
        reduction: "none", "mean" (divided by the summed weights of the rows that count) or "sum".
        label_smoothing: in [0, 1], over the classes of all ranks.
        alpha: as for cross_entropy.
        group: the process group that shards the classes; None is the default group.
        row_weight: as for cross_entropy, the same on every rank.
        z_loss: as for cross_entropy.
        return_metrics: as for cross_entropy, those of whole rows. The all-gather has seven numbers
            a row and rank then, so it has to be the same on every rank, as the number of rows has.

    Returns:
        The loss, float64 for float64 logits, else float32: a scalar, or for reduction "none" of
        target's shape. It can be differentiated once: not with create_graph=True. With
        return_metrics, the loss and a :class:`powergrad_ext.RowMetrics`.

    Raises:
        RuntimeError: target holds probabilities; or options, a float alpha, the number of classes,
            whether there are weights, or half precision against float32 differ from those of rank
            0, or a rank raised an error when it was about to exchange: on a CPU on every rank (but
            for errors in compiled code), on a GPU a device-side assertion. What target, weight,
            row_weight and a tensor alpha hold is not compared, nor is return_metrics, on which the
            size of the exchange depends: the process group fails where it differs. Compiled code
            compares only whether label_smoothing and z_loss are 0.
        ValueError: this process is not in the group; and
        all that cross_entropy raises, before anything is computed.
    """
    name = "vocab_parallel_cross_entropy"
    require_tensor(name, "input", input)
    require_tensor(name, "target", target)
    options = Options(
        *(weight, ignore_index, reduction, label_smoothing, as_alpha(alpha), row_weight, z_loss)
    )
    options.require_types(name)
    require_type(name, "return_metrics", return_metrics, bool, "bool")
    dtensor.refuse_row_weight(name, row_weight)
    if dtensor.is_dtensor(input):
        raise TypeError(f"{name}(): argument 'input' must be a local tensor, not a DTensor")
    if input.dim() == target.dim() and target.is_floating_point():
        raise RuntimeError(
            f"{name}(): argument 'target' must hold class indices, got {target.dtype} of shape "
            f"{list(target.shape)}"
        )
    if group is None:
        group = dist.group.WORLD
        if group is None:
            raise ValueError(f"{name}(): torch.distributed.init_process_group() was not called")
    elif not isinstance(group, dist.ProcessGroup):  # torch's sign for the groups of others
        raise ValueError(
            f"{name}(): argument 'group' must be a process group that this process belongs to"
        )
    classes = input.shape[min(input.dim() - 1, 1)] if input.dim() > 0 else 0
    if torch.compiler.is_compiling():  # which takes the index of a size for a constant
        shard = _constant_shard(operator.index(classes), group.group_name)
        return _whole_rows(input, target, options, shard, return_metrics)
    with suppress(SizesDifferError):
        shard = _remembered_shard(classes, group)
        return _whole_rows(input, target, options, shard, return_metrics)
    shard = _exchanged_shard(classes, group)
    return _whole_rows(input, target, options, shard, return_metrics)


def _whole_rows(
    input: Tensor, target: Tensor, options: Options, shard: Shard, return_metrics: bool
) -> Any:
    loss, _, metrics = cross_entropy(input, target, options, shard, return_metrics)
    return (loss, metrics_of(metrics, tuple(target.shape))) if return_metrics else loss


def _remembered_shard(classes: int, group: Any) -> Shard:
    """The shard of a process that holds so many classes.

    If the group has none yet, every rank is here for the first time, and they exchange sizes at
    once. Later one rank may know the sizes while another does not. That rank says so in the
    exchange of statistics, which all ranks join.
    """
    known = _sizes.setdefault(group, {})
    if not known:
        return _exchanged_shard(classes, group)
    unknown = (-1,) * dist.get_world_size(group)
    sizes = known.get(classes, unknown)
    return Shard(group.group_name, sizes, dist.get_rank(group), is_certain=False)


def _exchanged_shard(classes: int, group: Any) -> Shard:
    """All ranks of the group call this."""
    sizes: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(sizes, classes, group=group)
    _sizes.setdefault(group, {})[classes] = tuple(sizes)
    return Shard(group.group_name, tuple(sizes), dist.get_rank(group))


@assume_constant_result
def _constant_shard(classes: int, group_name: Any) -> Shard:
    """Compilers call this while they trace, when the group itself is hidden from them."""
    from torch.distributed import distributed_c10d

    group = distributed_c10d._resolve_process_group(group_name)  # type: ignore[attr-defined]
    shard = _remembered_shard(classes, group)
    if -1 in shard.sizes:
        raise RuntimeError(
            f"vocab_parallel_cross_entropy(): under torch.compile a group that another layer has"
            f" used must know the sizes of shards, got {classes} classes for the first time: give"
            " each layer a group of its own (torch.distributed.new_group), or call it once outside"
        )
    return shard._replace(is_certain=True)


#: By group, and by what this process has of a layer: what all have.
_sizes: WeakKeyDictionary[Any, dict[int, tuple[int, ...]]] = WeakKeyDictionary()
