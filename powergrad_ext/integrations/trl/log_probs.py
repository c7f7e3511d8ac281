"""Log-probabilities of tokens from hidden states, without the logits."""

from __future__ import annotations

import math

from torch import Tensor

from powergrad_ext import linear_cross_entropy
from powergrad_ext.options import require_tensor


def selective_log_softmax(
    hidden_states: Tensor,
    linear_weight: Tensor,
    index: Tensor,
    *,
    linear_bias: Tensor | None = None,
    temperature: float = 1.0,
    row_mask: Tensor | None = None,
    alpha: float | Tensor = 1.0,
    chunk_rows: int | None = None,
) -> Tensor:
    """TRL's ``selective_log_softmax(logits, index)`` of a last layer whose logits are never whole.

    The log-probability, in each row, of the class that index names, for the logits
    ``F.linear(hidden_states, linear_weight, linear_bias)``. Forward and backward make them a chunk
    of rows at a time (:func:`powergrad_ext.linear_cross_entropy`, reduction "none").

    alpha is 1 unless it is given: DPO, GRPO and their like make a loss of their own out of the
    log-probabilities, for which PGT has not been tried. With another alpha the values are the same,
    and the gradient is that of :func:`powergrad_ext.log_softmax`.

    Args:
        hidden_states: (..., H), float32, float64, bfloat16 or float16.
        linear_weight: (C, H), of the same type.
        index: (...), int64 or int32. A row whose index is -100 is skipped, and 0.
        linear_bias: (C), of the same type.
        temperature: divides the logits.
        row_mask: (...), of any type; rows where it is 0 are skipped, and 0.
        alpha: a float or a 0-d tensor.
        chunk_rows: as for :func:`powergrad_ext.linear_cross_entropy`.

    Returns:
        (...), float64 for float64 hidden states, else float32. TRL's is of the logits' type.

    Raises:
        TypeError: an argument that is not a tensor.
        ValueError: temperature is not finite or not > 0; index or row_mask is not of the shape of
            hidden_states without its last dimension; and all that linear_cross_entropy raises.
    """
    name = "selective_log_softmax"
    require_tensor(name, "hidden_states", hidden_states)
    require_tensor(name, "index", index)
    if not 0.0 < temperature < math.inf:
        raise ValueError(f"{name}(): temperature must be finite and > 0, got {temperature}")
    shape = hidden_states.shape[:-1]
    for what, tensor in (("index", index), ("row_mask", row_mask)):
        if tensor is not None and tensor.shape != shape:
            raise ValueError(
                f"{name}(): {what} must have the shape of hidden_states without its last "
                f"dimension, {tuple(shape)}, got {tuple(tensor.shape)}"
            )
    if row_mask is not None:
        index = index.masked_fill(row_mask == 0, -100)
    losses = linear_cross_entropy(
        hidden_states.reshape(-1, hidden_states.shape[-1]),
        linear_weight,
        index.reshape(-1),
        linear_bias=linear_bias,
        reduction="none",
        alpha=alpha,
        chunk_rows=chunk_rows,
        logit_scale=1.0 / temperature,
    )
    return -losses.reshape(shape)
