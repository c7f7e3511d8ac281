"""Classes sharded over processes: the loss and gradient of one, for one exchange of numbers."""

import functools
import itertools

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from ranks import on_ranks
from sharded_logits import (
    CLASSES,
    ROWS,
    check_bits,
    forget_sizes,
    problem,
    row_weights,
    run,
    shard_of,
    solve,
)

import powergrad_ext as pg
from powergrad_ext.distributed import vocab_parallel_cross_entropy

# How many classes each rank has.
SIZES = {
    1: [(23,)],
    2: [(11, 12), (0, 23), (23, 0), (1, 22)],
    3: [(8, 8, 7), (1, 0, 22)],
    4: [(6, 6, 6, 5), (1, 1, 20, 1), (0, 13, 0, 10)],
}
OPTIONS = {
    "plain": {},
    "weights": {"weight": torch.linspace(0.0, 1.5, CLASSES, dtype=torch.float64)},
    "smoothing": {"label_smoothing": 0.1},
    "all": {
        "weight": torch.linspace(0.2, 1.5, CLASSES),
        "label_smoothing": 0.2,
        "ignore_index": 3,
        "alpha": torch.tensor(0.6),
    },
    "nothing but smoothing": {"label_smoothing": 1.0, "ignore_index": -7},
    "z-loss": {"z_loss": 0.05},
    "of rows": {"row_weight": row_weights(), "z_loss": 1.5, "label_smoothing": 0.1},
}
# Of the loss and of the largest gradient, besides two rounding steps of the gradient's type.
BOUNDS = {torch.float64: 1e-14, torch.float32: 4e-6, torch.bfloat16: 4e-6, torch.float16: 4e-6}


def options_of(name, target):
    options = {"alpha": 0.3, **OPTIONS[name]}
    target = torch.where(target == -7, options.setdefault("ignore_index", -100), target)
    return options, target


def every_combination():
    """In float64 to rounding; the other types against float64 of the same logits."""
    world = dist.get_world_size()
    cases = itertools.product(SIZES[world], BOUNDS, OPTIONS, ("mean", "sum", "none"))
    for turn, (sizes, dtype, name, reduction) in enumerate(cases):
        if dtype != torch.float64 and turn % 3 != len(name) % 3:
            continue  # one reduction is enough
        logits, target = problem(dtype, seed=turn)
        options, target = options_of(name, target)
        if turn % 2 == 0:
            target = target.int()
        grad_output = torch.randn((ROWS,) if reduction == "none" else (), dtype=torch.float64)
        dist.broadcast(grad_output, 0)

        def alone(z, target=target, reduction=reduction, options=options, **more):
            return pg.cross_entropy(z, target, reduction=reduction, **options, **more)

        def together(z, target=target, reduction=reduction, options=options, **more):
            return vocab_parallel_cross_entropy(z, target, reduction=reduction, **options, **more)

        forget_sizes()
        right_loss, right_gradient = solve(alone, logits.double(), grad_output)
        own = shard_of(logits, sizes)
        loss, gradient = solve(together, own, grad_output)
        bound = BOUNDS[dtype]
        assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        torch.testing.assert_close(loss.double(), right_loss, rtol=bound, atol=0)
        whole = shard_of(right_gradient, sizes)
        largest = right_gradient.abs().max().item()
        relative = 2 * torch.finfo(dtype).eps
        torch.testing.assert_close(
            gradient.double(),
            whole,
            rtol=relative,
            atol=max(bound * largest, 1e-12) if dtype != torch.float16 else 1e-7,
        )
        check_bits(loss)
        check_metrics(together, own, alone, logits, bound)
        of_metrics, metrics = together(own.requires_grad_(), return_metrics=True)
        for metric in metrics:  # they are the caller's
            metric.zero_()
        (again,) = torch.autograd.grad(of_metrics, own, grad_output.to(loss.dtype))
        assert torch.equal(of_metrics, loss)
        assert torch.equal(again, gradient)


def check_metrics(together, own, alone, logits, bound):
    """Those of the whole in float64."""
    found = together(own, return_metrics=True)[1]
    right = alone(logits.double(), return_metrics=True)[1]
    for one, other in zip(found[:2], right[:2], strict=True):
        atol = bound * other.nan_to_num(0.0, 0.0, 0.0).abs().max().item()
        torch.testing.assert_close(one.double(), other, rtol=bound, atol=atol, equal_nan=True)
    assert torch.equal(found.correct, right.correct)
    assert not any(metric.requires_grad for metric in found)


