"""Losses of logits: for model.loss_function and for a Trainer."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.loss.loss_utils import LOSS_MAPPING, ForCausalLMLoss

from powergrad_ext import cross_entropy
from powergrad_ext.alpha import checked_alpha
from powergrad_ext.integrations.transformers.labels import (
    calls_loss_function,
    output_shifts_labels,
    shifted,
)


def causal_lm_loss(
    alpha: float | Tensor = 0.3, *, label_smoothing: float = 0.0
) -> Callable[..., Tensor]:
    """A loss of next tokens for ``model.loss_function``, in place of ``ForCausalLMLoss``.

    The value is the library's; the gradient is that of :func:`powergrad_ext.cross_entropy`.
    Half-precision logits are read as they are, where the library copies them to float32: loss and
    backward of (4, 512, 32000) bfloat16 logits took 125 MiB besides them on a CPU, the library's
    750, one and six times their size. Leave the library's ``LOSS_MAPPING`` as it is: its Trainer
    looks there for whether labels are shifted. :func:`set_loss_function` puts it where it is
    called, or says that it would not be.

    Args:
        alpha: the exponent, a float or a 0-d tensor (:class:`powergrad_ext.AlphaSchedule`).
        label_smoothing: in [0, 1]; in place of TrainingArguments' label_smoothing_factor, for which
            the Trainer computes a loss itself.

    Returns:
        A function of logits (..., sequence, vocabulary), labels (..., sequence) int64, vocab_size,
        num_items_in_batch=None, ignore_index=-100 and shift_labels=None; others are ignored. Label
        ``i + 1`` belongs to logits ``i``, unless shift_labels are given, which are aligned with
        them. The sum is divided by num_items_in_batch, or else by the number of labels that count.

    Raises:
        ValueError: alpha is not finite or not > 0, or label_smoothing is not in [0, 1].
    """
    return partial(_causal_lm_loss, options=checked_options(alpha, label_smoothing))


def set_loss_function(model: PreTrainedModel, loss: Callable[..., Tensor]) -> None:
    """``model.loss_function = loss`` for a model that calls it, through PEFT's wrappers.

    A forward pre-hook of the model warns when it is trained without labels, for which it does not
    call the loss, as under ``TrainingArguments(label_smoothing_factor=...)``.

    Raises:
        TypeError: the model's forward does not call loss_function, or its loss is not that of
            next tokens.
    """
    base = base_model(model)
    name = type(base).__name__
    # BLIP-2 and similar models name it, but their encoder-decoder language model computes the loss.
    delegates = getattr(base.config, "use_decoder_only_language_model", True) is False
    if delegates or not calls_loss_function(type(base)):
        raise TypeError(
            f"{name} never calls its loss_function; use fuse_last_layer() or "
            "Trainer(compute_loss_func=trainer_loss(...))"
        )
    if LOSS_MAPPING.get(base.loss_type or "ForCausalLM") is not ForCausalLMLoss:
        raise TypeError(
            f"{name} must have the loss of next tokens, got loss_type {base.loss_type!r}; use "
            "Trainer(compute_loss_func=trainer_loss(...))"
        )
    base.loss_function = loss
    if _warn_without_labels not in base._forward_pre_hooks.values():
        base.register_forward_pre_hook(_warn_without_labels, with_kwargs=True)


def trainer_loss(
    alpha: float | Tensor = 0.3,
    *,
    shift_labels: bool | None = None,
    label_smoothing: float = 0.0,
) -> Callable[..., Tensor]:
    """A loss for ``Trainer(compute_loss_func=...)``, for language models and classifiers.

    Right under gradient accumulation and with several processes, since it is divided by the
    Trainer's count of labels. It replaces all that the model returns as its loss: a mixture of
    experts loses the loss of its router, which ``model.loss_function`` keeps.

    Args:
        alpha: as for :func:`causal_lm_loss`.
        shift_labels: whether label ``i + 1`` belongs to logits ``i``. Best given, as
            :func:`~powergrad_ext.integrations.transformers.labels_are_shifted` tells of a model.
            None: as the name of the output's class says. Those of causal language models are
            shifted; those of masked ones, encoder-decoders and token classifiers are not. Logits
            of whole inputs, (N, classes), never are.
        label_smoothing: as for :func:`causal_lm_loss`.

    Returns:
        A function of outputs with logits (..., classes), labels (...) int64, -100 where none
        counts, and num_items_in_batch=None. It raises a ValueError for labels that are missing, of
        another shape, or not indices, as those of regression and of several labels at a time; and
        where shift_labels is None and the output's class does not tell:
        CausalLMOutputWithCrossAttentions is GPT-2's and BartForCausalLM's, and Llama's is also that
        of CpmAntForCausalLM, which does not shift its labels, in a process that has imported it.
    """
    options = checked_options(alpha, label_smoothing)
    return partial(_trainer_loss, shift_labels=shift_labels, options=options)


def base_model(model: Any) -> PreTrainedModel:
    """The model of transformers that PEFT wraps, or the model itself."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    if not isinstance(base, PreTrainedModel):
        raise TypeError(
            f"model must be a transformers.PreTrainedModel, not wrapped, got {type(model).__name__}"
        )
    return base


