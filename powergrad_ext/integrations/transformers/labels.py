"""Whether label i belongs to logits i, or label i + 1."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Iterator
from types import CodeType
from typing import Any

import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel
from transformers.loss.loss_utils import LOSS_MAPPING, ForCausalLMLoss

# Words in the names of output classes. CausalLMOutputWithCrossAttentions is that of GPT-2, which
# shifts its labels, and of BartForCausalLM, which does not.
ALIGNED_OUTPUTS = ("MaskedLM", "Seq2Seq", "TokenClassifier")
SHIFTED_OUTPUTS = ("CausalLM",)
EITHER_OUTPUTS = ("CausalLMOutputWithCrossAttentions",)


def labels_are_shifted(model: PreTrainedModel) -> bool:
    """Whether the model's own loss gives label ``i + 1`` to logits ``i``.

    The library's models either call ``loss_function``, for which ``loss_type`` chooses the loss, or
    make their own cross-entropy; those of the second kind that shift, call what they shift so.
    """
    return class_shifts_labels(type(model), model.loss_type, is_encoder_decoder(model))


def class_shifts_labels(model: type, loss_type: str | None, encoder_decoder: bool) -> bool:
    """:func:`labels_are_shifted`, of a class."""
    if calls_loss_function(model):
        # ForCausalLM is the library's default where a class's name says nothing.
        loss = LOSS_MAPPING.get(loss_type or "ForCausalLM")
        return loss is ForCausalLMLoss and not encoder_decoder
    return any(name.startswith("shift") for name in forward_code(model).co_varnames)


def calls_loss_function(model: type) -> bool:
    """Whether the class's forward names ``loss_function``."""
    return "loss_function" in forward_code(model).co_names


def forward_code(model: type) -> CodeType:
    """The code of a class's forward, under its decorators."""
    return inspect.unwrap(model.forward).__code__  # type: ignore[attr-defined]


def is_encoder_decoder(model: PreTrainedModel) -> bool:
    return bool(getattr(model.config, "is_encoder_decoder", False))


def output_shifts_labels(outputs: Any) -> bool | None:
    """What the class of a model's outputs says, None if it says nothing."""
    names = [each.__name__ for each in type(outputs).__mro__]
    if any(word in name for name in names for word in ALIGNED_OUTPUTS):
        return False
    if any(name in EITHER_OUTPUTS for name in names):
        return None
    if not any(word in name for name in names for word in SHIFTED_OUTPUTS):
        return None
    return None if an_aligned_model_returns(names) else True


def an_aligned_model_returns(outputs: list[str]) -> bool:
    """Whether a model in this process does not shift its labels and may return such outputs.

    CpmAntForCausalLM returns those of Llama. The library imports a model's module when the model is
    asked for, so that no other model can have made the outputs. A model that is not the library's
    may return any of them, unless its forward's annotation names them.
    """
    return any(
        named is None or not named.isdisjoint(outputs)
        for named in map(_aligned_outputs, _subclasses(PreTrainedModel))
    )


def _subclasses(base: type) -> Iterator[type]:
    models: list[type] = base.__subclasses__()
    for model in models:
        yield model
        yield from _subclasses(model)


@functools.cache
def _aligned_outputs(model: type) -> frozenset[str] | None:
    """The names of the outputs of a head that does not shift its labels; none of another class.

    None if the head may return any, since it is not the library's and its forward does not say.
    """
    if "labels" not in inspect.signature(model.forward).parameters:  # type: ignore[attr-defined]
        return frozenset()
    if "super" in forward_code(model).co_names:  # its base computes the loss
        return frozenset()
    loss_type = re.search("|".join(LOSS_MAPPING), model.__name__)  # as PreTrainedModel.__init__
    if class_shifts_labels(model, loss_type[0] if loss_type else None, encoder_decoder=False):
        return frozenset()
    returned = inspect.unwrap(model.forward).__annotations__  # type: ignore[attr-defined]
    named = frozenset(re.findall(r"\w*Output\w*", str(returned.get("return"))))
    return named if named or model.__module__.startswith("transformers.") else None


def shifted(labels: Tensor, ignore_index: int) -> Tensor:
    """Labels of the logits before them, and none for the last."""
    return F.pad(labels, (0, 1), value=ignore_index)[..., 1:]
