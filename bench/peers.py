"""Who is measured: a registry with one short function per implementation.

A function gets a problem and returns the step to time. It imports what it needs, so that a package
that is missing leaves out its peer and nothing else.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch._functorch.config
import torch.nn.functional as F
from torch import Tensor
from torch.utils.dlpack import from_dlpack

import powergrad_ext as pg

from .cases import (
    BACKWARD,
    BACKWARD_ALONE,
    FORWARD,
    FORWARD_ALONE,
    FRESH,
    IN_PLACE,
    LOG_SOFTMAX,
    MODES,
    OF_A_LOSS,
    OF_LOG_SOFTMAX,
    PROBABILITIES,
    SMOOTHING,
    UNREDUCED,
    WEIGHTS,
)
from .problem import Problem
from .step import Step

OURS_PREFIX = "powergrad-"
DEFAULT_ALPHA = 0.3
"""What people get if they say nothing; alpha = 1 does less work."""
ALPHAS = (DEFAULT_ALPHA, 1.0, 0.25)


class UnavailableError(Exception):
    """Says in a few words why a peer cannot take part."""


@dataclass(frozen=True)
class Peer:
    """An entry of the registry.

    Attributes:
        name: on the command line, in files and in profiles.
        heading: in tables, plots and the README; a narrow table breaks it after a comma.
        alpha: None where the group's own loss and gradient are not computed.
    """

    name: str
    heading: str
    make: Callable[[Problem], Step]
    modes: tuple[str, ...]
    alpha: float | None = 1.0


def import_untyped(name: str) -> Any:
    """A module that need not be installed; ImportError if it is not."""
    return importlib.import_module(name)


def function_of(module: Any, problem: Problem) -> Callable[..., Tensor]:
    """What the mode is about, as it is called in torch's, our and the reference's module alike."""
    return module.log_softmax if problem.group.mode in OF_LOG_SOFTMAX else module.cross_entropy


def torch_step(problem: Problem, loss: Callable[..., Tensor]) -> Step:
    """A step of any loss that torch differentiates, called as torch's function of the mode is.

    The gradient is asked for, not accumulated: nothing but the loss is timed.
    """

    def value_at(logits: Tensor) -> Tensor:
        return loss(logits, *problem.arguments, **problem.options)

    if problem.group.mode in FORWARD_ALONE:
        return Step(lambda: value_at(problem.logits.detach()), problem.restore)
    if problem.group.mode in BACKWARD_ALONE:
        return second_backward_step(problem, value_at)

    def run() -> Tensor:
        logits = problem.logits
        (gradient,) = torch.autograd.grad(value_at(logits), logits, problem.grad_output)
        return gradient

    return Step(run, problem.restore)


def second_backward_step(problem: Problem, value_at: Callable[[Tensor], Tensor]) -> Step:
    """The gradient from a graph that forward has left, and that has given it once before."""
    graph: list[Tensor] = []

    def run() -> Tensor:
        output, logits = graph[0], problem.logits
        (gradient,) = torch.autograd.grad(output, logits, problem.grad_output, retain_graph=True)
        return gradient

    def prepare() -> None:
        problem.restore()
        graph[:] = [value_at(problem.logits)]
        run()

    return Step(run, prepare)


def copy(problem: Problem) -> Step:
    """The floor: the logits read once and as much written once, into memory that exists."""
    buffer = torch.empty_like(problem.pristine)
    return Step(lambda: buffer.copy_(problem.logits.detach()), problem.restore)


def eager(problem: Problem) -> Step:
    return torch_step(problem, function_of(F, problem))


def compiled(problem: Problem) -> Step:
    torch.compiler.reset()  # a new shape would otherwise count as a recompilation
    # Backward may then run twice, which only backward alone asks for.
    torch._functorch.config.donated_buffer = problem.group.mode not in BACKWARD_ALONE
    function = function_of(F, problem)
    return torch_step(problem, torch.compile(function, fullgraph=True, dynamic=False))


def jitted_jax(problem: Problem) -> Step:
    group = problem.group
    if group.dtype == "float64":
        raise UnavailableError("float64 is off in JAX by default")
    jax, jnp = map(import_untyped, ("jax", "jax.numpy"))
    if group.device == "cuda" and jax.default_backend() != "gpu":
        raise UnavailableError("this JAX has no GPU")
    function, argument = (jax_log_softmax if group.mode == LOG_SOFTMAX else jax_loss)(problem)
    step, logits = jax.jit(function), jnp.from_dlpack(problem.pristine)
    return Step(
        run=lambda: jax.block_until_ready(step(logits, argument)),
        prepare=lambda: jax.block_until_ready(jnp.copy(logits)),
        as_tensor=lambda result: from_dlpack(jax.tree.leaves(result)[-1]),
        has_own_stream=True,
    )


def jax_loss(problem: Problem) -> tuple[Callable[..., Any], Any]:
    """A function of logits and target, and the target.

    It gives the gradient, in mode forward the loss.
    """
    group = problem.group
    jax, jnp, optax = map(import_untyped, ("jax", "jax.numpy", "optax"))
    target_is_index = group.mode != PROBABILITIES
    target = jnp.from_dlpack(problem.target.int() if target_is_index else problem.target)
    grad_output = None if problem.grad_output is None else jnp.from_dlpack(problem.grad_output)

    def loss(logits: Any, target: Any) -> Any:
        if target_is_index and not group.case.inner:
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, target)
        else:
            if target_is_index:  # as indices, it takes many seconds to compile
                target = jax.nn.one_hot(target, group.case.classes, axis=1, dtype=logits.dtype)
            losses = optax.softmax_cross_entropy(logits, target, axis=1)
        return losses.mean() if grad_output is None else (losses * grad_output).sum()

    return (loss if group.mode == FORWARD else jax.grad(loss)), target


def jax_log_softmax(problem: Problem) -> tuple[Callable[..., Any], Any]:
    """A function of logits and grad_output, and the latter.

    It gives log-probabilities, which XLA would not compute if they were not asked for, and then the
    gradient.
    """
    jax, jnp = map(import_untyped, ("jax", "jax.numpy"))

    def both(logits: Any, grad_output: Any) -> Any:
        output, pull_back = jax.vjp(partial(jax.nn.log_softmax, axis=1), logits)
        return output, *pull_back(grad_output)

    return both, jnp.from_dlpack(problem.grad_output)


def hook(problem: Problem, alpha: float) -> Step:
    """PGT as its authors publish it, a hook on the gradient, but right for any scale of the loss.

    Theirs rebuilds p from the incoming gradient, which holds for one scale only.
    """

    def loss(logits: Tensor, target: Tensor) -> Tensor:
        hooked = logits.view_as(logits)
        value = F.cross_entropy(hooked, target)
        grad_output: list[Tensor] = []

        def transform(gradient: Tensor) -> Tensor:
            p = torch.softmax(alpha * logits.detach(), dim=1)
            row_term = torch.ones((), dtype=p.dtype, device=p.device).expand(target.shape)
            p.scatter_add_(1, target.unsqueeze(1), -row_term.unsqueeze(1))
            return p * (grad_output[0] / target.numel())

        value.register_hook(grad_output.append)
        hooked.register_hook(transform)
        return value

    return torch_step(problem, loss)


def scaled(problem: Problem, alpha: float) -> Step:
    """PGT's gradient as F.cross_entropy has it; the loss is that of other probabilities."""

    def loss(logits: Tensor, target: Tensor, **options: Any) -> Tensor:
        return F.cross_entropy(alpha * logits, target, **options) / alpha

    return torch_step(problem, loss)


