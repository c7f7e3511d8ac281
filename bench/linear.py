"""Time and memory of the last layer and the loss together, against the matrix products alone."""

from __future__ import annotations

import argparse
import multiprocessing
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path

# As `python bench/linear.py`, from a source tree in which nothing needs to be installed.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench import packages

if __name__ == "__main__":
    packages.require()

import torch
import torch.nn.functional as F
from rich.table import Table
from torch import Tensor, nn
from torch.utils.dlpack import from_dlpack

import powergrad_ext as pg
from bench import command_line, linear_options
from bench.cases import DTYPES
from bench.check import TOLERANCE, WrongResultError
from bench.clock import clock_of
from bench.estimates import Estimate, Samples, estimate
from bench.measure import play, warm_up
from bench.memory import cuda_peak, resident_peak
from bench.peers import (
    ALPHAS,
    UnavailableError,
    heading_of,
    import_untyped,
    is_ours,
    name_of_ours,
)
from bench.recording import recording
from bench.report import Cells, empty_table, in_milliseconds
from bench.result import MISSING, Record, rounded
from bench.step import Step

ROUNDS = 7
"""At least; a step takes seconds."""


@dataclass(frozen=True)
class Case:
    """Rows of so many features, and a layer to so many classes."""

    name: str
    rows: int
    features: int
    classes: int
    dtype: str = "float32"
    device: str = "cpu"

    @property
    def size(self) -> str:
        return f"{self.rows} x {self.features} x {self.classes}, {self.dtype}"

    @property
    def logits_bytes(self) -> int:
        return self.rows * self.classes * DTYPES[self.dtype].itemsize

    @property
    def gradient_bytes(self) -> int:
        """Of what every step has to return."""
        return (self.rows + self.classes) * self.features * DTYPES[self.dtype].itemsize


CASES = {
    case.name: case
    for case in (
        Case("small", 2048, 512, 32000),
        Case("middle", 4096, 2048, 32000),
        Case("gpt2", 4096, 1024, 50257),
        Case("llama2", 8192, 4096, 32000),
        Case("llama3", 2048, 4096, 128256),
    )
}
DEFAULT_CASES = {"cpu": ("small", "gpt2"), "cuda": ("gpt2", "llama2", "llama3")}


