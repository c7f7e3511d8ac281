"""The public functions: arguments as torch's own, the work in torch.ops.powergrad."""

from __future__ import annotations

from numbers import Integral

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.overrides import handle_torch_function, has_torch_function_variadic

from powergrad_ext import dtensor, jagged, onnx
from powergrad_ext._native import _C
from powergrad_ext.alpha import as_alpha, as_tensor
from powergrad_ext.options import Options, require_tensor, require_type

HALF_DTYPES = (torch.float16, torch.bfloat16)


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
) -> Tensor:
    r"""Cross-entropy whose gradient is that of the PowerGrad Transform (arXiv 2111.12495).

    With ``p = softmax(z)``, target distribution ``q`` and class weights ``w``, per row::

        loss = -sum_j w_j q_j log p_j                          (torch's value, untouched by alpha)
        dz_j = p'_j sum_c w_c q_c - w_j q_j,    p' = p**alpha / sum(p**alpha) = softmax(alpha z)

    which is the ordinary gradient of ``F.cross_entropy(alpha * z, ...) / alpha``. ``alpha=1`` is
    ordinary cross-entropy. Training with ``alpha < 1`` calibrates ``softmax(alpha * z)``, so report
    probabilities and validation losses at that temperature. For ``alpha != 1`` the gradient is not
    the value's derivative, and ``torch.autograd.gradcheck`` says so: check against the identity
    above. Every backward through a graph gives the same bits for the same upstream gradient.

    Semantics are those of :func:`torch.nn.functional.cross_entropy` except that int32 targets and
    weights of any floating point type are accepted, and that for float16 and bfloat16 logits the
    loss is computed and returned in float32 (also under autocast, which leaves the logits as they
    are).

    Backward reads the arguments again, unless forward has computed the gradient (reductions "mean"
    and "sum" on a CPU, but float16): one that has been changed in place since raises an error.

    Args:
        input: logits, float32, float64, bfloat16 or float16, of shape (C), (N, C) or
            (N, C, d1, ..., dK), any strides. Or a DTensor: what is sharded over a dimension of
            rows stays where it is, classes over one mesh dimension take an all-gather of five
            numbers a row (:mod:`powergrad_ext.distributed`), any other placement is undone first.
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
            tensor, raises. A permission: under torch.compile, torch.func and saved-tensor hooks
            (checkpoints, offloading), for a leaf (which would become its own gradient), or where a
            layout forbids it, nothing is overwritten.

    Returns:
        The loss, float64 for float64 logits, else float32: a scalar, or for reduction "none" of
        target's index shape.

    Raises:
        ValueError: alpha, reduction, or batch sizes that differ.
        IndexError: a target outside [0, C) that is not ignore_index; on a GPU, a device-side
            assertion, as torch's own.
        TypeError: logits that are not floating point.
        RuntimeError: label_smoothing outside [0, 1]; target, weight or devices that do not fit.
        NotImplementedError: a CUDA tensor in a build without CUDA kernels.
    """
    options = (weight, ignore_index, reduction, label_smoothing, alpha)
    if has_torch_function_variadic(input, target, weight):
        return handle_torch_function(
            cross_entropy,
            tuple(tensor for tensor in (input, target, weight) if tensor is not None),
            input,
            target,
            **Options(*options).keywords(),
            inplace_backward=inplace_backward,
        )
    require_tensor("cross_entropy", "input", input)
    require_tensor("cross_entropy", "target", target)
    if not isinstance(alpha, float):
        options = (*options[:-1], as_alpha(alpha))
    if type(input) is not Tensor and dtensor.is_dtensor(input):
        return dtensor.cross_entropy(input, target, Options(*options))
    if torch.compiler.is_compiling() or type(input) is FakeTensor:
        keywords = Options(*options).for_operator(input).keywords()
        return torch.ops.powergrad.cross_entropy(
            input, target, **keywords, inplace_backward=inplace_backward
        )
    try:
        return _C.cross_entropy(input, target, *options, inplace_backward)
    except TypeError:  # from the binding itself it would list C++ types and name no argument
        Options(*options).require_types("cross_entropy")
        require_type("cross_entropy", "inplace_backward", inplace_backward, bool, "bool")
        raise


def log_softmax(
    input: Tensor,
    dim: int = -1,
    *,
    alpha: float | Tensor = 0.3,
    dtype: torch.dtype | None = None,
) -> Tensor:
    r"""Log-softmax whose backward is that of the PowerGrad Transform (arXiv 2111.12495).

    The value is ``log_softmax(z)``; for an upstream gradient ``g`` the gradient is
    ``g - softmax(alpha z) * sum(g)``. A loss whose derivative by the log-probabilities does not sum
    to 0 over the classes gets the transform from it: NLL, soft targets, KL distillation,
    :func:`powergrad_ext.ctc_loss`. One that sums to 0 has the ordinary gradient, whatever alpha:
    what normalises log-probabilities again (``torch.distributions.Categorical(logits=...)``,
    cross-entropy of them) and ``torch.nn.functional.ctc_loss``, which returns the derivative by the
    logits. :func:`cross_entropy` is the fused form of log_softmax and NLL.

    Backward reads input again: input that has been changed in place since raises an error.

    Args:
        input: float32, float64, bfloat16 or float16, any shape and strides; or jagged, where dim is
            neither the batch nor the ragged dimension; or a DTensor, as for :func:`cross_entropy`,
            whose backward then adds up a number a row where dim is sharded, and which is refused
            inside torch's loss_parallel().
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
            return jagged.log_softmax(input, dim, alpha, dtype)
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
        return torch.ops.powergrad.log_softmax(input, dim, alpha=as_tensor(alpha, input))
    if torch._C._is_tracing():
        onnx.register_for_torchscript()
    try:
        return _C.log_softmax(input, dim, alpha)
    except TypeError:
        require_type("log_softmax", "dim", dim, Integral, "int (64 bits)")
        raise