def _warn_without_labels(model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    if torch.compiler.is_compiling() or not (model.training and torch.is_grad_enabled()):
        return
    given = inspect.signature(model.forward).bind_partial(*args, **kwargs).arguments
    if given.get("labels") is None:
        warnings.warn(
            f"{type(model).__name__} after set_loss_function() is trained without labels: a loss "
            "of its logits is not PGT's. With a Trainer, give label_smoothing to causal_lm_loss(), "
            "and neither label_smoothing_factor nor compute_loss_func",
            stacklevel=2,
        )


def checked_options(alpha: float | Tensor, label_smoothing: float) -> dict[str, Any]:
    """What a loss here hands on to that of the package, checked before any model is changed."""
    if not 0.0 <= label_smoothing <= 1.0:
        raise ValueError(f"label_smoothing must be in [0, 1], got {label_smoothing}")
    return {"alpha": checked_alpha(alpha), "label_smoothing": label_smoothing}


def _causal_lm_loss(
    logits: Tensor,
    labels: Tensor,
    vocab_size: int,
    num_items_in_batch: Tensor | int | None = None,
    ignore_index: int = -100,
    shift_labels: Tensor | None = None,
    *,
    options: dict[str, Any],
    **kwargs: Any,
) -> Tensor:
    """The library's ForCausalLMLoss: the mean, or the sum over the Trainer's own count."""
    aligned = shifted(labels, ignore_index) if shift_labels is None else shift_labels
    loss = cross_entropy(
        logits.reshape(-1, vocab_size),
        aligned.to(logits.device).reshape(-1),
        ignore_index=ignore_index,
        reduction="mean" if num_items_in_batch is None else "sum",
        **options,
    )
    if num_items_in_batch is None:
        return loss
    if isinstance(num_items_in_batch, Tensor):
        num_items_in_batch = num_items_in_batch.to(loss.device)
    return loss / num_items_in_batch


def _trainer_loss(
    outputs: Any,
    labels: Tensor | None,
    num_items_in_batch: Tensor | int | None = None,
    *,
    shift_labels: bool | None,
    options: dict[str, Any],
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
        shift_labels = False if logits.dim() == 2 else output_shifts_labels(outputs)
    if shift_labels is None:
        raise ValueError(
            "trainer_loss(): shift_labels must be given, since models that shift their labels and "
            f"models that do not return a {type(outputs).__name__}; "
            "labels_are_shifted(model) tells, got None"
        )
    aligned = None if shift_labels else labels
    return _causal_lm_loss(
        logits, labels, classes, num_items_in_batch, shift_labels=aligned, options=options
    )
