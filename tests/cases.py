"""Problems to solve, and the one way to check an answer to them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from oracle import (
    Expected,
    accumulation_type,
    assert_gradient,
    assert_log_probabilities,
    assert_loss,
    definition,
    log_softmax_definition,
)
from torch import Tensor

import powergrad_ext as pg
from powergrad_ext._native import _C

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
LAYOUTS = ["rows", "inner"]
TARGET_KINDS = ["int64", "int32", "probabilities", "float32_probabilities"]


def devices() -> list[str]:
    """The CPU, and a GPU where there is one and the module has kernels for it."""
    has_cuda = torch.cuda.is_available() and bool(_C.cuda_architectures())
    return ["cpu", "cuda"] if has_cuda else ["cpu"]


@contextmanager
def instruction_set(name: str) -> Iterator[None]:
    """Runs the CPU kernels of one instruction set."""
    before = _C.isa()
    _C.set_isa(name)
    try:
        yield
    finally:
        _C.set_isa(before)


@dataclass
class Problem:
    """Arguments of one call of cross_entropy."""

    logits: Tensor
    target: Tensor
    weight: Tensor | None = None
    alpha: float | Tensor = 0.3
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def class_dim(self) -> int:
        return min(1, self.logits.dim() - 1)

    def loss(self, logits: Tensor, target: Tensor, **more: Any) -> Tensor:
        return pg.cross_entropy(
            logits, target, self.weight, alpha=self.alpha, **self.options, **more
        )

    def expected(self, oracle: Callable[..., Expected], grad_output: Tensor) -> Expected:
        return oracle(
            self.logits,
            self.target,
            grad_output,
            alpha=float(self.alpha),
            weight=self.weight,
            **self.options,
        )

    def grad_output(self, like: Tensor) -> Tensor:
        """A grad_output of any sign and size: nothing may lean on its being 1."""
        return torch.randn(like.shape, generator=generator(1)).to(like)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def make_logits(
    shape: tuple[int, ...], dtype: torch.dtype, device: torch.device | str, seed: int = 0
) -> Tensor:
    """Logits from near-certain to hopeless: a range of about 25 within a row."""
    return (3.0 * torch.randn(shape, generator=generator(seed))).to(device, dtype)


def make_problem(
    shape: tuple[int, ...],
    dtype: torch.dtype,
    device: torch.device | str = "cpu",
    *,
    targets: str = "int64",
    weighted: bool = False,
    ignore_index: int = -100,
    alpha: float | Tensor = 0.3,
    weighted_rows: bool = False,
    seed: int = 0,
    **options: Any,
) -> Problem:
    """Random logits of `shape`; with indices, the first row counts and every fourth is ignored.

    Of weighted rows every fourth has a weight of 0, another than is ignored.
    """
    random = generator(seed)
    class_dim = min(1, len(shape) - 1)
    classes = shape[class_dim]
    rows = shape[:class_dim] + shape[class_dim + 1 :]
    if targets.startswith("int"):
        target = torch.randint(0, max(classes, 1), rows, generator=random)
        ignored = (torch.arange(target.numel()) % 4 == 2).reshape(rows)
        target = torch.where(ignored, ignore_index, target).to(getattr(torch, targets))
        options["ignore_index"] = ignore_index
    else:
        target = (2.0 * torch.randn(shape, generator=random)).softmax(class_dim)
        target = target.to(dtype if targets == "probabilities" else accumulation_type(dtype))
    weight = torch.rand(classes, generator=random) + 0.25 if weighted else None
    if weighted_rows:
        row_weight = torch.rand(rows, generator=random) + 0.25
        skipped = (torch.arange(row_weight.numel()) % 4 == 3).reshape(rows)
        row_weight = torch.where(skipped, 0.0, row_weight)
        options["row_weight"] = row_weight.to(device, accumulation_type(dtype))
    return Problem(
        make_logits(shape, dtype, device, seed),
        target.to(device),
        None if weight is None else weight.to(device, accumulation_type(dtype)),
        alpha,
        options,
    )


def check(problem: Problem) -> None:
    """Loss and gradients are within the promised bounds, and nothing was written that was given."""
    logits = problem.logits.detach().requires_grad_()
    target = problem.target.detach()
    target.requires_grad_(target.is_floating_point())
    given = [logits, target] + ([] if problem.weight is None else [problem.weight])
    before = [(tensor.detach().clone(), tensor._version) for tensor in given]

    loss = problem.loss(logits, target)
    grad_output = problem.grad_output(loss)
    wanted = [tensor for tensor in (logits, target) if tensor.requires_grad]
    gradients = torch.autograd.grad(loss, wanted, grad_output)

    expected = problem.expected(definition, grad_output)
    assert loss.dtype == accumulation_type(logits.dtype)
    assert_loss(loss.detach(), expected.loss)
    assert gradients[0].dtype == logits.dtype
    assert_gradient(gradients[0], expected.gradient, problem.class_dim, expected.terms)
    if expected.target_gradient is not None:
        assert gradients[1].dtype == target.dtype
        assert_gradient(gradients[1], expected.target_gradient, problem.class_dim)
    for tensor, (copy, version) in zip(given, before, strict=True):
        assert tensor._version == version
        torch.testing.assert_close(tensor.detach(), copy, rtol=0, atol=0, equal_nan=True)


def check_log_softmax(
    logits: Tensor, dim: int, *, alpha: float | Tensor = 0.3, dtype: torch.dtype | None = None
) -> None:
    """Log-probabilities and gradient are within the promised bounds, and nothing was written."""
    logits = logits.detach().requires_grad_()
    before = logits.detach().clone()
    output = pg.log_softmax(logits, dim, alpha=alpha, dtype=dtype)
    grad_output = torch.randn(output.shape, generator=generator(1)).to(output)
    (gradient,) = torch.autograd.grad(output, logits, grad_output)

    seen = logits.detach() if dtype is None else logits.detach().to(dtype)
    expected, expected_gradient, terms = log_softmax_definition(
        seen, dim, grad_output, float(alpha)
    )
    assert output.dtype == seen.dtype
    assert gradient.dtype == logits.dtype
    assert_log_probabilities(output.detach(), expected)
    coarser = max(logits.dtype, seen.dtype, key=lambda kind: torch.finfo(kind).eps)
    if logits.dim():
        assert_gradient(gradient.to(coarser), expected_gradient, dim, terms)
    else:
        assert gradient == 0
    torch.testing.assert_close(logits.detach(), before, rtol=0, atol=0, equal_nan=True)


def solve_rows(
    rows: Tensor, target: Tensor, layout: str, weight: Tensor | None = None, **options: Any
) -> tuple[Tensor, Tensor]:
    """Losses (N) and gradients (N, C) of rows (N, C), which the kernels see in either layout.

    "rows" is (N, C) as it is; "inner" is (1, C, N), where a vector runs across rows.
    """
    inner = layout == "inner"
    logits = (rows.T[None].contiguous() if inner else rows).detach().requires_grad_()
    seen_target = target.T[None] if inner else target
    losses = pg.cross_entropy(logits, seen_target, weight, reduction="none", **options)
    (gradients,) = torch.autograd.grad(losses, logits, torch.ones_like(losses))
    return losses.detach().reshape(-1), gradients[0].T if inner else gradients
