"""The loss for torchtitan, as its configuration names one: ``PowerGradLoss.Config(alpha=0.3)``.

In place of CrossEntropyLoss.Config(), also as ChunkedLossWrapper.Config(loss_fn=...).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from torch import Tensor
from torch.distributed.tensor import DTensor
from torchtitan.components.loss import IGNORE_INDEX, BaseLoss
from torchtitan.config import CompileConfig
from torchtitan.distributed.spmd_types import spmd_mesh_size
from torchtitan.distributed.utils import get_spmd_backend

from powergrad_ext.functional import cross_entropy


class PowerGradLoss(BaseLoss):
    """torchtitan's CrossEntropyLoss with PGT; half-precision logits are read as they are.

    Logits whose vocabulary is spread over tensor-parallel ranks are refused.
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
    spread = get_spmd_backend() == "spmd_types" and spmd_mesh_size("tp") > 1
    if isinstance(pred, DTensor) or spread:
        raise NotImplementedError(
            "pred must be a plain tensor with the whole vocabulary, got one that is spread over "
            "ranks: train without tensor parallelism, or without its parallel loss"
        )
    return cross_entropy(
        pred.flatten(0, 1),
        labels.flatten(0, 1),
        ignore_index=IGNORE_INDEX,
        reduction="sum",
        alpha=alpha,
    )
