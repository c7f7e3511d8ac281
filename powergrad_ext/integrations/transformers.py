"""The loss for Hugging Face transformers, as its models and its Trainer call one.

`model.loss_function = causal_lm_loss(alpha=0.3)` for language models, whoever trains them;
`Trainer(compute_loss_func=trainer_loss(alpha=0.3))` for classifiers too;
`fuse_last_layer(model, alpha=0.3)` for language models without their logits.

TRL's SFTTrainer computes a loss of its own, in chunks. `SFTTrainer(compute_loss_func=...)` makes it
call ours, at the price of a second forward pass for its metrics (and TRL means to remove that); a
subclass with `compute_loss = Trainer.compute_loss` asks the model, and loses the metrics.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel, TrainerCallback
from transformers.modeling_outputs import MaskedLMOutput, Seq2SeqLMOutput, TokenClassifierOutput
from transformers.utils import ModelOutput

from powergrad_ext.alpha import checked_alpha
from powergrad_ext.functional import cross_entropy
from powergrad_ext.linear import linear_cross_entropy
from powergrad_ext.schedule import AlphaSchedule

# Of models whose labels stand where the logits stand.
ALIGNED_OUTPUTS = (MaskedLMOutput, Seq2SeqLMOutput, TokenClassifierOutput)


def causal_lm_loss(alpha: float | Tensor = 0.3) -> Callable[..., Tensor]:
    """A loss of next tokens for ``model.loss_function``, in place of ``ForCausalLMLoss``.

    The value is the library's; the gradient is that of :func:`powergrad_ext.cross_entropy`.
    Half-precision logits are read as they are, where the library copies them to float32: loss and
    backward of (4, 512, 32000) bfloat16 logits took 125 MiB besides them on a CPU, the library's
    750, one and six times their size. Leave the library's ``LOSS_MAPPING`` as it is: its Trainer
    looks there for whether labels are shifted.

    Args:
        alpha: the exponent, a float or a 0-d tensor (:class:`powergrad_ext.AlphaSchedule`).

    Returns:
        A function of logits (..., sequence, vocabulary), labels (..., sequence) int64, vocab_size,
        num_items_in_batch=None, ignore_index=-100 and shift_labels=None; others are ignored. Label
        ``i + 1`` belongs to logits ``i``, unless shift_labels are given, which are aligned with
        them. The sum is divided by num_items_in_batch, or else by the number of labels that count.

    Raises:
        ValueError: alpha is not finite or not > 0.
    """
    return partial(_causal_lm_loss, alpha=checked_alpha(alpha))


def trainer_loss(
    alpha: float | Tensor = 0.3, *, shift_labels: bool | None = None
) -> Callable[..., Tensor]:
    """A loss for ``Trainer(compute_loss_func=...)``, for language models and classifiers.

    Right under gradient accumulation and with several processes, since it is divided by the
    Trainer's count of labels. It replaces all that the model returns as its loss: a mixture of
    experts loses the loss of its router, which ``model.loss_function`` keeps.

    Args:
        alpha: as for :func:`causal_lm_loss`.
        shift_labels: whether label ``i + 1`` belongs to logits ``i``. None: logits of sequences are
            shifted, unless the model returns a MaskedLMOutput, a Seq2SeqLMOutput or a
            TokenClassifierOutput; those of whole inputs, (N, classes), never.

    Returns:
        A function of outputs with logits (..., classes), labels (...) int64, -100 where none
        counts, and num_items_in_batch=None. It raises a ValueError for labels that are missing, of
        another shape, or not indices, as those of regression and of several labels at a time.
    """
    return partial(_trainer_loss, alpha=checked_alpha(alpha), shift_labels=shift_labels)


def fuse_last_layer(
    model: PreTrainedModel, alpha: float | Tensor = 0.3, *, chunk_rows: int | None = None
) -> None:
    """Make a causal language model train without its logits, by linear_cross_entropy.

    Changes the model in place: in training mode, when it is called with ``labels=``, its last layer
    hands its inputs on to the loss, which makes the logits a chunk of rows at a time. The output
    has the loss, and None for logits. Everything else (evaluation, generation, state dicts) is as
    before. Forward and backward of a Llama of 2 layers of 256 features and a vocabulary of 32000,
    at 4 x 512 tokens in float32 on a CPU, took 201 MiB besides the model, and 857 with the
    library's loss.

    Args:
        model: whose ``get_output_embeddings()`` is a torch.nn.Linear. Its forward has to give that
            layer's output to ``loss_function`` as it is: a model that caps or scales its logits
            raises a RuntimeError when it is called with labels. With FSDP, the layer has to belong
            to the group of the model itself, not to one of its own.
        alpha: as for :func:`causal_lm_loss`.
        chunk_rows: as for :func:`powergrad_ext.linear_cross_entropy`.

    Raises:
        TypeError: the last layer is not a torch.nn.Linear.
        ValueError: alpha is not finite or not > 0.
    """
    layer = model.get_output_embeddings()
    if not isinstance(layer, nn.Linear):
        raise TypeError(f"the model's last layer must be a torch.nn.Linear, got {layer!r}")
    fused = _FusedLastLayer(layer, checked_alpha(alpha), chunk_rows)
    layer.forward = fused.forward_of_layer  # type: ignore[method-assign]
    model.loss_function = fused.loss
    model.register_forward_pre_hook(fused.before_model, with_kwargs=True)
    model.register_forward_hook(fused.after_model, always_call=True)


class _FusedLastLayer:
    """What a model's last layer and its loss know of each other during one forward pass."""

    def __init__(self, layer: nn.Linear, alpha: float | Tensor, chunk_rows: int | None) -> None:
        self.layer = layer
        self.alpha = alpha
        self.chunk_rows = chunk_rows
        self.is_training = False
        self.hidden: Tensor | None = None

    def before_model(self, model: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        self.is_training = model.training and kwargs.get("labels") is not None

    def forward_of_layer(self, input: Tensor) -> Tensor:
        if not self.is_training:
            return F.linear(input, self.layer.weight, self.layer.bias)
        self.hidden = input
        return input

    def loss(
        self,
        logits: Tensor,
        labels: Tensor,
        vocab_size: int,
        num_items_in_batch: Tensor | int | None = None,
        ignore_index: int = -100,
        shift_labels: Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor:
        if not self.is_training:
            return _causal_lm_loss(
                logits,
                labels,
                vocab_size,
                num_items_in_batch,
                ignore_index,
                shift_labels,
                alpha=self.alpha,
            )
        if logits is not self.hidden:
            raise RuntimeError(
                "fuse_last_layer() does not fit this model: it changes its last layer's output "
                "before the loss; use causal_lm_loss()"
            )
        aligned = _shifted(labels, ignore_index) if shift_labels is None else shift_labels
        return _divided(
            lambda target, **options: linear_cross_entropy(
                logits.reshape(-1, logits.size(-1)),
                self.layer.weight,
                target,
                linear_bias=self.layer.bias,
                alpha=self.alpha,
                chunk_rows=self.chunk_rows,
                **options,
            ),
            aligned.to(logits.device),
            num_items_in_batch,
            ignore_index,
        )

    def after_model(self, model: nn.Module, args: Any, output: Any) -> Any:
        if self.is_training and isinstance(output, ModelOutput):
            output["logits"] = None
        self.is_training, self.hidden = False, None
        return output


class AlphaCallback(TrainerCallback):
    """Sets a schedule's alpha before each optimizer step of a Trainer, also of one that resumes.

    Args:
        schedule: whose ``alpha`` the loss was given. Without ``steps`` it gets the Trainer's.
    """

    def __init__(self, schedule: AlphaSchedule) -> None:
        self.schedule = schedule

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.schedule.steps is None:
            self.schedule.steps = state.max_steps

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.schedule.step(state.global_step)


def _causal_lm_loss(
    logits: Tensor,
    labels: Tensor,
    vocab_size: int,
    num_items_in_batch: Tensor | int | None = None,
    ignore_index: int = -100,
    shift_labels: Tensor | None = None,
    *,
    alpha: float | Tensor,
    **kwargs: Any,
) -> Tensor:
    aligned = _shifted(labels, ignore_index) if shift_labels is None else shift_labels
    loss = partial(cross_entropy, logits.reshape(-1, vocab_size), alpha=alpha)
    return _divided(loss, aligned.to(logits.device), num_items_in_batch, ignore_index)


def _trainer_loss(
    outputs: Any,
    labels: Tensor | None,
    num_items_in_batch: Tensor | int | None = None,
    *,
    alpha: float | Tensor,
    shift_labels: bool | None,
) -> Tensor:
    logits = outputs["logits"] if isinstance(outputs, dict) else outputs[0]
    classes = logits.size(-1)
    if labels is None or labels.is_floating_point() or labels.shape != logits.shape[:-1]:
        got = None if labels is None else f"{labels.dtype} of shape {tuple(labels.shape)}"
        raise ValueError(
            f"labels must be class indices of shape {tuple(logits.shape[:-1])}, as the logits "
            f"without their classes, got {got}"
        )
    if shift_labels is None:
        shift_labels = logits.dim() > 2 and not isinstance(outputs, ALIGNED_OUTPUTS)
    aligned = None if shift_labels else labels
    return _causal_lm_loss(
        logits, labels, classes, num_items_in_batch, shift_labels=aligned, alpha=alpha
    )


def _shifted(labels: Tensor, ignore_index: int) -> Tensor:
    return F.pad(labels, (0, 1), value=ignore_index)[..., 1:]


def _divided(
    loss_of: Callable[..., Tensor], labels: Tensor, count: Tensor | int | None, ignore_index: int
) -> Tensor:
    """The library's fixed_cross_entropy: the mean, or the sum over the Trainer's own count."""
    reduction = "mean" if count is None else "sum"
    loss = loss_of(labels.reshape(-1), ignore_index=ignore_index, reduction=reduction)
    if count is None:
        return loss
    return loss / (count.to(loss.device) if isinstance(count, Tensor) else count)