def reference(problem: Problem, alpha: float) -> Step:
    return torch_step(problem, partial(function_of(pg.reference, problem), alpha=alpha))


def powergrad(problem: Problem, alpha: float) -> Step:
    options = {"inplace_backward": True} if problem.group.mode == IN_PLACE else {}
    return torch_step(problem, partial(function_of(pg, problem), alpha=alpha, **options))


def without_option(problem: Problem) -> Step:
    """A step of ours on the same data, but without the option that the mode is about."""
    loss = partial(pg.cross_entropy, alpha=DEFAULT_ALPHA)
    return torch_step(problem, lambda logits, target, **_: loss(logits, target))


def require_cuda(problem: Problem) -> None:
    """Leave out a peer that has kernels for a GPU only."""
    if problem.group.device != "cuda":
        raise UnavailableError("only for a GPU")


def require_rows(problem: Problem) -> None:
    """Leave out a peer that takes (rows, classes) only."""
    if problem.group.case.inner:
        raise UnavailableError("only for logits of two dimensions")


def liger(problem: Problem) -> Step:
    """It writes the gradient over the logits in forward, asked or not."""
    require_cuda(problem)
    require_rows(problem)
    functional = import_untyped("liger_kernel.transformers.functional")
    return torch_step(problem, functional.liger_cross_entropy)


def quack(problem: Problem) -> Step:
    require_cuda(problem)
    require_rows(problem)
    in_place = problem.group.mode == IN_PLACE
    loss = import_untyped("quack.cross_entropy").cross_entropy
    return torch_step(problem, partial(loss, inplace_backward=in_place))


