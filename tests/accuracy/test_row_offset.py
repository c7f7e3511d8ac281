"""A constant added to a row changes nothing but the rounding of the logits themselves.

With z log2(e) - max log2(e) folded into one multiply-add, an offset of 2^20 costs 3 % of a sum.
"""

import pytest
import torch
from cases import check, make_problem

SHAPES = {"rows": (5, 300), "inner": (2, 30, 19)}


@pytest.mark.parametrize("offset", [2.0**20, -(2.0**20)])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
@pytest.mark.parametrize("alpha", [1.0, 0.25, 0.3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_as_accurate_as_without(dtype, alpha, shape, offset, device, isa):
    problem = make_problem(shape, dtype, device, alpha=alpha, reduction="none")
    problem.logits += offset
    check(problem)
    check(make_problem_with(problem, label_smoothing=0.1))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_at_the_largest_useful_offset(dtype, device, isa):
    """At 1024, bfloat16 has steps of 8 and float16 of 1: rows of a few different values."""
    problem = make_problem((5, 300), dtype, device, reduction="none")
    problem.logits += 1024.0
    check(problem)


def make_problem_with(problem, **options):
    problem.options = problem.options | options
    return problem
