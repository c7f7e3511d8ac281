"""Who is measured: a registry with one short function per implementation.

A function gets a problem and returns the step to time. It imports what it needs, so that a package
that is missing leaves out its peer and nothing else.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.dlpack import from_dlpack

import powergrad_ext as pg

from .cases import FRESH, MODES, Problem


class UnavailableError(Exception):
    """Says in a few words why a peer cannot take part."""


@dataclass(frozen=True)
class Step:
    """One implementation at one problem.

    Attributes:
        run: what is timed; returns the gradient (for the floor: the copy).
        prepare: runs before each timed call, untimed. It leaves the caches and the implementation's
            own threads as a training step would: the logits just written.
        as_tensor: turns what run returns into a tensor, untimed.
    """

    run: Callable[[], Any]
    prepare: Callable[[], object]
    as_tensor: Callable[[Any], Tensor] = lambda gradient: gradient


@dataclass(frozen=True)
class Peer:
    """An entry of the registry; alpha is None where no gradient is computed."""

    name: str
    heading: str
    make: Callable[[Problem], Step]
    modes: tuple[str, ...]
    alpha: float | None = 1.0


def ours(alpha: float) -> str:
    """Our name in the registry at that alpha."""
    return f"powergrad-{alpha:g}"


def import_untyped(name: str) -> Any:
    """A module that need not be installed; ImportError if it is not."""
    return importlib.import_module(name)


def gradient_step(problem: Problem, loss: Callable[[Tensor, Tensor], Tensor]) -> Step:
    """A step of any loss that torch differentiates.

    The gradient is asked for, not accumulated: nothing but the loss is timed.
    """

    def run() -> Tensor:
        logits = problem.logits
        (gradient,) = torch.autograd.grad(loss(logits, problem.target), logits)
        return gradient

    return Step(run, problem.restore)


def copy(problem: Problem) -> Step:
    """The floor: the logits read once and as much written once, into memory that exists."""
    buffer = torch.empty_like(problem.pristine)
    return Step(lambda: buffer.copy_(problem.logits.detach()), problem.restore)


def eager(problem: Problem) -> Step:
    return gradient_step(problem, F.cross_entropy)


def compiled(problem: Problem) -> Step:
    torch.compiler.reset()  # a new shape would otherwise count as a recompilation
    return gradient_step(problem, torch.compile(F.cross_entropy, fullgraph=True, dynamic=False))


def jitted_jax(problem: Problem) -> Step:
    if problem.pristine.dtype == torch.float64:
        raise UnavailableError("float64 is off in JAX by default")
    jax, jnp, optax = map(import_untyped, ("jax", "jax.numpy", "optax"))

    def loss(logits: Any, target: Any) -> Any:
        return optax.softmax_cross_entropy_with_integer_labels(logits, target).mean()

    step = jax.jit(jax.value_and_grad(loss))
    logits = jnp.from_dlpack(problem.pristine)
    target = jnp.from_dlpack(problem.target.int())
    return Step(
        run=lambda: jax.block_until_ready(step(logits, target))[1],
        prepare=lambda: jax.block_until_ready(jnp.copy(logits)),
        as_tensor=from_dlpack,
    )


def powergrad(problem: Problem, alpha: float) -> Step:
    loss = partial(pg.cross_entropy, alpha=alpha, inplace_backward=problem.in_place)
    return gradient_step(problem, loss)


COPY = Peer("copy", "copy", copy, MODES, alpha=None)
OURS = tuple(
    Peer(ours(alpha), f"α={alpha:g}", partial(powergrad, alpha=alpha), MODES, alpha)
    for alpha in (1.0, 0.3, 0.25)
)
# Those without an in-place backward would do there what they do in a fresh gradient. The one that
# people would replace is measured there as well, as the yardstick.
OTHERS = (
    Peer("eager", "eager", eager, MODES),
    Peer("compile", "compiled", compiled, (FRESH,)),
    Peer("jax", "jitted JAX", jitted_jax, (FRESH,)),
)
PEERS = (COPY, *OTHERS, *OURS)
