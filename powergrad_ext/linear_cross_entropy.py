"""The last layer and the loss in one: the function, the module, its rules for ONNX and flops."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.loss import _WeightedLoss
from torch.overrides import handle_torch_function, has_torch_function_variadic
from torch.utils.flop_counter import register_flop_formula

from powergrad_ext import dtensor
from powergrad_ext.alpha import as_alpha, checked_alpha
from powergrad_ext.cross_entropy import PowerGradCrossEntropyLoss, cross_entropy
from powergrad_ext.cross_entropy_rules import onnx_value
from powergrad_ext.exporting import (
    is_exporting,
    refuse_metrics,
    refuse_scripts,
    register_onnx,
)
from powergrad_ext.metrics import metrics_of
from powergrad_ext.options import (
    LastLayerOptions,
    Options,
    checked_z_loss,
    require_tensor,
    require_type,
    split_options,
)

ops = torch.ops.powergrad


def linear_cross_entropy(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    *,
    linear_bias: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: str = "mean",
    ignore_index: int | None = -100,
    label_smoothing: float = 0.0,
    alpha: float | Tensor = 0.3,
    chunk_rows: int | None = None,
    row_weight: Tensor | None = None,
    z_loss: float = 0.0,
    logit_scale: float = 1.0,
    softcap: float | None = None,
    return_metrics: bool = False,
) -> Any:
    r"""``cross_entropy(F.linear(input, linear_weight, linear_bias), target)`` without the logits.

    In value and gradient it is that, with :func:`powergrad_ext.cross_entropy` and so with the
    PowerGrad Transform (arXiv 2111.12495); shapes, options and defaults are those of
    :func:`torch.nn.functional.linear_cross_entropy` (torch 2.13). The logits exist chunk_rows rows
    at a time, and are overwritten by their gradient. For reductions "mean" and "sum" forward
    computes the gradient of each argument that requires one, and backward multiplies it by
    grad_output; for "none", and where hooks pack saved tensors (checkpoints), backward computes the
    row chunks again. The gradient of linear_weight is summed in float32, also for half precision.

    The whole logits are made under torch.func (grad, vmap, ...), for create_graph=True, for
    probabilities that require a gradient, and for a weight of more than two dimensions. Under
    autocast the layer's arguments are cast as those of F.linear; the loss is float32.

    Args:
        input: (H) or (N, H), float32, float64, bfloat16 or float16.
        linear_weight: (C, H), or (C, d1, ..., dK, H) for a loss of K dimensions; of input's type.
            Or a DTensor (C, H), whose classes may be sharded (Shard(0), as by ColwiseParallel):
            each process makes the logits of its own, and every row chunk takes an exchange of five
            numbers a row. input is a DTensor (N, H) then, target holds class indices (plain ones
            are those of this rank's rows), and create_graph=True is refused. FSDP2 gathers a weight
            that it has sharded for the forward of its module only: call the function there.
        target: as for cross_entropy of logits (C), (N, C) or (N, C, d1, ..., dK).
        linear_bias: (C) or (C, d1, ..., dK); of input's type.
        weight: (C), the classes' weights.
        reduction: "none", "mean" or "sum".
        ignore_index: rows with this index count for nothing; None means -100. Their features must
            be finite where the layer requires a gradient, as torch's.
        label_smoothing: in [0, 1].
        alpha: as for cross_entropy.
        chunk_rows: how many rows of logits exist at a time. None chooses: at least 128, since fewer
            make the products slow; from 1536 rows on, so few that the call takes less than an
            eighth of the logits' memory besides inputs and gradients. In half precision a chunk is
            an eighth of the rows, from 1024 on; added to it are the float32 sum of linear_weight's
            gradient and what its product takes, copies of the rows' features and of 512 classes.
            torch's own float16 products on a CPU take a float32 copy of the chunk's logits.
        row_weight: as for cross_entropy.
        z_loss: as for cross_entropy.
        logit_scale: multiplies the logits, bias included (Cohere, Granite); finite.
        softcap: logits are ``softcap * tanh(logit_scale * (input W^T + b) / softcap)`` (Gemma);
            finite and > 0. At most an eighth of a chunk is copied for the derivative. In half
            precision the derivative is that of the rounded logits: its error is up to twice that of
            torch's tanh.
        return_metrics: as for cross_entropy; from the chunks' logits while they are there.

    Returns:
        The loss, float64 for float64 input, else float32: a scalar, or for reduction "none" of
        target's index shape. With return_metrics, the loss and a :class:`powergrad_ext.RowMetrics`.

    Raises:
        RuntimeError: shapes, types or devices of the layer that do not fit each other.
        TypeError: linear_weight is a DTensor and input is not.
        ValueError: chunk_rows is not greater than 0; logit_scale is not finite; softcap is not
            finite and > 0; DTensors of different meshes; and all that cross_entropy raises: before
            anything is computed.
    """
    ignored = -100 if ignore_index is None else ignore_index
    options = Options(weight, ignored, reduction, label_smoothing, alpha, row_weight, z_loss)
    tensors = (input, linear_weight, target, linear_bias, weight, row_weight)
    if has_torch_function_variadic(*tensors):
        return handle_torch_function(
            linear_cross_entropy,
            tuple(tensor for tensor in tensors if tensor is not None),
            input,
            linear_weight,
            target,
            linear_bias=linear_bias,
            **options.keywords(),
            chunk_rows=chunk_rows,
            logit_scale=logit_scale,
            softcap=softcap,
            return_metrics=return_metrics,
        )
    name = "linear_cross_entropy"
    require_tensor(name, "input", input)
    require_tensor(name, "linear_weight", linear_weight)
    require_tensor(name, "target", target)
    require_type(name, "linear_bias", linear_bias, (Tensor, type(None)), "Tensor or None")
    options = options.with_numbers(name)
    options.require_types(name)
    require_type(name, "return_metrics", return_metrics, bool, "bool")
    last_layer = LastLayerOptions.of(name, chunk_rows, logit_scale, softcap)
    options = options._replace(alpha=as_alpha(alpha))
    if type(linear_weight) is not Tensor and dtensor.is_dtensor(linear_weight):
        return dtensor.linear_cross_entropy(
            input, linear_weight, target, linear_bias, options, last_layer, return_metrics
        )
    last_layer.require_values(name)
    dtensor.refuse_row_weight(name, row_weight)
    # The compiler's tracer does not know torch._C._is_tracing.
    is_traced = not torch.compiler.is_compiling() and torch._C._is_tracing() and is_exporting()
    has_many = linear_weight.dim() > 2 and not linear_weight.is_nested
    if is_traced or has_many:
        layer = _logits_of_many if has_many else F.linear
        logits = _scaled(layer(input, linear_weight, linear_bias), logit_scale, softcap)
        return cross_entropy(logits, target, **options.keywords(), return_metrics=return_metrics)
    operator = ops.linear_cross_entropy_metrics if return_metrics else ops.linear_cross_entropy
    returned = operator(
        input,
        linear_weight,
        target,
        linear_bias,
        **options.for_operator(input).keywords(),
        **last_layer.keywords(),
    )
    if not return_metrics:
        return returned
    loss, values = returned
    return loss, metrics_of(values, tuple(target.shape))


def _scaled(output: Tensor, logit_scale: float, softcap: float | None) -> Tensor:
    """What the loss reads, of the layer's output."""
    if softcap is not None:
        return torch.tanh(output * (logit_scale / softcap)) * softcap
    return output if logit_scale == 1.0 else output * logit_scale


def _logits_of_many(input: Tensor, linear_weight: Tensor, linear_bias: Tensor | None) -> Tensor:
    """Logits (N, C, d1, ..., dK) for a weight (C, d1, ..., dK, H)."""
    outputs = linear_weight.shape[:-1]
    if input.dim() != 2:
        raise RuntimeError(
            f"K-dimensional loss defined by linear_weight shape {tuple(linear_weight.shape)} "
            f"requires batched input, (N, {linear_weight.shape[-1]}), got "
            f"input with shape {tuple(input.shape)}"
        )
    if input.shape[1] != linear_weight.shape[-1]:
        raise RuntimeError(
            "expected equal input and linear_weight last dimensions (in_features), got "
            f"{input.shape[1]} and {linear_weight.shape[-1]}, respectively (shapes "
            f"{tuple(input.shape)} and {tuple(linear_weight.shape)})"
        )
    if linear_bias is not None and linear_bias.shape != outputs:
        raise RuntimeError(
            f"expected linear_bias shape {tuple(outputs)}, got {tuple(linear_bias.shape)}"
        )
    bias = None if linear_bias is None else linear_bias.flatten()
    return F.linear(input, linear_weight.flatten(0, -2), bias).unflatten(1, outputs)


_OPTIONS_OF_MODULE = tuple(
    name for name in (*Options._fields, *LastLayerOptions._fields) if name != "row_weight"
)


class PowerGradLinearCrossEntropyLoss(_WeightedLoss):
    """:func:`powergrad_ext.linear_cross_entropy` as a module that holds the layer, as ``.linear``.

    In place of torch.nn.LinearCrossEntropyLoss (torch 2.13), whose state dicts it loads, or of a
    model's last nn.Linear and its loss. It may be a group of FSDP2's, and so may ``.linear``; a
    parallel plan may shard ``.linear`` (ColwiseParallel) and says what its plain inputs are.

    Args:
        in_features: H, the size of each input.
        num_classes: C.
        bias: whether the layer adds one.
        device: of the layer.
        dtype: of the layer.
        weight: (C), the classes' weights, a buffer.
        reduction, ignore_index, label_smoothing, chunk_rows: as for the function.
        z_loss, logit_scale, softcap, return_metrics: as for the function.
        alpha: the exponent, a float or a 0-d tensor, which is not part of the state dict.

    Raises:
        ValueError: alpha or softcap is not finite and > 0; z_loss is not finite and >= 0;
            logit_scale is not finite.
        RuntimeError: weight has not shape (C); label_smoothing is outside [0, 1].
        TypeError, from forward: .linear is a DTensor and nothing says what a plain input is, or
            .linear has a forward of its own.
    """

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        *,
        bias: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        reduction: str = "mean",
        weight: Tensor | None = None,
        ignore_index: int | None = -100,
        label_smoothing: float = 0.0,
        alpha: float | Tensor = 0.3,
        chunk_rows: int | None = None,
        z_loss: float = 0.0,
        logit_scale: float = 1.0,
        softcap: float | None = None,
        return_metrics: bool = False,
    ) -> None:
        if weight is not None and weight.shape != (num_classes,):
            raise RuntimeError(
                f"expected weight shape to be {(num_classes,)}, got {tuple(weight.shape)}"
            )
        if not 0.0 <= label_smoothing <= 1.0:
            raise RuntimeError(
                f"expected label_smoothing to be in range [0, 1], got {label_smoothing}"
            )
        super().__init__(weight=weight, reduction=reduction)
        self.linear = nn.Linear(in_features, num_classes, bias=bias, device=device, dtype=dtype)
        self.ignore_index = -100 if ignore_index is None else ignore_index
        self.label_smoothing = label_smoothing
        self.alpha = checked_alpha(alpha)
        self.z_loss = checked_z_loss(z_loss)
        require_type(type(self).__name__, "return_metrics", return_metrics, bool, "bool")
        self.return_metrics = return_metrics
        last_layer = LastLayerOptions.of(type(self).__name__, chunk_rows, logit_scale, softcap)
        last_layer.require_values(type(self).__name__)
        self.chunk_rows, self.logit_scale, self.softcap = last_layer

    def forward(self, input: Tensor, target: Tensor, row_weight: Tensor | None = None) -> Tensor:
        """The loss of ``linear(input)``, input (H) or (N, H), for ``target``.

        With return_metrics, a tuple of the loss and a :class:`powergrad_ext.RowMetrics`.
        """
        # TorchScript knows operators, not the function around them.
        if torch.jit.is_scripting():  # type: ignore[attr-defined]
            layer = (self.linear.weight, target, self.linear.bias)
            options = (self.weight, self.ignore_index, self.reduction, self.label_smoothing)
            alpha = torch.as_tensor(self.alpha, dtype=torch.float64)
            chunk_rows = 0 if self.chunk_rows is None else self.chunk_rows
            return torch.ops.powergrad.linear_cross_entropy(
                input,
                *layer,
                *options,
                alpha=alpha,
                row_weight=row_weight,
                z_loss=self.z_loss,
                chunk_rows=chunk_rows,
                logit_scale=self.logit_scale,
                softcap=self.softcap,
            )
        return self._eager_loss(input, target, row_weight)

    def _eager_loss(self, input: Tensor, target: Tensor, row_weight: Tensor | None) -> Tensor:
        def loss(input: Tensor) -> Tensor:
            return self._loss(input, target, row_weight)

        layer = self.linear
        if type(layer).forward is not nn.Linear.forward or "forward" in vars(layer):
            raise TypeError(
                "PowerGradLinearCrossEntropyLoss: .linear must compute what nn.Linear does, since "
                f"it is fused with the loss, got {type(layer).__name__} with a forward of its own"
            )
        if dtensor.has_hooks(layer):
            return dtensor.within_layer(layer, loss, input)
        if layer._forward_hooks:
            raise TypeError(
                "PowerGradLinearCrossEntropyLoss: .linear must have no forward hooks, since they "
                f"expect its output, which is not made, got {len(layer._forward_hooks)}"
            )
        if layer._forward_pre_hooks:  # spectral_norm, pruning: they make the weight
            return dtensor.within_layer(layer, loss, input)
        return loss(input)

    def _loss(self, input: Tensor, target: Tensor, row_weight: Tensor | None) -> Tensor:
        return linear_cross_entropy(
            input,
            self.linear.weight,
            target,
            linear_bias=self.linear.bias,
            row_weight=row_weight,
            return_metrics=self.return_metrics,
            **{name: getattr(self, name) for name in _OPTIONS_OF_MODULE},
        )

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Of a version before these options, too."""
        options = {"z_loss": 0.0, "logit_scale": 1.0, "softcap": None, "return_metrics": False}
        super().__setstate__({**options, **state})

    def __prepare_scriptable__(self) -> PowerGradLinearCrossEntropyLoss:
        """Called by torch.jit.script."""
        refuse_scripts("linear_cross_entropy")
        refuse_metrics(self)
        return self

    def extra_repr(self) -> str:
        options = PowerGradCrossEntropyLoss.extra_repr(self)  # type: ignore[arg-type]
        return (
            f"{options}, chunk_rows={self.chunk_rows}, logit_scale={self.logit_scale}, "
            f"softcap={self.softcap}"
        )


# ONNX


@register_onnx("powergrad::linear_cross_entropy_forward")
def _onnx_value(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    linear_bias: Tensor | None,
    *arguments: Any,
) -> Any:
    options, (_, logit_scale, softcap, *_shard, gradients, metrics) = split_options(
        arguments if isinstance(arguments[-1], bool) else (*arguments, False)  # without its default
    )
    logits = _scaled(F.linear(input, linear_weight, linear_bias), logit_scale, softcap)
    value = onnx_value(logits, target, *options, any(gradients), metrics)
    if value is NotImplemented:
        return value
    for_backward = [input.new_empty(shape) for shape in (0, (), ())]
    return *value[:2], *for_backward, *(input.new_empty(0) for _ in gradients)


# torch.utils.flop_counter


def _products(input: Sequence[int], linear_weight: Sequence[int], gradients: Sequence[bool]) -> int:
    """Flops of the logits and of the gradients of input and linear_weight, as for F.linear.

    torch counts no elementwise operations and no sums, such as a bias's gradient.
    """
    classes, features = linear_weight
    rows = math.prod(input[:-1])
    return 2 * rows * classes * features * (1 + sum(gradients[:2]))


@register_flop_formula(ops.linear_cross_entropy_forward)
def _(
    input: Sequence[int], linear_weight: Sequence[int], *args: Any, out_shape: Any = None, **_: Any
) -> int:
    # `metrics`, the last argument, is left out where it has its default.
    return _products(input, linear_weight, args[-2] if isinstance(args[-1], bool) else args[-1])


@register_flop_formula(ops.linear_cross_entropy_backward)
def _(
    grad_output: Sequence[int],
    input: Sequence[int],
    linear_weight: Sequence[int],
    *args: Any,
    out_shape: Any = None,
    **_: Any,
) -> int:
    return _products(input, linear_weight, args[-1])
