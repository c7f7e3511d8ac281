"""Log-softmax: the function, the module, and its rules for vmap and ONNX."""

from __future__ import annotations

import functools
from numbers import Integral
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.overrides import handle_torch_function, has_torch_function_variadic

from powergrad_ext import dtensor
from powergrad_ext._native import _C
from powergrad_ext.alpha import as_alpha, as_tensor, checked_alpha, shown
from powergrad_ext.batching import InDims, batched, join, one_by_one, register_vmap, split
from powergrad_ext.exporting import register_onnx
from powergrad_ext.operators import HALF_DTYPES
from powergrad_ext.options import require_tensor, require_type

ops = torch.ops.powergrad


def log_softmax(
    input: Tensor,
    dim: int = -1,
    *,
    alpha: float | Tensor = 0.3,
    dtype: torch.dtype | None = None,
) -> Tensor:
    r"""Log-softmax whose backward is that of the PowerGrad Transform (arXiv 2111.12495).

    The value is ``log_softmax(z)``; for a grad_output ``g`` the gradient is
    ``g - softmax(alpha z) * sum(g)``. Every loss whose ``g`` does not sum to 0 over the classes
    gets the transform from it: NLL, soft targets, KL distillation, :func:`powergrad_ext.ctc_loss`.
    Where ``g`` sums to 0 the gradient is the ordinary one, whatever alpha is: after anything that
    normalises log-probabilities again (``torch.distributions.Categorical(logits=...)``,
    cross-entropy of them) and ``torch.nn.functional.ctc_loss``, which returns the derivative with
    respect to the logits. :func:`cross_entropy` is the fused form of log_softmax and NLL.

    Backward reads input again, and raises an error if it has been changed in place since.

    Args:
        input: float32, float64, bfloat16 or float16, any shape and strides; or jagged, where dim is
            neither the batch nor the ragged dimension; or a DTensor, as for :func:`cross_entropy`:
            where dim is sharded, backward all-reduces one number a row, and torch's loss_parallel()
            is refused.
        dim: the dimension of the classes.
        alpha: as for :func:`cross_entropy`.
        dtype: input is converted to it first. Under CUDA's autocast half-precision input is
            converted to float32, as torch.log_softmax does.

    Returns:
        A contiguous tensor of input's shape, in dtype or input's dtype.

    Raises:
        ValueError: alpha is not finite or not > 0.
        IndexError: dim is out of range.
        TypeError: input is not floating point.
    """
    if has_torch_function_variadic(input):
        if isinstance(input, Tensor) and input.layout == torch.jagged:
            return _log_softmax_of_jagged(input, dim, alpha, dtype)
        return handle_torch_function(
            log_softmax, (input,), input, dim=dim, alpha=alpha, dtype=dtype
        )
    require_tensor("log_softmax", "input", input)
    if not isinstance(alpha, float):
        alpha = as_alpha(alpha)
    if dtype is None and input.is_cuda and torch.is_autocast_enabled("cuda"):
        dtype = torch.float32 if input.dtype in HALF_DTYPES else None
    if dtype is not None:
        input = input.to(dtype)
    if type(input) is not Tensor and dtensor.is_dtensor(input):
        return dtensor.log_softmax(input, dim, as_tensor(alpha, input))
    if torch.compiler.is_compiling() or type(input) is FakeTensor:
        return ops.log_softmax(input, dim, alpha=as_tensor(alpha, input))
    if torch._C._is_tracing():
        register_for_torchscript()
    try:
        return _C.log_softmax(input, dim, alpha)
    except TypeError:
        require_type("log_softmax", "dim", dim, Integral, "int (64 bits)")
        raise


def _log_softmax_of_jagged(
    input: Tensor, dim: int, alpha: float | Tensor, dtype: torch.dtype | None
) -> Tensor:
    """Of a nested tensor, as torch.log_softmax takes it."""
    dims = input.dim()
    if not -dims <= dim < dims:
        raise IndexError(
            f"Dimension out of range (expected to be in range of [{-dims}, {dims - 1}], "
            f"but got {dim})"
        )
    nested: Any = input
    if dim % dims in (0, nested._ragged_idx):
        raise ValueError(
            "log_softmax(): argument 'dim' must be a dimension of the same size in all of a nested "
            f"tensor, not the batch or the ragged one, got {dim}"
        )
    # The values have no batch dimension.
    values = log_softmax(nested.values(), dim % dims - 1, alpha=alpha, dtype=dtype)
    return torch.nested.nested_tensor_from_jagged(
        values, nested.offsets(), nested.lengths(), jagged_dim=nested._ragged_idx
    )