def quack_gradient(problem: Problem) -> Step:
    """Its operator below autograd: losses, and the gradient of each, in one pass."""
    require_cuda(problem)
    require_rows(problem)
    operator = import_untyped("quack.cross_entropy").cross_entropy_fwd
    return Step(
        run=lambda: operator(problem.logits.detach(), problem.target, return_dx=True)[-1],
        prepare=problem.restore,
        as_tensor=lambda gradient: gradient / problem.target.numel(),
    )


def flash_attention(problem: Problem) -> Step:
    require_cuda(problem)
    require_rows(problem)
    module = import_untyped("flash_attn.losses.cross_entropy").CrossEntropyLoss
    in_place = problem.group.mode == IN_PLACE
    criterion = module(**problem.options, inplace_backward=in_place)
    return torch_step(problem, lambda logits, target, **_: criterion(logits, target))


def apex(problem: Problem) -> Step:
    require_cuda(problem)
    require_rows(problem)
    function = import_untyped("apex.contrib.xentropy").SoftmaxCrossEntropyLoss

    def loss(logits: Tensor, target: Tensor, reduction: str = "mean") -> Tensor:
        half_to_float = logits.dtype != torch.float32
        losses: Tensor = function.apply(logits, target, 0.0, -100, half_to_float)
        return losses.mean() if reduction == "mean" else losses

    return torch_step(problem, loss)


COPY = Peer("copy", "copy of the logits", copy, MODES, alpha=None)
WITHOUT = Peer(
    "without-option", "ours, without it", without_option, (SMOOTHING, WEIGHTS), alpha=None
)
OUT_OF_PLACE = tuple(mode for mode in MODES if mode != IN_PLACE)
OF_INDICES = (FORWARD, BACKWARD, FRESH, UNREDUCED)

# Those without an in-place backward would do there what they do in a fresh gradient. The one that
# people would replace is measured there as well, as the yardstick.
WITHOUT_PGT = (
    Peer("eager", "F.cross_entropy", eager, OF_A_LOSS),
    Peer("eager-log-softmax", "F.log_softmax", eager, OF_LOG_SOFTMAX),
    Peer("compile", "torch.compile", compiled, OUT_OF_PLACE),
    Peer("jax", "jitted JAX", jitted_jax, (FORWARD, FRESH, UNREDUCED, PROBABILITIES, LOG_SOFTMAX)),
    Peer("liger", "Liger", liger, (FRESH, IN_PLACE)),
    Peer("quack", "quack", quack, (*OF_INDICES, IN_PLACE)),
    Peer("quack-dx", "quack, return_dx", quack_gradient, (FRESH,)),
    Peer("flash-attention", "flash-attention", flash_attention, (*OF_INDICES, IN_PLACE)),
    Peer("apex", "apex", apex, OF_INDICES),
)


def with_pgt(alpha: float) -> tuple[Peer, ...]:
    """How one can have PGT without us, and our specification."""
    return (
        Peer("hook", "PGT, hook", partial(hook, alpha=alpha), (FRESH,), alpha),
        Peer(
            "scaled",
            "PGT, scaled",
            partial(scaled, alpha=alpha),
            (BACKWARD, FRESH, UNREDUCED, PROBABILITIES, SMOOTHING, WEIGHTS),
            alpha,
        ),
        Peer("reference", "PGT, reference", partial(reference, alpha=alpha), OUT_OF_PLACE, alpha),
    )


def ours(alpha: float) -> Peer:
    name = name_of_ours(alpha)
    return Peer(name, heading_of(name), partial(powergrad, alpha=alpha), MODES, alpha)


def name_of_ours(alpha: float) -> str:
    return f"{OURS_PREFIX}{alpha:g}"


def is_ours(name: str) -> bool:
    return name.startswith(OURS_PREFIX)


def heading_of(name: str) -> str:
    """What readers see of whom a file calls by that name, also if it is no longer registered."""
    if is_ours(name):
        return f"ours, α={name.removeprefix(OURS_PREFIX)}"
    return next((peer.heading for peer in (COPY, WITHOUT, *others()) if peer.name == name), name)


def others(alphas: Sequence[float] = ALPHAS) -> tuple[Peer, ...]:
    """All but ours; those that know PGT, at the first of the alphas."""
    return (*WITHOUT_PGT, *with_pgt(alphas[0]))


def registry(alphas: Sequence[float] = ALPHAS) -> tuple[Peer, ...]:
    """The floors, the others, and ours at each alpha."""
    return (COPY, WITHOUT, *others(alphas), *map(ours, alphas))
