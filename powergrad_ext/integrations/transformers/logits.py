"""What a fused last layer returns in place of logits."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import resolve_name

from powergrad_ext.integrations.transformers.changes import Changes

if TYPE_CHECKING:
    from powergrad_ext.integrations.transformers.call import FusedCall


class FusedLogits(Tensor):
    """Stands for logits (..., classes) that do not exist; holds their loss, a scalar.

    A tensor, so that hooks on the layer's output see a tensor of the graph. It supports operations
    that leave logits unchanged, and keeps account of those that scale and cap them; cross-entropy
    returns the loss if it was computed for them. Every other operation is refused, since its result
    would not be that of the logits.
    """

    call: FusedCall
    logits_shape: tuple[int, ...]
    logits_dtype: torch.dtype
    changes: Changes

    @classmethod
    def of(
        cls,
        loss: Tensor,
        call: FusedCall,
        shape: tuple[int, ...],
        dtype: torch.dtype,
        changes: Changes,
    ) -> FusedLogits:
        made: FusedLogits = loss.as_subclass(cls)
        made.call, made.logits_shape, made.logits_dtype = call, shape, dtype
        made.changes = changes
        return made

    def like(
        self,
        loss_of: Callable[[Tensor], Tensor] = Tensor.clone,
        shape: tuple[int, ...] | None = None,
        changes: Changes | None = None,
    ) -> FusedLogits:
        """The same stand-in around a copy of the loss, in another shape, after more changes."""
        with torch._C.DisableTorchFunctionSubclass():
            loss = loss_of(self)
        return FusedLogits.of(
            loss,
            self.call,
            self.logits_shape if shape is None else shape,
            self.logits_dtype,
            self.changes if changes is None else changes,
        )

    @classmethod
    def __torch_function__(
        cls, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if function in _OF_THE_LOSS:
            with torch._C.DisableTorchFunctionSubclass():
                return function(*args, **kwargs)
        rule = _RULES.get(function)
        if rule is None or not isinstance(args[0], FusedLogits):
            first = next(arg for arg in (*args, *kwargs.values()) if isinstance(arg, FusedLogits))
            raise first.call.misfit(f"it calls {resolve_name(function)} on its logits")
        return rule(*args, **kwargs)


def _loss(
    input: FusedLogits,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: None = None,
    ignore_index: int = -100,
    reduce: None = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Tensor:
    others = (weight, size_average, reduce)
    if not isinstance(input, FusedLogits) or any(each is not None for each in others):
        raise input.call.misfit("it gives weights to its classes")
    if label_smoothing != 0.0:
        raise input.call.misfit("it smooths its labels")
    input.call.require_changes(input.changes)
    with torch._C.DisableTorchFunctionSubclass():
        loss = input.clone()
    return input.call.take(loss, target, ignore_index, reduction)


def _same(logits: FusedLogits, *args: Any, **kwargs: Any) -> FusedLogits:
    return logits


def _shape(logits: FusedLogits, *args: Any) -> torch.Size:
    return torch.Size(logits.logits_shape)


def _size(logits: FusedLogits, dim: int | None = None) -> Any:
    return torch.Size(logits.logits_shape) if dim is None else logits.logits_shape[dim]


def _dim(logits: FusedLogits, *args: Any) -> int:
    return len(logits.logits_shape)


def _dtype(logits: FusedLogits, *args: Any) -> torch.dtype:
    return logits.logits_dtype


def _view(logits: FusedLogits, *sizes: Any) -> FusedLogits:
    sizes = tuple(sizes[0]) if len(sizes) == 1 and not isinstance(sizes[0], int) else sizes
    numel = known = 1
    for size in logits.logits_shape:
        numel *= size
    for size in sizes:
        known *= 1 if size == -1 else size
    shape = tuple([numel // known if size == -1 else size for size in sizes])
    if shape[-1] != logits.logits_shape[-1]:
        raise logits.call.misfit(f"it views its logits {logits.logits_shape} as {sizes}")
    return logits.like(shape=shape)


def _to(logits: FusedLogits, *args: Any, **kwargs: Any) -> FusedLogits:
    device = torch._C._nn._parse_to(*args, **kwargs)[0]
    if device is None:
        return logits
    return logits.like(lambda loss: loss.clone().to(device))


def _detach(logits: FusedLogits) -> FusedLogits:
    return logits.like(lambda loss: loss.clone().detach())


def _times(logits: FusedLogits, factor: Any) -> FusedLogits:
    if isinstance(factor, Tensor):
        raise logits.call.misfit(f"it multiplies its logits by a tensor {tuple(factor.shape)}")
    return logits.like(changes=logits.changes.times(factor))


def _over(logits: FusedLogits, divisor: Any) -> FusedLogits:
    if isinstance(divisor, Tensor) or divisor == 0:
        raise logits.call.misfit(f"it divides its logits by {divisor}")
    return logits.like(changes=logits.changes.times(1.0 / divisor))


def _plus(logits: FusedLogits, summand: Any) -> FusedLogits:
    changes = logits.changes.offset() if summand is logits.call.offset else None
    if changes is None:
        shown = f"a tensor {tuple(summand.shape)}" if isinstance(summand, Tensor) else summand
        raise logits.call.misfit(f"it adds {shown} to its logits")
    return logits.like(changes=changes)


def _tanh(logits: FusedLogits) -> FusedLogits:
    changes = logits.changes.capped()
    if changes is None:
        raise logits.call.misfit("it caps its logits twice")
    return logits.like(changes=changes)


def _getter(name: str) -> Any:
    return getattr(Tensor, name).__get__


# Attributes of the loss itself; the rules answer for the logits.
_OF_THE_LOSS = {
    *map(
        _getter, ("device", "requires_grad", "grad_fn", "is_leaf", "is_nested", "layout", "_base")
    ),
    Tensor.register_hook,
}
_RULES: dict[Any, Any] = {
    F.cross_entropy: _loss,
    **dict.fromkeys((Tensor.float, Tensor.contiguous, Tensor.double, Tensor.type), _same),
    **dict.fromkeys((Tensor.half, Tensor.bfloat16), _same),
    _getter("shape"): _shape,
    Tensor.size: _size,
    Tensor.dim: _dim,
    _getter("ndim"): _dim,
    _getter("dtype"): _dtype,
    Tensor.view: _view,
    Tensor.reshape: _view,
    Tensor.to: _to,
    Tensor.detach: _detach,
    # In-place operations are refused: other references to the logits would not see the change.
    **dict.fromkeys((torch.add, Tensor.add, Tensor.__add__), _plus),
    **dict.fromkeys((torch.mul, Tensor.mul, Tensor.__mul__), _times),
    **dict.fromkeys((torch.div, Tensor.div, Tensor.__truediv__), _over),
    **dict.fromkeys((torch.tanh, Tensor.tanh), _tanh),
}