def rows_of_weight_zero():
    """Count for nothing, whatever a rank's logits of them are."""
    forget_sizes()
    logits, target = problem()
    row_weight, target = row_weights(), target.clamp(min=0)
    skipped = row_weight == 0
    for bad, rank in itertools.product((torch.nan, torch.inf, -torch.inf), range(2)):
        results = []
        for value in (bad, 1.0):
            own = shard_of(logits, SIZES[2][0]).clone()
            if dist.get_rank() == rank:
                own[skipped] = value
            own.requires_grad_()
            loss, metrics = vocab_parallel_cross_entropy(
                own,
                torch.where(skipped, 10**6, target),
                row_weight=row_weight,
                z_loss=0.1,
                return_metrics=True,
            )
            loss.backward()
            results.append((loss, *metrics, own.grad))
        for one, other in zip(*results, strict=True):
            assert torch.equal(one, other)
        assert not any(metric[skipped].any() for metric in results[0][1:4])


def positions():
    """Classes in dimension 1 of more, and a single row."""
    sizes = SIZES[2][0]
    logits = problem()[0].view(3, 3, CLASSES).transpose(1, 2)
    target = problem()[1].view(3, 3).clamp(min=0)
    for z, y in ((logits, target), (logits[0, :, 0], target[0, 0])):
        dim = min(z.dim() - 1, 1)
        own = z.split(sizes, dim)[dist.get_rank()].clone().requires_grad_()
        alone = z.clone().requires_grad_()
        pg.cross_entropy(alone, y, alpha=0.4).backward()
        vocab_parallel_cross_entropy(own, y, alpha=0.4).backward()
        right = alone.grad.split(sizes, dim)[dist.get_rank()]
        torch.testing.assert_close(own.grad, right, rtol=1e-13, atol=1e-15)


def unusual_logits():
    """Classes that are masked out, on one rank or everywhere; infinity; NaN; no rows."""
    sizes = SIZES[2][0]
    forget_sizes()
    for smoothing in (0.0, 0.1):
        logits, _ = problem()
        target = torch.tensor([0, 22, 0, 22, 5, 6, -100, 0, 1])
        logits[0, 11:] = -torch.inf  # the other rank's
        logits[1, :11] = -torch.inf
        logits[2, :11] = -torch.inf  # and the target with them
        logits[3, :] = -torch.inf
        logits[4, 20] = torch.inf
        logits[5, 1] = torch.nan
        logits[6, 3] = torch.nan  # ignored
        logits[7, 12:] = -torch.inf
        logits[7, 13] = torch.nan
        grad_output = torch.ones(ROWS)

        def loss(z, function, target=target, smoothing=smoothing, **more):
            return function(z, target, reduction="none", label_smoothing=smoothing, **more)

        right = solve(lambda z: loss(z, pg.cross_entropy), logits, grad_output)
        found = solve(
            lambda z: loss(z, vocab_parallel_cross_entropy), shard_of(logits, sizes), grad_output
        )
        torch.testing.assert_close(found[0], right[0], equal_nan=True)
        torch.testing.assert_close(found[1], shard_of(right[1], sizes), equal_nan=True)
        together = functools.partial(loss, function=vocab_parallel_cross_entropy)
        alone = functools.partial(loss, function=pg.cross_entropy)
        check_metrics(together, shard_of(logits, sizes), alone, logits, 1e-13)
        nothing = torch.empty(0, sizes[dist.get_rank()])
        assert vocab_parallel_cross_entropy(nothing, target[:0], reduction="sum") == 0
        assert vocab_parallel_cross_entropy(nothing, target[:0]).isnan()


def confident_rows():
    """What is left of the loss and the gradient at a target of probability almost 1."""
    logits = torch.zeros(4, CLASSES)
    target = torch.tensor([0, 5, 12, 22])
    logits[range(4), target] = torch.tensor([20.0, 30.0, 40.0, 50.0])
    sizes = SIZES[2][0]
    grad_output = torch.ones(4)

    def loss(z, function, **more):
        return function(z, target, reduction="none", alpha=0.5, **more)

    together = functools.partial(loss, function=vocab_parallel_cross_entropy)
    alone = functools.partial(loss, function=pg.cross_entropy)
    right = solve(alone, logits.double(), grad_output)
    found = solve(together, shard_of(logits, sizes), grad_output)
    check_metrics(together, shard_of(logits, sizes), alone, logits, 4e-6)
    torch.testing.assert_close(found[0].double(), right[0], rtol=4e-6, atol=0)
    whole = shard_of(right[1], sizes)
    torch.testing.assert_close(found[1].double(), whole, rtol=4e-6, atol=0)


