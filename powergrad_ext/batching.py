"""What the rules for vmap share.

A batch of calls is one call with more rows. Only where the samples differ in something that all
rows of a call share (alpha, class weights) are they computed one by one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._functorch.autograd_function import custom_function_call_vmap_helper
from torch._functorch.pyfunctorch import retrieve_current_functorch_interpreter

InDims = tuple[int | None, ...]

_library = torch.library.Library("powergrad", "IMPL")


def batched(tensor: Tensor, dim: int | None, size: int) -> Tensor:
    """The tensor with its batch dimension in front."""
    return tensor.expand(size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)


def fold(tensor: Tensor, has_rows: bool) -> Tensor:
    """(B, N, ...) to (B * N, ...); a sample that is a single row, (B, ...), stays."""
    return tensor.flatten(0, 1) if has_rows else tensor


def split(statistics: Tensor, size: int, rows: list[int]) -> Tensor:
    """The statistics of a folded call, (K, B * rows), by samples: (K, B, rows)."""
    return statistics.reshape(statistics.shape[0], size, math.prod(rows))


def join(statistics: Tensor, dim: int | None, size: int) -> Tensor:
    """Statistics by samples as those of a folded call, (K, B * rows)."""
    return batched(statistics, dim, size).movedim(0, 1).flatten(1)


def are_batched(in_dims: InDims) -> bool:
    return any(dim is not None for dim in in_dims)


def one_by_one(
    op: Callable[..., Any], size: int, in_dims: InDims, args: tuple[Any, ...]
) -> tuple[Any, Any]:
    """The samples' results, stacked."""

    def sample(index: int) -> list[Any]:
        return [
            arg if dim is None else arg.select(dim, index)
            for arg, dim in zip(args, in_dims, strict=True)
        ]

    def stand_in() -> list[Any]:
        """Valid arguments for the shapes of an empty batch's results: class 0, alpha 1."""
        return [
            arg
            if dim is None
            else arg.new_full((*arg.shape[:dim], *arg.shape[dim + 1 :]), arg.is_floating_point())
            for arg, dim in zip(args, in_dims, strict=True)
        ]

    samples = [op(*sample(index)) for index in range(size)] or [op(*stand_in())]
    if isinstance(samples[0], Tensor):
        return torch.stack(samples)[:size], 0
    outputs = tuple(torch.stack(tensors)[:size] for tensors in zip(*samples, strict=True))
    return outputs, (0,) * len(outputs)


def register_vmap(
    name: str, rule: Callable[..., Any], op: Callable[..., Any], **defaults: Any
) -> None:
    """As torch.library's, for the operators for users, whose alpha is a keyword.

    torch's function takes no operator with a keyword-only tensor. This does the same; rule and op
    get the arguments in the order of `defaults`.
    """

    def kernel(keyset: torch._C.DispatchKeySet, *args: Any, **keywords: Any) -> Any:
        names = list(defaults)[len(args) :]
        given = [*args, *({**defaults, **keywords}[name] for name in names)]
        interpreter: Any = retrieve_current_functorch_interpreter()
        return custom_function_call_vmap_helper(interpreter, rule, op, *given)

    _library.impl(name, kernel, "FuncTorchBatched", with_keyset=True)
