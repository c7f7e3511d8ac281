"""The loss for torchtitan's configurations: ``PowerGradLoss.Config(alpha=0.3)``.

In place of CrossEntropyLoss.Config(), also as ChunkedLossWrapper.Config(loss_fn=...).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import spmd_types as spmd
from torch import Tensor
from torch.distributed.tensor import DTensor
from torchtitan.components.loss import IGNORE_INDEX, BaseLoss
from torchtitan.config import CompileConfig
from torchtitan.distributed.spmd_types import current_spmd_mesh, spmd_mesh_size
from torchtitan.distributed.utils import get_spmd_backend

from powergrad_ext.cross_entropy import cross_entropy
from powergrad_ext.distributed import vocab_parallel_cross_entropy


class PowerGradLoss(BaseLoss):
    """torchtitan's CrossEntropyLoss with PGT; half-precision logits are read as they are.

    A vocabulary that is sharded over tensor-parallel ranks takes one exchange
    (:func:`powergrad_ext.distributed.vocab_parallel_cross_entropy`), where torchtitan takes three.
    """

    @dataclass(kw_only=True, slots=True)
    class Config(BaseLoss.Config):
        alpha: float = 0.3
        """The exponent, finite and > 0."""

    def __init__(self, config: Config, *, compile_config: CompileConfig | None = None) -> None:
        self.fn = partial(_summed, alpha=config.alpha)
        self._maybe_compile(compile_config)


def _summed(pred: Tensor, labels: Tensor, *, alpha: float) -> Tensor:
    """The sum over logits (batch, sequence, vocabulary); torchtitan divides it by its count."""
    options: dict[str, Any] = {"ignore_index": IGNORE_INDEX, "reduction": "sum", "alpha": alpha}
    if isinstance(pred, DTensor):
        # Not flattened: a sharded sequence would lose its placement.
        loss: Any = cross_entropy(pred.movedim(-1, 1), labels, **options)
        return loss if isinstance(labels, DTensor) else loss.to_local()
    rows, labels = pred.flatten(0, 1), labels.flatten(0, 1)
    if get_spmd_backend() != "spmd_types" or spmd_mesh_size("tp") == 1:
        return cross_entropy(rows, labels, **options)
    with spmd.no_typecheck():  # it does not know our operators; BaseLoss declares the loss's type
        group = current_spmd_mesh().get_group("tp")
        return vocab_parallel_cross_entropy(rows, labels, group=group, **options)
