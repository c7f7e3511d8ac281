"""The options of cross-entropy as one argument; most code passes it on without naming them."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any, NamedTuple

import torch
from torch import Tensor

from powergrad_ext.alpha import as_tensor
from powergrad_ext.operators import CROSS_ENTROPY_STATISTICS


class Options(NamedTuple):
    """In the order of torch.ops.powergrad: torch's own, then those that it does not have."""

    weight: Tensor | None = None
    ignore_index: int = -100
    reduction: str = "mean"
    label_smoothing: float = 0.0
    alpha: Any = 0.3  # a tensor where the options are those of an operator
    row_weight: Tensor | None = None
    z_loss: float = 0.0

    def for_operator(self, input: Tensor) -> Options:
        """With a tensor for alpha, and row weights in the type of the loss."""
        row_weight = as_accumulated(self.row_weight, input)
        return self._replace(alpha=as_tensor(self.alpha, input), row_weight=row_weight)

    def keywords(self) -> dict[str, Any]:
        """By name, as the operators for users take them."""
        return dict(zip(Options._fields, self, strict=True))

    @property
    def statistics(self) -> int:
        """How many statistics of a row backward reads."""
        return CROSS_ENTROPY_STATISTICS + (self.z_loss != 0.0)

    def rows_that_count(self, target: Tensor) -> Tensor:
        """Which rows of class indices do."""
        counts = target != self.ignore_index
        return counts if self.row_weight is None else counts & (self.row_weight != 0)

    def divisor(self, total_weight: Tensor) -> Tensor:
        """What a mean divides by.

        The class weights may sum to 0. With label smoothing torch then divides two terms by 0,
        whose sum is NaN.
        """
        if self.weight is None or not self.label_smoothing:
            return total_weight
        return torch.where(total_weight == 0, torch.nan, total_weight)

    def require_types(self, function: str) -> None:
        """TypeError, in torch's words, for an option of another type, except alpha."""
        require_type(function, "weight", self.weight, (Tensor, type(None)), "Tensor or None")
        require_type(function, "ignore_index", self.ignore_index, Integral, "int (64 bits)")
        require_type(function, "reduction", self.reduction, str, "str")
        require_type(
            function, "label_smoothing", self.label_smoothing, (Real, torch.SymFloat), "float"
        )
        self.require_own_types(function)

    def require_own_types(self, function: str) -> None:
        """The same for the options that torch does not have."""
        types = (Tensor, type(None))
        require_type(function, "row_weight", self.row_weight, types, "Tensor or None")
        require_type(function, "z_loss", self.z_loss, (Real, torch.SymFloat), "float")

    def with_numbers(self, function: str) -> Options:
        """With the values of 0-d tensors, which torch accepts as numbers."""
        names = ("ignore_index", "label_smoothing")
        numbers = {name: as_number(function, name, getattr(self, name)) for name in names}
        return self._replace(**numbers)

    def constants(self) -> tuple[Any, ...]:
        """What all ranks must agree on, without reading tensors.

        A number has the type of its default: 1 and True, or another library's, are the same.
        """
        known = [_constant(*pair) for pair in zip(self, Options(), strict=True)]
        if torch.compiler.is_compiling():  # which may make a float an input of the graph
            known = [_is_set(option) if isinstance(option, float) else option for option in known]
        return tuple(known)

    def split(self) -> tuple[list[Tensor | None], Options]:
        """The tensors, as autograd saves them, and the options without them."""
        tensors = [option if isinstance(option, Tensor) else None for option in self]
        others: list[Any] = [None if isinstance(option, Tensor) else option for option in self]
        return tensors, Options(*others)

    def joined(self, tensors: Sequence[Tensor | None]) -> Options:
        """The inverse of :meth:`split`."""
        pairs = zip(self, tensors, strict=True)
        whole: list[Any] = [option if tensor is None else tensor for option, tensor in pairs]
        return Options(*whole)


