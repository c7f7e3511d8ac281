"""Language models that train without their logits."""

from __future__ import annotations

import functools
import inspect
import warnings
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from powergrad_ext.integrations.transformers.call import FusedCall, Settings
from powergrad_ext.integrations.transformers.changes import planned_changes
from powergrad_ext.integrations.transformers.labels import (
    calls_loss_function,
    labels_are_shifted,
    shifted,
)
from powergrad_ext.integrations.transformers.losses import base_model, checked_options
from powergrad_ext.integrations.transformers.outputs import with_metrics, without_logits


def fuse_last_layer(
    model: PreTrainedModel,
    alpha: float | Tensor = 0.3,
    *,
    chunk_rows: int | None = None,
    label_smoothing: float = 0.0,
) -> None:
    """Make a language model train without its logits, by linear_cross_entropy.

    Changes the model in place: when it is called with ``labels=``, in training mode or where
    gradients are recorded, its last layer computes the loss in its own forward, a chunk of rows of
    logits at a time. The output has the loss, and None for logits. Everything else (evaluation
    under no_grad, generation, state dicts, the models that save_pretrained writes) is as before.
    Since it is the layer's forward, FSDP, DeepSpeed and accelerate bring its weight there as ever,
    also where the layer is a group of its own. Call it before a model is sharded or given to
    Accelerator.prepare, after layers are replaced (PEFT, embeddings of another size), again when
    more are, and again for another alpha. Forward and backward of a Llama of 2 layers of 256
    features and a vocabulary of 32000, at 4 x 512 tokens in float32 on a CPU, took 201 MiB besides
    the model, and 857 with the library's loss.

    ``model(..., labels=labels, return_metrics=True)`` computes that loss in every mode, and returns
    three more fields: ``row_metrics``, a :class:`powergrad_ext.RowMetrics` of the labels' shape;
    ``aligned_labels``, which they belong to (shifted where the model shifts); and ``loss_sum``, the
    sum of the rows' losses, without a router's.

    Labels are aligned with the logits or shifted, summed or averaged as the model's own loss has
    them; mixtures of experts keep the loss of their router. A layer's bias, the final_logits_bias
    of BART, a scale of the logits (Cohere, Granite) and a cap (Gemma) are taken into account.

    Args:
        model: causal, masked, encoder-decoder or multimodal, whose ``get_output_embeddings()`` is a
            torch.nn.Linear; or a PEFT model of one that leaves this layer as it is or has it in
            modules_to_save.
        alpha: as for :func:`~powergrad_ext.integrations.transformers.causal_lm_loss`.
        chunk_rows: as for :func:`powergrad_ext.linear_cross_entropy`.
        label_smoothing: in [0, 1].

    Raises:
        TypeError: a model without labels, a last layer that is not a torch.nn.Linear with its own
            forward, is quantised or has a LoRA adapter.
        ValueError: alpha is not finite or not > 0; label_smoothing is not in [0, 1].
        RuntimeError: when the model is called with labels, and does with its logits what does not
            fit, such as masks and slices, or does not take its loss from them.
    """
    base = base_model(model)
    options = {**checked_options(alpha, label_smoothing), "chunk_rows": chunk_rows}
    name = type(base).__name__
    if "labels" not in inspect.signature(type(base).forward).parameters:
        raise TypeError(f"{name} takes no labels, so that it has no loss to fuse")
    layers = _linear_layers(base)
    settings = Settings(
        options,
        shifts_labels=labels_are_shifted(base),
        counts_items=calls_loss_function(type(base)),
        changes=planned_changes(base),
    )
    to_fuse: list[Any] = [(base, _fused_model), *((layer, _fused_layer) for layer in layers)]
    for module, to_class in to_fuse:
        if not hasattr(type(module), "_unfused"):
            _change_class(module, to_class(type(module)))
    base._fused_settings = settings


def unfuse_last_layer(model: PreTrainedModel) -> None:
    """Undo :func:`fuse_last_layer`; nothing happens to a model that is not fused.

    Raises:
        TypeError: what a model was wrapped in since, such as FSDP2, stands in the way.
    """
    base = base_model(model)
    for module in base.modules():
        if hasattr(type(module), "_unfused"):
            if "_unfused" not in vars(type(module)):
                raise TypeError(f"{type(module)} was made of a fused class: it cannot be undone")
            _change_class(module, type(module)._unfused)
    vars(base).pop("_fused_settings", None)


def _linear_layers(model: PreTrainedModel) -> list[nn.Linear]:
    """The last layer; under PEFT's modules_to_save, each copy of it."""
    layer = model.get_output_embeddings()
    layers = [layer]
    if hasattr(layer, "modules_to_save"):
        layers = [layer.original_module, *layer.modules_to_save.values()]
    for each in layers:
        what = f"the last layer of {type(model).__name__}"
        if hasattr(each, "base_layer"):
            raise TypeError(
                f"{what} has an adapter of PEFT, {type(each).__name__}: keep it out of "
                "target_modules, or name it in modules_to_save"
            )
        if not isinstance(each, nn.Linear):
            raise TypeError(f"{what} must be a torch.nn.Linear, got {each!r}")
        unfused = getattr(type(each), "_unfused", type(each))
        if unfused.forward is not nn.Linear.forward:
            raise TypeError(f"{what} must have the forward of torch.nn.Linear, got {each!r}")
        if type(each.weight.data) not in (Tensor, DTensor) or not each.weight.is_floating_point():
            raise TypeError(f"{what} must not be quantised, got {each.weight!r}")
    return layers


