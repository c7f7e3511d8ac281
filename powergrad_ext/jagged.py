"""Log-softmax of jagged nested tensors, as torch.log_softmax takes them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from powergrad_ext import functional


def log_softmax(
    input: Tensor, dim: int, alpha: float | Tensor, dtype: torch.dtype | None
) -> Tensor:
    """As powergrad_ext.log_softmax, of a tensor whose layout is torch.jagged."""
    dims = input.dim()
    if not -dims <= dim < dims:
        raise IndexError(
            f"Dimension out of range (expected to be in range of [{-dims}, {dims - 1}], "
            f"but got {dim})"
        )
    nested: Any = input
    if dim % dims in (0, nested._ragged_idx):
        raise ValueError(
            "log_softmax(): argument 'dim' must be a dimension of the same size in all of a nested "
            f"tensor, not the batch or the ragged one, got {dim}"
        )
    # The values have no batch dimension.
    values = functional.log_softmax(nested.values(), dim % dims - 1, alpha=alpha, dtype=dtype)
    return torch.nested.nested_tensor_from_jagged(
        values, nested.offsets(), nested.lengths(), jagged_dim=nested._ragged_idx
    )
