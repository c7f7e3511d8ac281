"""row_weight, z_loss and return_metrics where classes or rows are sharded, in real processes."""

import itertools

import pytest
import torch
import torch.distributed as dist
from oracle import definition
from ranks import on_ranks
from row_options import assert_near, make_rows, metrics_of
from sharded_layer import CLASSES as LAYER_CLASSES
from sharded_layer import ROWS as LAYER_ROWS
from sharded_layer import leaves
from sharded_layer import problem as layer_problem
from sharded_logits import Exchanges
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

import powergrad_ext as pg
from powergrad_ext.distributed import vocab_parallel_cross_entropy

ROWS, CLASSES = 9, 23
SIZES = {2: [(11, 12), (0, 23), (1, 22)], 3: [(8, 8, 7), (1, 0, 22)]}
REDUCTIONS = ("mean", "sum", "none")
# Of the largest number; half precision rounds the gradient.
LOSS = {torch.float64: 1e-13, torch.float32: 4e-6, torch.bfloat16: 4e-6}
GRADIENT = LOSS | {torch.bfloat16: 2**-8}
OPTIONS = [
    {},
    {"z_loss": 0.05},
    {"weighted_rows": True, "z_loss": 1.5, "label_smoothing": 0.1},
]


def problem(dtype=torch.float64, smoothed=False):
    logits, target, row_weight = make_rows((ROWS, CLASSES), dtype)
    if smoothed:  # of a class of probability 0 the loss is infinite
        logits[:, 0] = 0.25
    logits[3, 5] = 15.0
    target[3] = 5
    return logits, target, row_weight


def own_part(tensor, sizes):
    return tensor.split(sizes, 1)[dist.get_rank()].clone()


def prepared(options, row_weight, **more):
    options = {"alpha": 0.4, **options, **more}
    if options.pop("weighted_rows", False):
        options["row_weight"] = row_weight
    return options


def every_combination():
    sizes_of = SIZES[dist.get_world_size()]
    for sizes, dtype, chosen, reduction in itertools.product(sizes_of, LOSS, OPTIONS, REDUCTIONS):
        pg.distributed._sizes.clear()
        logits, target, row_weight = problem(dtype, "label_smoothing" in chosen)
        options = prepared(chosen, row_weight, reduction=reduction)
        own = own_part(logits, sizes).requires_grad_()
        loss, metrics = vocab_parallel_cross_entropy(own, target, **options, return_metrics=True)
        grad_output = torch.linspace(-1.0, 2.0, loss.numel()).reshape(loss.shape).to(loss)
        (gradient,) = torch.autograd.grad(loss, own, grad_output)
        right = definition(logits, target, grad_output, **options)
        assert_near(loss.detach(), right[0], LOSS[dtype])
        largest = right[1].abs().max()
        its_right = own_part(right[1], sizes)
        torch.testing.assert_close(
            gradient.double(), its_right, rtol=GRADIENT[dtype], atol=GRADIENT[dtype] * largest
        )
        of_rows = metrics_of(logits, target, options.get("row_weight"))
        for metric, expected in zip(metrics[:2], of_rows[:2], strict=True):
            assert_near(metric, expected, LOSS[dtype])
        assert torch.equal(metrics.correct, of_rows[2])
        assert metrics.correct.any()
        assert not any(metric.requires_grad for metric in metrics)
        alone = vocab_parallel_cross_entropy(own, target, **options)
        assert torch.equal(alone, loss)
        for metric in metrics:  # they are the caller's
            metric.zero_()
        (again,) = torch.autograd.grad(alone, own, grad_output)
        assert torch.equal(again, gradient)


def rows_of_weight_zero():
    """Count for nothing, whatever a rank's logits of them are."""
    sizes = SIZES[2][0]
    pg.distributed._sizes.clear()
    logits, target, row_weight = problem()
    skipped = row_weight == 0
    for bad, rank in itertools.product((torch.nan, torch.inf, -torch.inf), range(2)):
        results = []
        for value in (bad, 1.0):
            own = own_part(logits, sizes)
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