def _change_class(module: Any, new: type) -> None:
    """Change the module's class, also under the hooks of accelerate.

    A forward set on the instance would make a reference cycle, and copies would not have it.
    """
    name = "_old_forward" if "_old_forward" in vars(module) else "forward"
    own = vars(module).get(name)
    if own is not None:
        if getattr(own, "__func__", None) is not type(module).forward:
            raise TypeError(
                f"the forward of {type(module).__name__} was replaced, by {own.__qualname__}: call "
                "fuse_last_layer() before"
            )
        setattr(module, name, MethodType(new.forward, module))  # type: ignore[attr-defined]
    module.__class__ = new


@functools.cache
def _fused_layer(base: type[nn.Linear]) -> type[nn.Linear]:
    @functools.wraps(base.forward)
    def forward(self: Any, input: Tensor) -> Tensor:
        call: FusedCall | None = self.__dict__.get("_fused_call")
        if call is None:
            return base.forward(self, input)
        return call.logits(input, self.weight, self.bias)

    return _subclass(base, forward, _fused_layer)


@functools.cache
def _fused_model(base: type[PreTrainedModel]) -> type[PreTrainedModel]:
    position = list(inspect.signature(base.forward).parameters).index("labels") - 1

    @functools.wraps(base.forward)
    def forward(self: Any, *args: Any, return_metrics: bool = False, **kwargs: Any) -> Any:
        labels = args[position] if len(args) > position else kwargs.get("labels")
        if return_metrics:
            _require_metrics(labels, kwargs.get("return_dict", self.config.return_dict))
        records = torch.is_grad_enabled()
        if labels is None or not (self.training or records or return_metrics):
            if self.training and records and not torch.compiler.is_compiling():
                warnings.warn(
                    f"{base.__name__} after fuse_last_layer() is trained without labels: a loss of "
                    "its logits is not PGT's. With a Trainer, give label_smoothing to "
                    "fuse_last_layer(), and neither label_smoothing_factor nor compute_loss_func",
                    stacklevel=2,
                )
            return base.forward(self, *args, **kwargs)
        call = _call(self, labels, kwargs, return_metrics)
        layers = _fused_layers(self)
        for layer in layers:
            layer._fused_call = call
        try:
            output = base.forward(self, *args, **kwargs)
        finally:
            for layer in layers:
                layer._fused_call = None
        call.require_taken()
        output = without_logits(output)
        return with_metrics(output, call) if return_metrics else output

    return _subclass(base, forward, _fused_model)


def _subclass(base: type, forward: Any, maker: Any) -> Any:
    """A subclass with the name of its base, pickled by its base."""

    def reduce(self: Any, protocol: Any) -> tuple[Any, ...]:
        _, _, *state = super(made, self).__reduce_ex__(protocol)
        return (_new, (maker, base), *state)

    names = {"__module__": base.__module__, "__qualname__": base.__qualname__}
    methods = {"forward": forward, "__reduce_ex__": reduce, "_unfused": base}
    made: Any = type(base)(base.__name__, (base,), names | methods)
    return made


def _new(maker: Any, base: type) -> Any:
    made = maker(base)
    return made.__new__(made)


def _require_metrics(labels: Tensor | None, return_dict: bool | None) -> None:
    if labels is None:
        raise ValueError("labels must be given where return_metrics is True, got None")
    if return_dict is False:
        raise ValueError("return_dict must be True where return_metrics is, got False")


def _call(model: Any, labels: Tensor, kwargs: dict[str, Any], return_metrics: bool) -> FusedCall:
    settings: Settings = model._fused_settings
    target = labels
    if settings.shifts_labels:
        given = kwargs.get("shift_labels")
        target = shifted(labels, -100) if given is None else given
    counts = settings.counts_items and kwargs.get("num_items_in_batch") is not None
    reduction = "sum" if counts or return_metrics else "mean"
    offset = getattr(model, "final_logits_bias", None)
    name = type(model).__name__
    return FusedCall(name, settings, target, reduction, offset, return_metrics)


def _fused_layers(model: Any) -> list[Any]:
    layer = model.get_output_embeddings()
    layers = [each for each in layer.modules() if hasattr(type(each), "_unfused")]
    if not layers:
        raise RuntimeError(
            f"the last layer of {type(model).__name__} was replaced after fuse_last_layer(), by "
            f"resize_token_embeddings() maybe: call fuse_last_layer() again; it is {layer!r}"
        )
    return layers
