"""The promised accuracy at every size where a kernel changes its path, with every instruction set.

Bounds: see oracle.py.
"""

import pytest
import torch
from cases import TARGET_KINDS, check, make_problem

SIZES = {
    "one class": (5, 1),
    "two classes, the smallest softmax": (9, 2),
    "less than any vector": (6, 3),
    "one AVX2 vector of float32": (3, 8),
    "digits": (64, 10),
    "one AVX-512 vector of float32": (3, 16),
    "vectors and a tail of one": (5, 33),
    "a tail of all but one": (5, 63),
    "ImageNet": (7, 1000),
    "one chunk but one": (3, 2047),
    "one whole chunk": (3, 2048),
    "a chunk and one": (3, 2049),
    "Llama 2": (3, 32000),
    "GPT-2, odd": (3, 50257),
    "Llama 3": (2, 128256),
    "one row for all threads, the largest promised": (1, 262144),
}
INNER_SIZES = {
    "one row with an inner dimension": (1, 7, 1),
    "less rows than a vector has lanes": (2, 5, 3),
    "an AVX-512 vector of rows": (2, 5, 16),
    "a tail of rows": (2, 21, 19),
    "Cityscapes, two inner dimensions": (1, 19, 13, 11),
    "more classes than one run of a sum": (1, 300, 5),
    "a long column": (1, 9000, 3),
}


def sizes(table):
    return pytest.mark.parametrize("shape", table.values(), ids=table.keys())


@sizes({**SIZES, **INNER_SIZES})
def test_index_targets(shape, dtype, device, isa):
    check(make_problem(shape, dtype, device, reduction="none"))


@pytest.mark.parametrize("targets", TARGET_KINDS[2:])
@sizes(
    {name: SIZES[name] for name in ("less than any vector", "a tail of all but one", "GPT-2, odd")}
    | {name: INNER_SIZES[name] for name in ("a tail of rows", "more classes than one run of a sum")}
)
def test_probability_targets(shape, targets, dtype, device, isa):
    check(make_problem(shape, dtype, device, targets=targets, reduction="none", weighted=True))


@sizes(
    {name: SIZES[name] for name in ("digits", "a chunk and one", "Llama 3")}
    | {name: INNER_SIZES[name] for name in ("a tail of rows", "a long column")}
)
def test_smoothed_targets(shape, dtype, device, isa):
    """Smoothing gives every class mass, so the loss adds as many terms as there are classes."""
    check(make_problem(shape, dtype, device, label_smoothing=0.1, weighted=True))


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_many_rows(reduction, dtype, device):
    """More rows than one partial sum holds: the reduction over rows keeps its accuracy too."""
    check(make_problem((20000, 10), dtype, device, reduction=reduction, weighted=True))


@pytest.mark.parametrize("shape", [(4, 128256), (4, 4000, 4)], ids=["rows", "inner"])
def test_every_class_counts(shape, device, isa):
    """Equal logits: every one of the terms is as large, which is where float32 sums drift."""
    problem = make_problem(shape, torch.float32, device, reduction="none")
    problem.logits.fill_(0.7)
    check(problem)
