"""Cross-entropy: the function and the module."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.overrides import handle_torch_function, has_torch_function_variadic

from powergrad_ext import dtensor
from powergrad_ext._native import _C
from powergrad_ext.alpha import as_alpha, checked_alpha, shown
from powergrad_ext.cross_entropy_rules import onnx_value
from powergrad_ext.exporting import is_exporting, refuse_metrics, refuse_scripts
from powergrad_ext.metrics import RowMetrics, metrics_of
from powergrad_ext.options import (
    Options,
    as_accumulated,
    checked_z_loss,
    require_tensor,
    require_type,
)

ops = torch.ops.powergrad


def cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    *,
    alpha: float | Tensor = 0.3,
    inplace_backward: bool = False,
    row_weight: Tensor | None = None,
    z_loss: float = 0.0,
    return_metrics: bool = False,
) -> Any:
    r"""Cross-entropy whose gradient is that of the PowerGrad Transform (arXiv 2111.12495).

    With ``p = softmax(z)``, target distribution ``q`` and class weights ``w``, per row::

        loss = -sum_j w_j q_j log p_j                          (torch's value, untouched by alpha)
        dz_j = p'_j sum_c w_c q_c - w_j q_j,    p' = p**alpha / sum(p**alpha) = softmax(alpha z)

    which is the ordinary gradient of ``F.cross_entropy(alpha * z, ...) / alpha``. ``alpha=1`` is
    ordinary cross-entropy. Training with ``alpha < 1`` calibrates ``softmax(alpha * z)``, so report
    probabilities and validation losses at that temperature. For ``alpha != 1`` the gradient is not
    the value's derivative, and ``torch.autograd.gradcheck`` says so: check against the identity
    above. Every backward through a graph gives the same bits for the same grad_output.

    Semantics are those of :func:`torch.nn.functional.cross_entropy` except that int32 targets and
    weights of any floating point type are accepted, and that for float16 and bfloat16 logits the
    loss is computed and returned in float32 (also under autocast, which leaves the logits as they
    are).

    Backward reads the arguments again, and raises an error if one has been changed in place since;
    except where forward has computed the gradient (reductions "mean" and "sum" on a CPU, but not in
    float16).

    Args:
        input: logits, float32, float64, bfloat16 or float16, of shape (C), (N, C) or
            (N, C, d1, ..., dK), any strides. Or a DTensor: sharded rows stay where they are,
            classes sharded over one mesh dimension take an all-gather of five numbers a row, seven
            with return_metrics (:mod:`powergrad_ext.distributed`), any other placement is
            redistributed first. The metrics of a DTensor's rows are DTensors.
        target: class indices, int64, int32 or uint8, of shape (), (N) or (N, d1, ..., dK), each in
            [0, C) or ignore_index; or class probabilities of the shape of input, in any of its
            dtypes (another than input's or float32 is converted). They may require grad.
        weight: (C), in any of these dtypes.
        ignore_index: rows with this index count for nothing and get a zero gradient.
        reduction: "none", "mean" (divided by the summed weights of the rows that count) or "sum".
        label_smoothing: in [0, 1].
        alpha: a float, or a 0-d floating point tensor on the CPU or on input's device, which can be
            changed under torch.compile without compiling again. Finite and > 0. A tensor on a GPU
            is read there, whenever the kernels run: it can be changed between replays of a CUDA
            graph, and its value is not checked.
        inplace_backward: let backward write the gradient over input; the caller promises not to use
            the logits again. Another backward that needs them, or another part of the same
            tensor, raises. It is a permission: nothing is overwritten under torch.compile,
            torch.func and saved-tensor hooks (checkpoints, offloading), for a leaf (which would
            become its own gradient), with return_metrics, or where the layout forbids it.
        row_weight: a finite number >= 0 for each row, in target's index shape, of any of these
            dtypes, without a gradient, rounded to the loss's type. It multiplies the row's loss and
            gradient, and the row's share of what a mean divides by. Rows of weight 0 count for
            nothing, as ignored ones do, whatever their logits and targets are. On a GPU another
            weight is a device-side assertion.
        z_loss: finite and >= 0. Adds ``z_loss * logsumexp(z)**2`` to the loss of each row that
            counts, before its row weight, with the gradient ``2 * z_loss * logsumexp(z) * p'``. A
            constant of a graph that torch.compile makes.
        return_metrics: return ``(loss, RowMetrics)``, for class indices: each row's
            log-probability of the target, entropy and hit, from the pass that computes the loss.

    Returns:
        The loss, float64 for float64 logits, else float32: a scalar, or for reduction "none" of
        target's index shape. With return_metrics, the loss and a :class:`powergrad_ext.RowMetrics`.

    Raises:
        ValueError: alpha, reduction, z_loss; a row_weight that is negative or not finite;
            return_metrics where target holds probabilities; or batch sizes that differ.
        IndexError: a target outside [0, C) that is not ignore_index; on a GPU, a device-side
            assertion, as torch's own.
        TypeError: logits, weight or row_weight that are not floating point.
        RuntimeError: label_smoothing outside [0, 1]; target, weight, row_weight or devices that do
            not fit; a weight or row_weight that requires a gradient.
        NotImplementedError: a CUDA tensor in a build without CUDA kernels.
    """
    if has_torch_function_variadic(input, target, weight, row_weight):
        tensors = (input, target, weight, row_weight)
        own = Options(weight, ignore_index, reduction, label_smoothing, alpha, row_weight, z_loss)
        return handle_torch_function(
            cross_entropy,
            tuple(tensor for tensor in tensors if tensor is not None),
            input,
            target,
            **own.keywords(),
            inplace_backward=inplace_backward,
            return_metrics=return_metrics,
        )
    require_tensor("cross_entropy", "input", input)
    require_tensor("cross_entropy", "target", target)
    if not isinstance(alpha, float):
        alpha = as_alpha(alpha)
    options = (weight, ignore_index, reduction, label_smoothing, alpha, row_weight, z_loss)
    if type(label_smoothing) is not float or type(ignore_index) is not int:
        options = Options(*options).with_numbers("cross_entropy")
    if type(input) is not Tensor and dtensor.is_dtensor(input):
        Options(*options).require_own_types("cross_entropy")
        require_type("cross_entropy", "return_metrics", return_metrics, bool, "bool")
        return dtensor.cross_entropy(input, target, Options(*options), return_metrics)
    if row_weight is not None or type(z_loss) is not float:
        Options(*options).require_own_types("cross_entropy")
        dtensor.refuse_row_weight("cross_entropy", row_weight)
        options = Options(*options)._replace(row_weight=as_accumulated(row_weight, input))
    if return_metrics:
        Options(*options).require_types("cross_entropy")
        require_type("cross_entropy", "return_metrics", return_metrics, bool, "bool")
        require_type("cross_entropy", "inplace_backward", inplace_backward, bool, "bool")
        return _with_metrics(input, target, Options(*options))
    if torch.compiler.is_compiling() or type(input) is FakeTensor:
        keywords = Options(*options).for_operator(input).keywords()
        return ops.cross_entropy(input, target, **keywords, inplace_backward=inplace_backward)
    if torch._C._is_tracing() and is_exporting():
        return onnx_value(input, target, *options, False)[0]
    try:
        return _C.cross_entropy(input, target, *options, inplace_backward)
    except TypeError:  # the binding's own message lists C++ types and names no argument
        Options(*options).require_types("cross_entropy")
        require_type("cross_entropy", "inplace_backward", inplace_backward, bool, "bool")
        raise


def _with_metrics(input: Tensor, target: Tensor, options: Options) -> tuple[Tensor, RowMetrics]:
    is_compiled = torch.compiler.is_compiling()  # whose tracer does not know torch._C._is_tracing
    if not is_compiled and torch._C._is_tracing() and is_exporting():
        loss, values, _ = onnx_value(input, target, *options, False, True)
    else:
        loss, values, _ = ops.cross_entropy_forward(
            input, target, *options.for_operator(input), False, True
        )
    return loss, metrics_of(values, tuple(target.shape))


class PowerGradCrossEntropyLoss(nn.CrossEntropyLoss):
    """:func:`powergrad_ext.cross_entropy` as a module; arguments as torch.nn.CrossEntropyLoss's.

    Args:
        alpha: the exponent, a float or a 0-d tensor. A tensor can be changed in place between
            steps without compiling again. It is not part of the state dict.
        z_loss, return_metrics: as for the function.

    Raises:
        ValueError: alpha is not such a number, finite and > 0 (a tensor on a GPU is not read);
            z_loss is not finite and >= 0.
    """

    def __init__(
        self,
        weight: Tensor | None = None,
        ignore_index: int = -100,
        reduction: str = "mean",
        label_smoothing: float = 0.0,
        *,
        alpha: float | Tensor = 0.3,
        z_loss: float = 0.0,
        return_metrics: bool = False,
    ) -> None:
        super().__init__(weight, None, ignore_index, None, reduction, label_smoothing)
        self.alpha = checked_alpha(alpha)
        self.z_loss = checked_z_loss(z_loss)
        require_type(type(self).__name__, "return_metrics", return_metrics, bool, "bool")
        self.return_metrics = return_metrics

    def forward(self, input: Tensor, target: Tensor, row_weight: Tensor | None = None) -> Tensor:
        """The loss of logits ``input`` for ``target``; see :func:`powergrad_ext.cross_entropy`.

        With return_metrics, a tuple of the loss and a :class:`powergrad_ext.RowMetrics`.
        """
        options = (self.weight, self.ignore_index, self.reduction, self.label_smoothing)
        # TorchScript knows operators, not the function around them.
        if torch.jit.is_scripting():  # type: ignore[attr-defined]
            alpha = torch.as_tensor(self.alpha, dtype=torch.float64)
            return torch.ops.powergrad.cross_entropy(
                input, target, *options, alpha=alpha, row_weight=row_weight, z_loss=self.z_loss
            )
        return cross_entropy(
            input,
            target,
            *options,
            alpha=self.alpha,
            row_weight=row_weight,
            z_loss=self.z_loss,
            return_metrics=self.return_metrics,
        )

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Of a version before these options, too."""
        super().__setstate__({"z_loss": 0.0, "return_metrics": False, **state})

    def __prepare_scriptable__(self) -> PowerGradCrossEntropyLoss:
        """Called by torch.jit.script."""
        refuse_scripts("cross_entropy")
        refuse_metrics(self)
        return self

    def extra_repr(self) -> str:
        return (
            f"alpha={shown(self.alpha)}, ignore_index={self.ignore_index}, "
            f"reduction={self.reduction!r}, label_smoothing={self.label_smoothing}"
            + (f", z_loss={self.z_loss:g}" if self.z_loss else "")
            + (", return_metrics=True" if self.return_metrics else "")
        )
