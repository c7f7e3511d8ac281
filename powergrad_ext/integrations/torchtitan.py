"""The loss for torchtitan's configurations: ``PowerGradLoss.Config(alpha=0.3)``.

In place of CrossEntropyLoss.Config(), also as ChunkedLossWrapper.Config(loss_fn=...).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import spmd_types as spmd
import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Partial, Replicate
from torchtitan.components.loss import IGNORE_INDEX, BaseLoss
from torchtitan.config import CompileConfig
from torchtitan.distributed.spmd_types import current_spmd_mesh, spmd_mesh_size
from torchtitan.distributed.utils import get_spmd_backend

from powergrad_ext.cross_entropy import cross_entropy
from powergrad_ext.distributed import vocab_parallel_cross_entropy
from powergrad_ext.metrics import RowMetrics


class PowerGradLoss(BaseLoss):
    """torchtitan's CrossEntropyLoss with PGT; half-precision logits are read as they are.

    A vocabulary that is sharded over tensor-parallel ranks takes one exchange
    (:func:`powergrad_ext.distributed.vocab_parallel_cross_entropy`), where torchtitan takes three.

    With ``metrics=True`` it returns, beside the loss, this rank's part of the means over tokens of
    the log-probability, the entropy and the hits (:class:`powergrad_ext.RowMetrics`), divided by
    global_valid_tokens as the loss is.
    """

    @dataclass(kw_only=True, slots=True)
    class Config(BaseLoss.Config):
        alpha: float = 0.3
        """The exponent, finite and > 0."""
        z_loss: float = 0.0
        """The factor of logsumexp(z)**2 in each token's loss, finite and >= 0."""
        metrics: bool = False
        """Whether metrics are returned."""

    def __init__(self, config: Config, *, compile_config: CompileConfig | None = None) -> None:
        self.fn: Callable[..., Any] = partial(
            _summed, alpha=config.alpha, z_loss=config.z_loss, return_metrics=config.metrics
        )
        self.has_metrics = config.metrics
        self._maybe_compile(compile_config)

    def __call__(
        self,
        pred: Tensor,
        labels: Tensor,
        global_valid_tokens: Tensor | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss, divided by the number of tokens if that is given, and metrics by name."""
        if not self.has_metrics:
            return super().__call__(pred, labels, global_valid_tokens, **kwargs)
        found, metrics = self.fn(pred, labels)
        loss, _ = _Computed(found)(pred, labels, global_valid_tokens, **kwargs)
        sums = _whole_sums(metrics)
        if global_valid_tokens is not None:
            sums = sums / global_valid_tokens
        names = (f"{name}_mean" for name in metrics._fields)
        return loss, dict(zip(names, sums.unbind(), strict=True))


class _Computed(BaseLoss):
    """Hands a computed loss to BaseLoss.__call__, which divides it and declares its type."""

    def __init__(self, loss: Tensor) -> None:
        self.fn = lambda pred, labels: loss


def _whole_sums(metrics: RowMetrics) -> Tensor:
    """(3), over all ranks' rows where metrics are DTensors."""
    first: Any = metrics.log_prob
    if not isinstance(first, DTensor):
        return torch.stack([values.sum(dtype=torch.float32) for values in metrics])
    rows: Any = metrics
    own = torch.stack([values.to_local().sum(dtype=torch.float32) for values in rows])
    placements = [Partial() if each.is_shard() else Replicate() for each in first.placements]
    return DTensor.from_local(own, first.device_mesh, placements, run_check=False).full_tensor()


def _summed(pred: Tensor, labels: Tensor, *, return_metrics: bool, **options: Any) -> Any:
    """The sum over logits (batch, sequence, vocabulary); torchtitan divides it by its count."""
    options |= {"ignore_index": IGNORE_INDEX, "reduction": "sum", "return_metrics": return_metrics}
    if isinstance(pred, DTensor):
        # Not flattened: a sharded sequence would lose its placement.
        found: Any = cross_entropy(pred.movedim(-1, 1), labels, **options)
        if isinstance(labels, DTensor):
            return found
        return (found[0].to_local(), found[1]) if return_metrics else found.to_local()
    rows, labels = pred.flatten(0, 1), labels.flatten(0, 1)
    if get_spmd_backend() != "spmd_types" or spmd_mesh_size("tp") == 1:
        return cross_entropy(rows, labels, **options)
    with spmd.no_typecheck():  # it does not know our operators; BaseLoss declares the loss's type
        group = current_spmd_mesh().get_group("tp")
        return vocab_parallel_cross_entropy(rows, labels, group=group, **options)