def no_row_that_counts():
    """The loss of a mean is NaN, and the gradient 0, as of one process; also of no rows."""
    forget_sizes()
    for rows, reduction in itertools.product((ROWS, 0), ("mean", "sum", "none")):
        own = torch.randn(rows, SIZES[2][0][dist.get_rank()], requires_grad=True)
        loss = vocab_parallel_cross_entropy(own, torch.full((rows,), -100), reduction=reduction)
        assert loss.isnan() if reduction == "mean" else (loss == 0).all()
        loss.sum().backward()
        assert (own.grad == 0).all()


def targets_that_weigh_nothing():
    """With label smoothing, a mean and the gradient of rows that count are NaN, as of one rank."""
    forget_sizes()
    logits, _ = problem()
    target = torch.arange(ROWS) % 3
    target[4] = -100
    weight = torch.ones(CLASSES, dtype=torch.float64)
    weight[:3] = 0.0
    options = {"weight": weight, "label_smoothing": 0.1}
    sizes, grad_output = SIZES[2][0], torch.tensor(1.7)
    right = solve(lambda z: F.cross_entropy(z, target, **options), logits, grad_output)
    own = shard_of(logits, sizes)
    found = solve(lambda z: vocab_parallel_cross_entropy(z, target, **options), own, grad_output)
    assert right[0].isnan()
    torch.testing.assert_close(found, (right[0], shard_of(right[1], sizes)), equal_nan=True)


def more_than_one_backward():
    logits, target = problem()
    own = shard_of(logits, SIZES[2][0]).clone().requires_grad_()
    loss = vocab_parallel_cross_entropy(own, target.clamp(min=0), alpha=0.4)
    (first,) = torch.autograd.grad(loss, own, retain_graph=True)
    (second,) = torch.autograd.grad(loss, own, retain_graph=True)
    assert torch.equal(first, second)
    with pytest.raises(RuntimeError, match="create_graph=True is not implemented"):
        torch.autograd.grad(loss, own, create_graph=True)
    with torch.no_grad():
        assert torch.equal(vocab_parallel_cross_entropy(own, target.clamp(min=0)), loss.detach())


def compiled():
    logits, target = problem()
    target = target.clamp(min=0)

    def loss(z, target, row_weight):
        options = {"row_weight": row_weight, "z_loss": 0.1, "return_metrics": True}
        return vocab_parallel_cross_entropy(z, target, alpha=0.4, label_smoothing=0.1, **options)

    def solved(loss):
        own = shard_of(logits, SIZES[2][0]).clone().requires_grad_()
        value, metrics = loss(own, target, row_weights())
        value.backward()
        return value.detach(), *metrics, own.grad

    for dynamic in (False, True):
        torch.compiler.reset()
        found = solved(torch.compile(loss, backend="aot_eager", fullgraph=True, dynamic=dynamic))
        torch.testing.assert_close(found, solved(loss))


ON_TWO = [
    every_combination,
    rows_of_weight_zero,
    positions,
    unusual_logits,
    confident_rows,
    no_row_that_counts,
    targets_that_weigh_nothing,
    more_than_one_backward,
    compiled,
]


@pytest.mark.parametrize(
    ("world", "checks"),
    [
        (1, [every_combination]),
        (2, ON_TWO),
        (3, [every_combination]),
        (4, [every_combination]),
    ],
    ids=["alone", "two", "three", "four"],
)
def test_vocab_parallel(world, checks):
    on_ranks(world, run, checks)


def test_arguments():
    logits, target = problem()
    with pytest.raises(RuntimeError, match="argument 'target' must hold class indices"):
        vocab_parallel_cross_entropy(logits, logits.softmax(1))
    with pytest.raises(TypeError, match="argument 'input' must be Tensor, not list"):
        vocab_parallel_cross_entropy([1.0], target)
    with pytest.raises(ValueError, match=r"init_process_group\(\) was not called"):
        vocab_parallel_cross_entropy(logits, target)