def what_is_communicated():
    """A single gather, of five numbers a row, or of seven with metrics."""
    logits, target, row_weight = problem()
    own = own_part(logits, SIZES[2][0]).requires_grad_()
    vocab_parallel_cross_entropy(own, target)
    with Exchanges() as exchanges:
        vocab_parallel_cross_entropy(own, target, row_weight=row_weight, z_loss=0.1).backward()
        vocab_parallel_cross_entropy(own, target, return_metrics=True)[0].backward()
    assert exchanges.sizes == [1 + 5 * ROWS, 1 + 7 * ROWS]


def arguments_that_differ():
    """An error on every rank, and the next call is a new one."""
    rank = dist.get_rank()
    logits, target, row_weight = problem()
    own = own_part(logits, SIZES[2][0])
    for options in ({"z_loss": 0.1 * rank}, {"row_weight": row_weight if rank else None}):
        with pytest.raises(RuntimeError, match="ranks 0 and 1 of the group"):
            vocab_parallel_cross_entropy(own, target, **options)
    wrong = [
        ({"z_loss": -1.0}, ValueError, "'z_loss' must be finite"),
        ({"row_weight": -torch.ones(ROWS)}, ValueError, "'row_weight' must be finite and >= 0"),
        ({"row_weight": torch.ones(ROWS + 1)}, RuntimeError, "'row_weight' must have a number"),
        (
            {"row_weight": torch.ones(ROWS, requires_grad=True)},
            RuntimeError,
            "derivative for 'row_weight'",
        ),
    ]
    good = {"z_loss": 0.0, "row_weight": torch.ones(ROWS)}
    for (bad, error, words), metrics in itertools.product(wrong, (False, True)):
        options = {**good, **bad} if rank == 1 else good
        expected = (error, words) if rank == 1 else (RuntimeError, "an error of its own")
        with pytest.raises(expected[0], match=expected[1]):
            vocab_parallel_cross_entropy(own, target, **options, return_metrics=metrics)
    assert vocab_parallel_cross_entropy(own, target).isfinite()


def compiled():
    logits, target, row_weight = problem(torch.float32)

    def step(z):
        loss, metrics = vocab_parallel_cross_entropy(
            z, target, row_weight=row_weight, z_loss=0.1, return_metrics=True
        )
        return loss, *metrics

    results = []
    for function in (step, torch.compile(step, backend="aot_eager", fullgraph=True)):
        own = own_part(logits, SIZES[2][0]).requires_grad_()
        found = function(own)
        found[0].backward()
        results.append((*found, own.grad))
    torch.testing.assert_close(*results)


def run(checks):
    for check in checks:
        check()


@pytest.mark.parametrize(
    ("world", "checks"),
    [
        (2, [every_combination]),
        (2, [rows_of_weight_zero, what_is_communicated, arguments_that_differ, compiled]),
        (3, [every_combination]),
    ],
    ids=["two", "two, the rest", "three"],
)
def test_vocab_parallel(world, checks):
    on_ranks(world, run, checks)


# DTensor


def full(tensor):
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def logits_of_rank(mesh):
    logits, target, row_weight = problem(smoothed=True)
    options = {"z_loss": 0.05, "label_smoothing": 0.1, "alpha": 0.4, "return_metrics": True}
    placements = ([Shard(0)], [Shard(1)], [Replicate()])
    for places, reduction, kind in itertools.product(placements, REDUCTIONS, ("indices", "q")):
        of_rows = [Replicate() if place == Shard(1) else place for place in places]
        its_options = options | {"reduction": reduction, "return_metrics": kind == "indices"}
        whole_target = target if kind == "indices" else logits.flip(0).softmax(1)
        of_target = of_rows if kind == "indices" else places
        alone = logits.clone().requires_grad_()
        right = pg.cross_entropy(alone, whole_target, row_weight=row_weight, **its_options)
        given = distribute_tensor(logits, mesh, places).requires_grad_()
        for its_weight in (
            distribute_tensor(row_weight, mesh, of_rows),
            distribute_tensor(row_weight, mesh, [Replicate()]),
            distribute_tensor(row_weight, mesh, of_rows).to_local(),
        ):
            found = pg.cross_entropy(
                given,
                distribute_tensor(whole_target, mesh, of_target),
                row_weight=its_weight,
                **its_options,
            )
            compare(found, right, [given], [alone])