class Problem:
    """input (N, H), linear_weight (C, H), as a model leaves them, and target (N)."""

    def __init__(self, case: Case) -> None:
        generator = torch.Generator(case.device).manual_seed(0)

        def random(*shape: int, scale: float = 1.0) -> Tensor:
            values = torch.randn(shape, generator=generator, device=case.device) * scale
            return values.to(DTYPES[case.dtype])

        self.case = case
        self.input = random(case.rows, case.features).requires_grad_()
        self.linear_weight = random(case.classes, case.features, scale=case.features**-0.5)
        self.linear_weight.requires_grad_()
        self.target = torch.randint(
            case.classes, (case.rows,), generator=generator, device=case.device
        )

    def step(self, loss: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Step:
        """Loss and gradients; the latter are asked for, not accumulated."""

        def run() -> tuple[Tensor, ...]:
            value = loss(self.input, self.linear_weight, self.target)
            return torch.autograd.grad(value, (self.input, self.linear_weight))

        return Step(run, as_tensor=lambda gradients: gradients[1])


def products(problem: Problem) -> Step:
    """The floor: the products of forward and backward, the logits taken for their gradient."""
    x, weight = problem.input.detach(), problem.linear_weight.detach()

    def run() -> tuple[Tensor, Tensor]:
        logits = x @ weight.T
        return logits @ weight, logits.T @ x

    return Step(run, as_tensor=lambda gradients: gradients[1])


def composed(input: Tensor, linear_weight: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(F.linear(input, linear_weight), target)


def compiled(problem: Problem) -> Step:
    torch.compiler.reset()
    return problem.step(torch.compile(composed, fullgraph=True, dynamic=False))


def chunked(problem: Problem) -> Step:
    if not hasattr(F, "linear_cross_entropy"):
        raise UnavailableError("torch has it from 2.13")
    options = nn.LinearCrossEntropyOptions()
    return problem.step(partial(F.linear_cross_entropy, options=options))


def jitted_jax(problem: Problem) -> Step:
    if problem.case.device == "cuda":
        raise UnavailableError("measured on a CPU")
    jax, jnp, optax = map(import_untyped, ("jax", "jax.numpy", "optax"))
    tensors = (problem.input.detach(), problem.linear_weight.detach(), problem.target.int())
    x, weight, target = map(jnp.from_dlpack, tensors)

    def loss(x, weight):  # type: ignore[no-untyped-def]
        return optax.softmax_cross_entropy_with_integer_labels(x @ weight.T, target).mean()

    gradients = jax.jit(jax.grad(loss, (0, 1)))
    return Step(
        run=lambda: jax.block_until_ready(gradients(x, weight)),
        as_tensor=lambda found: from_dlpack(found[1]),
    )


def require_cuda(problem: Problem) -> None:
    if problem.case.device != "cuda":
        raise UnavailableError("only for a GPU")


def liger(problem: Problem) -> Step:
    require_cuda(problem)
    functional = import_untyped("liger_kernel.transformers.functional")
    return problem.step(functional.liger_fused_linear_cross_entropy)


def cut(problem: Problem) -> Step:
    require_cuda(problem)
    return problem.step(import_untyped("cut_cross_entropy").linear_cross_entropy)


FLOOR = "products"
PEERS: dict[str, tuple[str, Callable[[Problem], Step]]] = {
    "eager": ("F.linear + F.cross_entropy", lambda problem: problem.step(composed)),
    "compile": ("torch.compile of it", compiled),
    "chunked": ("F.linear_cross_entropy", chunked),
    "jax": ("jitted JAX", jitted_jax),
    "liger": ("Liger", liger),
    "cut": ("Cut Cross-Entropy", cut),
}
DEFAULT_PEERS = tuple(PEERS)
PEERS |= {
    name: (f"ours, α={linear_options.ALPHA:g}, {words}", linear_options.step_with(name))
    for name, (words, _) in linear_options.OPTIONS.items()
}
HEADINGS = {FLOOR: "matrix products alone", **{name: words for name, (words, _) in PEERS.items()}}


def candidates(names: Iterable[str]) -> dict[str, Callable[[Problem], Step]]:
    """The floor, the peers of these names, and ours."""
    makers: dict[str, Callable[[Problem], Step]] = {FLOOR: products}
    makers |= {name: PEERS[name][1] for name in names}
    for alpha in ALPHAS:
        loss = partial(pg.linear_cross_entropy, alpha=alpha)
        makers[name_of_ours(alpha)] = partial(Problem.step, loss=loss)
    return makers


def check(problem: Problem, name: str, found: Tensor) -> None:
    """Nothing is measured that computes something else.

    Raises:
        WrongResultError: the weight's gradient is not the identity's.
    """
    alpha = float(name.rpartition("-")[2]) if is_ours(name) else 1.0
    if name in linear_options.OPTIONS:
        alpha = linear_options.ALPHA
    x, weight = problem.input.detach().float(), problem.linear_weight.detach().float()
    weight.requires_grad_()
    loss = linear_options.identity(problem, F.linear(x, weight), alpha, name)
    (expected,) = torch.autograd.grad(loss, weight)
    error = float((found.float() - expected).abs().max() / expected.abs().max())
    if not error <= TOLERANCE[problem.linear_weight.dtype]:
        raise WrongResultError(f"wrong gradient: off by {error:.1e}")


@dataclass(frozen=True)
class Measurement:
    """Seconds of every round, or the peak of memory in bytes, by peer; why a peer has none."""

    case: Case
    seconds: dict[str, Samples]
    bytes: dict[str, int]
    skipped: dict[str, str]

    def ratio(self, over: str, under: str) -> Estimate:
        return estimate(self.seconds[over] / self.seconds[under])

    def beyond(self, peer: str) -> float:
        """What memory holds at the peak besides inputs and gradients, in units of the logits."""
        return max(self.bytes[peer] - self.case.gradient_bytes, 0) / self.case.logits_bytes

    def as_json(self) -> list[Record]:
        about = {"kind": "linear", **vars(self.case)}
        return [
            *({**about, "peer": p, "seconds": rounded(s)} for p, s in self.seconds.items()),
            *({**about, "peer": p, "bytes": count} for p, count in self.bytes.items()),
            *({**about, "peer": p, "reason": reason} for p, reason in self.skipped.items()),
        ]


def times(case: Case, names: Sequence[str], budget: float) -> Measurement:
    """All in turn, round after round."""
    problem, clock = Problem(case), clock_of(case.device)
    steps, skipped = {}, {}
    for name, make in candidates(names).items():
        try:
            steps[name] = make(problem)
            if name != FLOOR:
                check(problem, name, steps[name].as_tensor(steps[name].run()))
        except ImportError as error:
            skipped[name] = f"{error.name} {MISSING}"
        except UnavailableError as error:
            skipped[name] = str(error)
    ready = [warm_up(name, step, clock, uncounted_calls=0) for name, step in steps.items()]
    return Measurement(case, play(ready, clock, budget, ROUNDS), {}, skipped)


def peaks(case: Case, names: Sequence[str], threads: int) -> Measurement:
    """Each in a process of its own, in which nobody else's freed memory waits to be used again."""
    found, skipped = {}, {}
    for name in candidates(names):
        if name in map(name_of_ours, ALPHAS[1:]):
            continue
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            peak = pool.apply(peak_here, (case, name, threads))
        if isinstance(peak, int):
            found[name] = peak
        else:
            skipped[name] = peak
    return Measurement(case, {}, found, skipped)


def peak_here(case: Case, name: str, threads: int) -> int | str:
    """Bytes, or why there are none. A small step first, for what loads with it."""
    torch.set_num_threads(threads)
    make = candidates(PEERS)[name]
    try:
        make(Problem(Case("tiny", 64, 32, 100, case.dtype, case.device))).run()
        step = make(Problem(case))
        if name in ("compile", "jax"):
            step.run()  # which compiles
    except ImportError as error:
        return f"{error.name} {MISSING}"
    except UnavailableError as error:
        return str(error)
    return cuda_peak(step) if case.device == "cuda" else resident_peak(step)


def cells(measurements: Sequence[Measurement]) -> Cells:
    """A row per case: times, ratios over the floor, and memory beyond inputs and gradients."""
    names = list(dict.fromkeys(n for m in measurements for n in (*m.seconds, *m.bytes)))
    rows = []
    for measurement in measurements:
        case = measurement.case
        if measurement.seconds:
            floor = measurement.seconds.get(FLOOR)
            row = [case.size, "time / products"]
            for name in names:
                known = name in measurement.seconds
                if name == FLOOR and floor is not None:
                    row.append(f"{in_milliseconds(float(estimate(floor).median))} ms")
                else:
                    row.append(str(measurement.ratio(name, FLOOR)) if known else "-")
        else:
            row = [case.size, "memory / logits"]
            row += [
                f"{measurement.beyond(name):.3f}" if name in measurement.bytes else "-"
                for name in names
            ]
        rows.append(row)
    return Cells(["rows x features x classes", "what", *map(heading, names)], rows)


def heading(name: str) -> str:
    return HEADINGS.get(name) or heading_of(name)


def table(measurements: Sequence[Measurement]) -> Table:
    found = cells(measurements)
    result = empty_table("The last layer and the loss, forward and backward", found.headings)
    result.caption = "memory: the peak besides inputs and gradients, in units of the logits"
    for row in found.rows:
        result.add_row(*row)
    return result


def measurements_of(records: Iterable[Record]) -> list[Measurement]:
    """The measurements of a file, in its order."""
    import numpy as np

    found: dict[tuple[Case, str], Measurement] = {}
    for record in records:
        if record["kind"] != "linear" or "reason" in record:
            continue
        case = Case(**{name: record[name] for name in Case.__dataclass_fields__})
        what = "seconds" if "seconds" in record else "bytes"
        measurement = found.setdefault((case, what), Measurement(case, {}, {}, {}))
        if what == "seconds":
            measurement.seconds[record["peer"]] = np.array(record["seconds"])
        else:
            measurement.bytes[record["peer"]] = record["bytes"]
    return list(found.values())


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure times, then memory; print both."""
    options = parse(arguments)
    names = options.case or DEFAULT_CASES[options.device]
    cases = [
        Case(name, c.rows, c.features, c.classes, dtype, options.device)
        for dtype, (name, c) in product(options.dtype, ((name, CASES[name]) for name in names))
    ]
    tasks: dict[str, Callable[[], Measurement]] = {}
    for case in cases:
        tasks[case.size] = partial(times, case, options.peer, options.budget)
        tasks[f"{case.size}: memory"] = partial(peaks, case, options.peer, options.threads)
    with recording(options) as record:
        found = record.collect(tasks)
        record.console.print(table(found))
        for peer, reason in {p: r for m in found for p, r in m.skipped.items()}.items():
            record.console.print(f"{heading(peer)} skipped: {reason}")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = command_line.parser(__doc__)
    command_line.choose(parser, "--case", tuple(CASES), (), "what to compute")
    command_line.choose(parser, "--dtype", tuple(DTYPES), ("float32", "bfloat16"), "types")
    command_line.choose(parser, "--peer", tuple(PEERS), DEFAULT_PEERS, "whom to compare with")
    command_line.add_measuring_options(parser, budget=20.0, per="case and type")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