class LastLayerOptions(NamedTuple):
    """The further options of linear_cross_entropy."""

    chunk_rows: int | None = None
    logit_scale: float = 1.0
    softcap: float | None = None

    def keywords(self) -> dict[str, Any]:
        """By name, as the operators take them."""
        return {**self._asdict(), "chunk_rows": self.chunk_rows or 0}

    @classmethod
    def of(cls, function: str, chunk_rows: Any, logit_scale: Any, softcap: Any) -> LastLayerOptions:
        """TypeError for an option of another type; all ranks get numbers of the same types."""
        if chunk_rows is not None:
            require_type(function, "chunk_rows", chunk_rows, Integral, "int or None")
            chunk_rows = operator.index(chunk_rows)
        require_type(function, "logit_scale", logit_scale, Real, "float")
        if softcap is not None:
            require_type(function, "softcap", softcap, Real, "float or None")
            softcap = float(softcap)
        return cls(chunk_rows, float(logit_scale), softcap)

    def require_values(self, function: str) -> None:
        """ValueError; where classes are sharded only after the ranks agree about the values."""
        if self.chunk_rows is not None and self.chunk_rows < 1:
            raise ValueError(
                f"{function}(): argument 'chunk_rows' must be greater than 0, got {self.chunk_rows}"
            )
        if not -math.inf < self.logit_scale < math.inf:  # isfinite() is not traced
            raise ValueError(
                f"{function}(): argument 'logit_scale' must be finite, got {self.logit_scale}"
            )
        if self.softcap is not None and not 0.0 < self.softcap < math.inf:
            raise ValueError(
                f"{function}(): argument 'softcap' must be None, or finite and greater than 0, "
                f"got {self.softcap}"
            )


def as_accumulated(row_weight: Any, input: Tensor) -> Any:
    """Row weights as kernels read them: one that float32 rounds to 0 is 0 for everybody."""
    is_wide = isinstance(row_weight, Tensor) and row_weight.dtype == torch.float64
    return row_weight.float() if is_wide and input.dtype != torch.float64 else row_weight


def as_number(function: str, name: str, value: object) -> Any:
    """The value of a 0-d tensor, which torch accepts as a number; anything else unchanged."""
    if not (isinstance(value, Tensor) and value.dim() == 0):
        return value
    if value.requires_grad:
        raise RuntimeError(
            f"{function}(): the derivative for '{name}' is not implemented; pass {name}.detach()"
        )
    return value.item()


def checked_z_loss(z_loss: float) -> float:
    """Itself where it is finite and >= 0, else ValueError."""
    if not (isinstance(z_loss, Real) and 0.0 <= z_loss < math.inf):
        raise ValueError(f"z_loss must be a finite number >= 0, got {z_loss!r}")
    return float(z_loss)


def _constant(option: Any, default: Any) -> Any:
    if isinstance(option, Tensor):
        return "tensor"
    is_number = isinstance(option, Real) and isinstance(default, Real)
    return type(default)(option) if is_number else option


def _is_set(option: float) -> int:
    return 1 if option else 0  # guards on whether it is 0; bool() would make it a constant


def split_options(arguments: tuple[Any, ...]) -> tuple[Options, tuple[Any, ...]]:
    """The options that an operator's remaining arguments begin with, and what follows them."""
    count = len(Options._fields)
    return Options(*arguments[:count]), arguments[count:]


def require_tensor(function: str, name: str, argument: object) -> None:
    """TypeError, in torch's words, for an argument that is not a tensor."""
    if isinstance(argument, Tensor):  # of every small call
        return
    require_type(function, name, argument, Tensor, "Tensor")


def require_type(
    function: str, name: str, argument: object, types: type | tuple[type, ...], expected: str
) -> None:
    """TypeError, in torch's words, for an argument of another type or an int of over 64 bits."""
    too_long = isinstance(argument, int) and not -(2**63) <= argument < 2**63
    if not isinstance(argument, types) or (types is Integral and too_long):
        got = argument if too_long else type(argument).__name__
        raise TypeError(f"{function}(): argument '{name}' must be {expected}, not {got}") from None