def compare(found, right, given, alone):
    """Loss, metrics if there are some, and gradients."""
    with_metrics = isinstance(found, tuple)
    losses = (found[0], right[0]) if with_metrics else (found, right)
    torch.testing.assert_close(full(losses[0]), losses[1], rtol=1e-12, atol=1e-13)
    if with_metrics:
        for one, other in zip(found[1], right[1], strict=True):
            assert one.shape == other.shape
            torch.testing.assert_close(full(one), other, rtol=1e-12, atol=1e-13)
    gradients = [
        torch.autograd.grad(loss, tensors, torch.full_like(loss, 1.7), retain_graph=True)
        for loss, tensors in zip(losses, (given, alone), strict=True)
    ]
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(full(one), other, rtol=1e-12, atol=1e-12)


def layers(mesh):
    tensors, target = layer_problem()
    row_weight = (torch.arange(LAYER_ROWS) % 4).double()
    weight = torch.linspace(0.2, 1.5, LAYER_CLASSES, dtype=torch.float64)
    cases = itertools.product(
        REDUCTIONS, (Replicate(), Shard(0)), (Replicate(), Shard(0)), (False, True)
    )
    for reduction, of_rows, of_layer, metrics in cases:
        options = {
            "reduction": reduction,
            "z_loss": 0.05,
            "alpha": 0.4,
            "ignore_index": 3,
            "weight": weight,
            "return_metrics": metrics,
        }
        alone = [tensor.clone().requires_grad_() for tensor in tensors]
        right = pg.linear_cross_entropy(
            *alone[:2], target, linear_bias=alone[2], row_weight=row_weight, **options
        )
        given = leaves(tensors, mesh, [of_rows], [of_layer])
        # Rows that are sharded are gathered where classes are.
        local = of_rows if of_layer == Replicate() else Replicate()
        for its_weight in (
            distribute_tensor(row_weight, mesh, [of_rows]),
            distribute_tensor(row_weight, mesh, [local]).to_local(),
        ):
            found = pg.linear_cross_entropy(
                *given[:2],
                distribute_tensor(target, mesh, [of_rows]),
                linear_bias=given[2],
                row_weight=its_weight,
                chunk_rows=4,
                **options,
            )
            compare(found, right, given, alone)


def errors_of_dtensors(mesh):
    rank = dist.get_rank()
    tensors, target = layer_problem()
    given = leaves(tensors, mesh)
    logits = distribute_tensor(problem()[0], mesh, [Shard(1)])
    other_mesh = init_device_mesh("cpu", (1, 2))
    elsewhere = distribute_tensor(torch.ones(ROWS), other_mesh, [Replicate()] * 2)
    with pytest.raises(ValueError, match="'row_weight' must have the device mesh of 'input'"):
        pg.cross_entropy(logits, problem()[1], row_weight=elsewhere)
    learned = distribute_tensor(torch.ones(ROWS), mesh, [Replicate()]).requires_grad_()
    with pytest.raises(RuntimeError, match="derivative for 'row_weight' is not implemented"):
        pg.cross_entropy(logits, problem()[1], row_weight=learned)
    # What only one of them can know of.
    for bad, words in (
        ({"row_weight": -torch.ones(LAYER_ROWS)}, "'row_weight' must be finite and >= 0"),
        ({"z_loss": -1.0}, "'z_loss' must be finite"),
    ):
        options = {"row_weight": torch.ones(LAYER_ROWS), "z_loss": 0.0}
        options |= bad if rank == 1 else {}
        error = (ValueError, words) if rank == 1 else (RuntimeError, "an error of its own")
        with pytest.raises(error[0], match=error[1]):
            pg.linear_cross_entropy(*given[:2], target, **options, return_metrics=True)
    with pytest.raises(RuntimeError, match="ranks 0 and 1 of the group"):
        pg.linear_cross_entropy(*given[:2], target, return_metrics=rank == 1)
    with pytest.raises(RuntimeError, match="ranks 0 and 1 of the group"):
        pg.linear_cross_entropy(*given[:2], target, z_loss=0.1 * rank)
    assert full(pg.linear_cross_entropy(*given[:2], target)).isfinite()


def on_a_mesh():
    mesh = init_device_mesh("cpu", (2,))
    for check in (logits_of_rank, layers, errors_of_dtensors):
        check(mesh)


def test_dtensors():
    on_ranks(2, on_a_mesh)
