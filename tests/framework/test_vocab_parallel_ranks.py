"""Classes sharded over processes: what ranks tell each other, and what they do if they disagree."""

import itertools
import os

import pytest
import torch
import torch.distributed as dist
from ranks import on_ranks
from sharded_logits import (
    CLASSES,
    ROWS,
    Exchanges,
    forget_sizes,
    problem,
    row_weights,
    run,
    shard_of,
    solve,
)
from torch.distributed.tensor.debug import CommDebugMode

import powergrad_ext as pg
from powergrad_ext.distributed import vocab_parallel_cross_entropy

NUMBERS, WITH_METRICS = 5, 7  # that each rank tells of a row
SIZES = (11, 12)  # how many classes each rank has


def groups_of_their_own():
    """Layers with as many classes on this rank and others on the next: sizes go by the group."""
    logits = torch.randn(ROWS, 40, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    for sizes in ((10, 10), (10, 30), (10, 4)):
        group = dist.new_group([0, 1])
        z = logits[:, : sum(sizes)]
        target = torch.arange(ROWS) * 7 % sum(sizes)
        right = solve(lambda z, y=target: pg.cross_entropy(z, y), z, torch.tensor(1.0))

        def loss(z, y=target, group=group):
            return vocab_parallel_cross_entropy(z, y, group=group)

        found = solve(loss, shard_of(z, sizes), torch.tensor(1.0))
        torch.testing.assert_close(found, (right[0], shard_of(right[1], sizes)))


def layers_of_one_group():
    """Layers that are as large on some ranks only: none takes the sizes of another."""
    forget_sizes()
    logits = torch.randn(ROWS, 40, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    turns = [(3, 5), (3, 4), (6, 7), (3, 5), (6, 4), (2, 7), (0, 5), (3, 4), (3, 4)]
    for turn, sizes in enumerate(turns):
        z = logits[:, : sum(sizes)]
        options = {"weight": torch.rand(sum(sizes), generator=torch.Generator().manual_seed(turn))}
        options |= {"label_smoothing": 0.1}
        target = torch.arange(ROWS) * 7 % sum(sizes)

        def loss(z, function, y=target, options=options):
            return function(z, y, **options)

        right = solve(lambda z: loss(z, pg.cross_entropy), z, torch.tensor(1.0))
        own = shard_of(z, sizes)
        found = solve(lambda z: loss(z, vocab_parallel_cross_entropy), own, torch.tensor(1.0))
        torch.testing.assert_close(found, (right[0], shard_of(right[1], sizes)))


def an_error_while_another_rank_asks_for_sizes():
    """Nobody waits for the rank that raises it."""
    forget_sizes()
    rank = dist.get_rank()
    target = torch.arange(ROWS) % 7
    vocab_parallel_cross_entropy(torch.randn(ROWS, 3), target % 6)
    own = torch.randn(ROWS, (3, 4)[rank])
    expected = (ValueError, "alpha must be") if rank == 0 else (RuntimeError, "error of its own")
    with pytest.raises(expected[0], match=expected[1]):
        vocab_parallel_cross_entropy(own, target, alpha=(-1.0, 0.3)[rank])
    with pytest.raises(RuntimeError, match="ranks 0 and 1 of the group"):
        vocab_parallel_cross_entropy(own, target, label_smoothing=0.1 * rank)
    assert vocab_parallel_cross_entropy(own, target).isfinite()
    with pytest.raises(RuntimeError, match=r"under torch\.compile a group that another layer"):
        torch.compile(vocab_parallel_cross_entropy, backend="eager")(torch.randn(ROWS, 9), target)


def what_is_communicated():
    """Sizes once; then a single gather of some numbers a row, and nothing in backward."""
    logits, target = problem()
    target = target.clamp(min=0)
    own = shard_of(logits, SIZES).clone().requires_grad_()
    vocab_parallel_cross_entropy(own, target)
    options = {"row_weight": row_weights(), "z_loss": 0.1}
    with CommDebugMode() as communication, Exchanges() as exchanges:
        vocab_parallel_cross_entropy(own, target).backward()
        vocab_parallel_cross_entropy(own, target, **options).backward()
        vocab_parallel_cross_entropy(own, target, return_metrics=True)[0].backward()
    assert communication.get_total_counts() == 3
    assert exchanges.sizes == [1 + of_row * ROWS for of_row in (NUMBERS, NUMBERS, WITH_METRICS)]


def arguments_that_differ():
    """An error on every rank, and the next call is a new one."""
    rank = dist.get_rank()
    logits, target = problem()
    target = target.clamp(min=0)
    own = shard_of(logits, SIZES)
    different = [
        {"ignore_index": -1 - rank},
        {"label_smoothing": 0.1 * rank},
        {"reduction": ("sum", "mean")[rank]},
        {"alpha": 0.3 + rank},
        {"weight": torch.ones(CLASSES) if rank == 0 else None},
        {"z_loss": 0.1 * rank},
        {"row_weight": row_weights() if rank else None},
    ]
    for options in different:
        with pytest.raises(RuntimeError, match="ranks 0 and 1 of the group"):
            vocab_parallel_cross_entropy(own, target, **options)
    with pytest.raises(RuntimeError, match="ranks 0 and 1 of the group"):
        vocab_parallel_cross_entropy(own.to((torch.float32, torch.bfloat16)[rank]), target)
    # Equal numbers of different types are the same.
    equal = {"ignore_index": (1, True)[rank], "label_smoothing": (0, 0.0)[rank]}
    assert vocab_parallel_cross_entropy(own, target, **equal).isfinite()
    # What only one of them can know of.
    weights = torch.ones(ROWS)
    wrong = [
        ({"target": target[rank:]}, ValueError, "to match target batch_size"),
        ({"target": target + 50 * rank}, IndexError, "out of bounds"),
        ({"alpha": -1.0 * rank}, ValueError, "alpha must be finite"),
        ({"reduction": ("sum", "average")[rank]}, ValueError, "average is not a valid value"),
        ({"label_smoothing": 2.0 * rank}, RuntimeError, "must be between 0.0 and 1.0"),
        ({"weight": torch.ones(CLASSES + rank)}, RuntimeError, "for all 23 classes"),
        ({"z_loss": -1.0 * rank}, ValueError, "'z_loss' must be finite"),
        ({"row_weight": weights - 2 * rank}, ValueError, "'row_weight' must be finite and >= 0"),
        ({"row_weight": torch.ones(ROWS + rank)}, RuntimeError, "'row_weight' must have a number"),
        (
            {"row_weight": weights.clone().requires_grad_(rank == 1)},
            RuntimeError,
            "derivative for 'row_weight'",
        ),
    ]
    for (changed, error, message), metrics in itertools.product(wrong, (False, True)):
        arguments = {"target": target, "alpha": 0.3, "return_metrics": metrics, **changed}
        if arguments["alpha"] == 0:
            arguments["alpha"] = 0.3
        expected = (error, message) if rank == 1 else (RuntimeError, "an error of its own")
        with pytest.raises(expected[0], match=expected[1]):
            vocab_parallel_cross_entropy(own, **arguments)
    assert vocab_parallel_cross_entropy(own, target).isfinite()


def a_group_without_this_process():
    group = dist.new_group([0])
    own = torch.randn(3, 4)
    target = torch.tensor([0, 1, 3])
    if dist.get_rank() == 0:
        found = vocab_parallel_cross_entropy(own, target, group=group)
        torch.testing.assert_close(found, pg.cross_entropy(own, target))
    else:
        with pytest.raises(ValueError, match="argument 'group' must be a process group that this"):
            vocab_parallel_cross_entropy(own, target, group=group)


def a_rank_that_dies():
    """An error within the group's timeout, not a number."""
    own = shard_of(problem()[0], SIZES)
    target = problem()[1].clamp(min=0)
    vocab_parallel_cross_entropy(own, target)
    if dist.get_rank() == 1:
        os._exit(0)
    with pytest.raises(RuntimeError):
        vocab_parallel_cross_entropy(own, target)
    os._exit(0)


CHECKS = [
    what_is_communicated,
    arguments_that_differ,
    a_group_without_this_process,
    groups_of_their_own,
    layers_of_one_group,
    an_error_while_another_rank_asks_for_sizes,
]


@pytest.mark.parametrize("checks", [CHECKS, [a_rank_that_dies]], ids=["agreement", "death"])
def test_two_ranks(checks):
    on_ranks(2, run, checks)