class PowerGradLogSoftmax(nn.Module):
    """:func:`powergrad_ext.log_softmax` as a module.

    Args:
        dim: the dimension of the classes.
        alpha: the exponent, a float or a 0-d tensor.

    Raises:
        ValueError: as for :class:`PowerGradCrossEntropyLoss`.
    """

    def __init__(self, dim: int = -1, *, alpha: float | Tensor = 0.3) -> None:
        super().__init__()
        self.dim = dim
        self.alpha = checked_alpha(alpha)

    def forward(self, input: Tensor) -> Tensor:
        """Log-probabilities of ``input``; see :func:`powergrad_ext.log_softmax`."""
        if torch.jit.is_scripting():  # type: ignore[attr-defined]
            alpha = torch.as_tensor(self.alpha, dtype=torch.float64)
            return torch.ops.powergrad.log_softmax(input, self.dim, alpha=alpha)
        return log_softmax(input, self.dim, alpha=self.alpha)

    def __prepare_scriptable__(self) -> PowerGradLogSoftmax:
        """Called by torch.jit.script: exporting the script later calls no Python of ours."""
        register_for_torchscript()
        return self

    def extra_repr(self) -> str:
        return f"dim={self.dim}, alpha={shown(self.alpha)}"


# vmap


def _rows_first(input: Tensor, dim: int) -> tuple[Tensor, int]:
    """Logits with a batch dimension and at least one other, and their class dimension."""
    logits = input.unsqueeze(1) if input.dim() == 1 else input
    return logits, dim % max(logits.dim() - 1, 1) + 1


@torch.library.register_vmap("powergrad::log_softmax_forward")
def _(info: Any, in_dims: InDims, *args: Any) -> tuple[Any, Any]:
    input, dim, alpha, needs_backward = args
    size = info.batch_size
    if in_dims[2] is not None:  # alpha
        return one_by_one(ops.log_softmax_forward, size, in_dims, args)
    input = batched(input, in_dims[0], size)
    logits, class_dim = _rows_first(input, dim)
    output, statistics = ops.log_softmax_forward(logits, class_dim, alpha, needs_backward)
    rows = [*logits.shape[1:class_dim], *logits.shape[class_dim + 1 :]]
    return (output.reshape(input.shape), split(statistics, size, rows)), (0, 1)


@torch.library.register_vmap("powergrad::log_softmax_backward")
def _(info: Any, in_dims: InDims, *args: Any) -> tuple[Any, Any]:
    grad_output, input, dim, alpha, statistics = args
    grad_dim, input_dim, _, alpha_dim, statistics_dim = in_dims
    size = info.batch_size
    if alpha_dim is not None:
        return one_by_one(ops.log_softmax_backward, size, in_dims, args)
    input = batched(input, input_dim, size)
    logits, class_dim = _rows_first(input, dim)
    gradient = ops.log_softmax_backward(
        batched(grad_output, grad_dim, size).reshape(logits.shape),
        logits,
        class_dim,
        alpha,
        join(statistics, statistics_dim, size),
    )
    return gradient.reshape(input.shape), 0


def _operator(input: Tensor, dim: int, alpha: Tensor) -> Tensor:
    return ops.log_softmax(input, dim, alpha=alpha)


def _operator_rule(info: Any, in_dims: InDims, *args: Any) -> tuple[Any, Any]:
    input, dim, alpha = args
    if in_dims[2] is not None:  # alpha
        return one_by_one(_operator, info.batch_size, in_dims, args)
    input = batched(input, in_dims[0], info.batch_size)
    return _operator(*_rows_first(input, dim), alpha).reshape(input.shape), 0


register_vmap("log_softmax", _operator_rule, _operator, input=None, dim=-1, alpha=None)


# ONNX


@register_onnx("powergrad::log_softmax_forward")
def _onnx_value(input: Tensor, dim: int, alpha: Tensor, needs_backward: bool) -> Any:
    if needs_backward:
        return NotImplemented
    return torch.log_softmax(input, dim), input.new_empty(0)


@functools.cache
def register_for_torchscript() -> None:
    """Register log-softmax with the exporter of TorchScript (dynamo=False).

    Called where our function is traced and where our module is scripted. A script that calls
    torch.ops.powergrad.log_softmax itself has to call it before it is exported.
    """
    from torch.onnx.symbolic_helper import parse_args

    @parse_args("v", "i", "v")
    def log_softmax(graph: Any, input: Any, dim: int, alpha: Any) -> Any:
        return graph.op("LogSoftmax", input, axis_i=dim)

    # From the first version in which ONNX's LogSoftmax means one dimension.
    torch.onnx.register_custom_op_symbolic(  # type: ignore[attr-defined]
        "powergrad::log_softmax", log_softmax, 13
    )
