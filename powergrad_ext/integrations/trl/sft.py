"""TRL's SFTTrainer with PGT and a fused last layer."""

from __future__ import annotations

import inspect
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel
from trl import SFTTrainer

from powergrad_ext.integrations.transformers import fuse_last_layer
from powergrad_ext.integrations.transformers.losses import base_model, checked_options

try:
    from trl.trainer.utils import FusedCausalLMOutput
except ImportError as error:
    raise ImportError(
        "powergrad_ext.integrations.trl needs a TRL with trl.trainer.utils.add_fused_lm_head, "
        "such as 1.16"
    ) from error


class PowerGradSFTTrainer(SFTTrainer):
    """trl.SFTTrainer, whose loss is PGT's, computed by the fused last layer.

    Everything else is TRL's: its datasets and masks, packing, padding-free batches, PEFT, and the
    metrics that it logs (entropy, mean_token_accuracy, num_tokens), which come from the pass that
    computes the loss. The logged loss is the value of cross-entropy, with label_smoothing if that
    is given, whatever alpha; that of an evaluation too. Where several classes share the largest
    logit, each counts as right; TRL has the first.

    TRL's own head makes the logits again in backward, four products in all; this one makes three.
    It works in the last layer's own forward (:func:`~powergrad_ext.integrations.transformers.\
fuse_last_layer`), where FSDP and DeepSpeed bring its weight.

    Args:
        args, kwargs: those of SFTTrainer.
        alpha: a float or a 0-d tensor (:class:`powergrad_ext.AlphaSchedule`).
        chunk_rows: as for :func:`powergrad_ext.linear_cross_entropy`.
        label_smoothing: in [0, 1]; in place of SFTConfig's label_smoothing_factor.

    Raises:
        ValueError: alpha or label_smoothing; SFTConfig's loss_type is not "nll", or it has a
            label_smoothing_factor; compute_loss_func is given; sequences are sharded over
            processes.
        TypeError: a model that fuse_last_layer refuses.
    """

    def __init__(
        self,
        *args: Any,
        alpha: float | Tensor = 0.3,
        chunk_rows: int | None = None,
        label_smoothing: float = 0.0,
        **kwargs: Any,
    ) -> None:
        options = checked_options(alpha, label_smoothing)
        _require_own_loss(inspect.signature(SFTTrainer).bind(*args, **kwargs).arguments)
        super().__init__(*args, **kwargs)
        parallel = self.accelerator.parallelism_config
        if parallel is not None and (parallel.cp_enabled or parallel.sp_enabled):
            raise ValueError(
                "PowerGradSFTTrainer: sequences must not be sharded over processes (cp_size and "
                f"sp_size), got {parallel!r}"
            )
        _remove_trls_head(base_model(self.model))
        fuse_last_layer(self.model, chunk_rows=chunk_rows, **options)

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """TRL's own, of a model that is called as TRL calls one with its own fused head."""

        def call(fused_lm_head: bool = False, **inputs: Any) -> Any:
            if not fused_lm_head:  # without labels, for its logits
                return model(**inputs)
            return _as_trls(model(**inputs, return_metrics=True))

        return super().compute_loss(call, inputs, return_outputs, num_items_in_batch)


def _as_trls(output: Any) -> FusedCausalLMOutput:
    rows = output.row_metrics
    return FusedCausalLMOutput(
        # compute_loss adds them up and divides by its count: their sum serves as well.
        log_probs=-output.loss_sum.reshape(1, 1),
        entropy=rows.entropy,
        is_top1=rows.correct,
        label_mask=output.aligned_labels != -100,
        aux_loss=output.get("aux_loss"),
    )


def _require_own_loss(arguments: dict[str, Any]) -> None:
    """Nothing that makes SFTTrainer compute another loss."""
    config = arguments.get("args")
    loss_type = getattr(config, "loss_type", "nll")
    if loss_type != "nll":
        raise ValueError(f"PowerGradSFTTrainer: loss_type must be 'nll', got {loss_type!r}")
    smoothing = getattr(config, "label_smoothing_factor", 0.0)
    if smoothing:
        raise ValueError(
            "PowerGradSFTTrainer: label_smoothing_factor must be 0, since it makes TRL compute "
            f"another loss; give label_smoothing to PowerGradSFTTrainer, got {smoothing}"
        )
    if (function := arguments.get("compute_loss_func")) is not None:
        raise ValueError(
            f"PowerGradSFTTrainer: compute_loss_func must be None, since it has its own loss, got "
            f"{function!r}"
        )


def _remove_trls_head(model: PreTrainedModel) -> None:
    """Undo add_fused_lm_head, which has put a forward on the model."""
    forward = vars(model).pop("forward")
    original = inspect.getclosurevars(forward).nonlocals["original_forward"]
    if getattr(original, "__func__", None) is not type(model).forward:
        model.forward = original  # accelerate's, where the model is split over devices
