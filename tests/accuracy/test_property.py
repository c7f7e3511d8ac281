"""Any shape, strides, type and options at once, against the float64 identity.

By way of the definition in long double, which has the digits to judge by (see oracle.py).
Bounded in time by the number and size of the examples, which are the same in every run;
--level=rest for many more.
"""

import pytest
import torch
from cases import (
    DTYPES,
    TARGET_KINDS,
    check,
    check_log_softmax,
    devices,
    instruction_set,
    make_logits,
    make_problem,
)
from oracle import definition, identity

from powergrad_ext._native import _C

hypothesis = pytest.importorskip("hypothesis")
some = hypothesis.strategies

INSTRUCTION_SETS = some.sampled_from(_C.available_isas())
ALPHAS = some.one_of(some.sampled_from([1.0, 0.5, 0.25, 0.3]), some.floats(0.05, 3.0))


@some.composite
def shapes(draw):
    """(C), (N, C) or (N, C, d1, ..., dK), now and then empty, of at most some thousand logits."""
    classes = draw(some.one_of(some.integers(1, 40), some.sampled_from([63, 64, 65, 300])))
    sizes = draw(some.lists(some.integers(0, 9), max_size=3))
    return (*sizes[:1], classes, *sizes[1:])


@some.composite
def views(draw, tensor):
    """The same numbers elsewhere: any order of dimensions, gaps and an offset in memory."""
    order = draw(some.permutations(range(tensor.dim())))
    steps = [draw(some.integers(1, 3)) for _ in order]
    offset = draw(some.integers(0, 3))
    sizes = [tensor.shape[d] * step + offset for d, step in zip(order, steps, strict=True)]
    spaced = tensor.new_full(sizes, 7)[tuple(slice(offset, None, step) for step in steps)]
    for position, d in enumerate(order):
        spaced = spaced.narrow(position, 0, tensor.shape[d])
    view = spaced.permute([order.index(d) for d in range(tensor.dim())])
    return view.copy_(tensor)


@some.composite
def problems(draw):
    shape = draw(shapes())
    classes = shape[min(1, len(shape) - 1)]
    problem = make_problem(
        shape,
        draw(some.sampled_from(DTYPES)),
        draw(some.sampled_from(devices())),
        targets=draw(some.sampled_from(TARGET_KINDS)),
        weighted=draw(some.booleans()),
        ignore_index=draw(some.sampled_from([-100, -1, 0, classes - 1, classes + 5])),
        alpha=draw(ALPHAS),
        seed=draw(some.integers(0, 2**16)),
        reduction=draw(some.sampled_from(["none", "mean", "sum"])),
        label_smoothing=draw(some.sampled_from([0.0, 0.1, 1.0])),
        weighted_rows=draw(some.booleans()),
        z_loss=draw(some.sampled_from([0.0, 0.0, 0.05])),
    )
    if "row_weight" in problem.options:
        problem.options["row_weight"] = draw(views(problem.options["row_weight"]))
    problem.logits = draw(views(problem.logits))
    problem.target = draw(views(problem.target))
    return problem


@hypothesis.given(problems(), INSTRUCTION_SETS)
def test_cross_entropy(problem, isa):
    with instruction_set(isa):
        check(problem)
    if "row_weight" in problem.options or problem.options["z_loss"]:
        return  # torch has neither
    del problem.options["z_loss"]
    grad_output = problem.grad_output(problem.loss(problem.logits, problem.target))
    torch.testing.assert_close(
        problem.expected(definition, grad_output)[:3],
        problem.expected(identity, grad_output)[:3],
        rtol=1e-9,
        atol=1e-9,
        equal_nan=True,
    )


@hypothesis.given(some.data(), INSTRUCTION_SETS)
def test_log_softmax(data, isa):
    shape = data.draw(shapes())
    dtype = data.draw(some.sampled_from(DTYPES))
    logits = make_logits(shape, dtype, data.draw(some.sampled_from(devices())))
    with instruction_set(isa):
        check_log_softmax(
            data.draw(views(logits)),
            data.draw(some.integers(-len(shape), len(shape) - 1)),
            alpha=data.draw(ALPHAS),
            dtype=data.draw(some.sampled_from([None, torch.float32])),
        )
