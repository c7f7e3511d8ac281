"""The exponent: a number or 0-d tensor, finite and greater than 0."""

from __future__ import annotations

import math
from contextlib import suppress
from numbers import Real

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from powergrad_ext._constant import assume_constant_result


def as_alpha(alpha: object) -> float | Tensor:
    """Any alpha as a float or tensor, else ValueError; the operators check its value."""
    if isinstance(alpha, Tensor):
        # Autograd refuses to save a tensor made in inference mode.
        return alpha.clone() if _is_inference(alpha) else alpha
    if isinstance(alpha, Real):
        with suppress(OverflowError):  # an integer beyond the range of float
            return float(alpha)
    raise _error(alpha)


@assume_constant_result
def _is_inference(alpha: Tensor) -> bool:
    return alpha.is_inference()


def checked_alpha(alpha: object) -> float | Tensor:
    """As :func:`as_alpha`, and validates the value unless that would synchronise with a GPU.

    Raises:
        ValueError: alpha is not a number or a 0-d floating point tensor, or not finite and > 0.
    """
    exponent = alpha if isinstance(alpha, Tensor) else as_alpha(alpha)
    if not isinstance(exponent, Tensor):
        is_valid = _is_valid(exponent)
    elif exponent.dim() > 0 or not exponent.is_floating_point():
        is_valid = False
    else:
        is_valid = not _has_value(exponent) or exponent.is_cuda or _is_valid(exponent.item())
    if not is_valid:
        raise _error(alpha)
    return exponent


def as_tensor(alpha: float | Tensor, input: Tensor) -> Tensor:
    """Alpha as the operators take it in a graph: a 0-d tensor.

    A number becomes a tensor on the logits' device: with one on the CPU the compiler would not
    capture a CUDA graph (mode="reduce-overhead"). For a GPU it is validated here, since the
    operators do not read a device tensor's value.
    """
    if isinstance(alpha, Tensor):
        return alpha
    if type(input) is FakeTensor:  # its mode may have ended
        with input.fake_mode:
            return _number_beside(input, alpha)
    return _number_beside(input, alpha)


def _number_beside(input: Tensor, alpha: float) -> Tensor:
    if not input.is_cuda:
        return torch.tensor(alpha, dtype=torch.float64, device="cpu")  # whatever the default
    if not _is_valid(alpha):
        raise ValueError(f"alpha must be finite and greater than 0, got {alpha}")
    return torch.full((), alpha, dtype=torch.float64, device=input.device)


def shown(alpha: float | Tensor) -> str:
    """Alpha as a module's repr shows it."""
    if not isinstance(alpha, Tensor):
        return f"{alpha:g}"
    return f"{alpha.item():g}" if _has_value(alpha) else repr(alpha)


def _has_value(alpha: Tensor) -> bool:
    """Whether there is a value to read: not in a meta tensor, nor in a subclass like FakeTensor."""
    return type(alpha) is Tensor and not alpha.is_meta


def _is_valid(value: float) -> bool:
    return 0.0 < value < math.inf


def _error(alpha: object) -> ValueError:
    return ValueError(
        "alpha must be a float or a 0-d floating point tensor, finite and greater than 0, "
        f"got {alpha!r}"
    )
