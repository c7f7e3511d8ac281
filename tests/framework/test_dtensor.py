"""DTensor logits, in real processes: what one process computes, and what is communicated for it."""

import functools
import itertools

import pytest
import torch
import torch.nn.functional as F
from ranks import on_ranks
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor
from torch.distributed.tensor.debug import CommDebugMode
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    loss_parallel,
    parallelize_module,
)

import powergrad_ext as pg

ROWS, CLASSES = 7, 5  # rows that two ranks cannot share evenly
OPTIONS = {
    "plain": {},
    "weights, smoothing": {"weight": torch.linspace(0.5, 1.5, CLASSES), "label_smoothing": 0.1},
    "ignored": {"ignore_index": 2},
    "of rows": {"row_weight": (torch.arange(ROWS) % 4).double(), "z_loss": 0.05},
}


def logits_and_target(kind="indices"):
    random = torch.Generator().manual_seed(0)
    logits = torch.randn(ROWS, CLASSES, dtype=torch.float64, generator=random)
    if kind == "probabilities":
        return logits, logits.flip(0).softmax(1)
    return logits, torch.randint(CLASSES, (ROWS,), generator=random)


def solve(loss, logits, target, grad_output=1.7):
    """The loss, its gradient and its metrics, if there are any."""
    returned = loss(logits, target)
    value, metrics = returned if isinstance(returned, tuple) else (returned, ())
    # Not .grad: torch 2.11 gathers a leaf's gradient whose shards are unequal.
    gradients = torch.autograd.grad(value, logits, torch.full_like(value, grad_output))
    return value, *gradients, *metrics


def check_cross_entropy(mesh, placements, kind, reduction, options):
    logits, target = logits_and_target(kind)
    if kind == "probabilities":
        options = {name: value for name, value in options.items() if name != "ignore_index"}

    options = options | {"reduction": reduction, "alpha": 0.4}

    def loss(logits, target, **more):
        return pg.cross_entropy(logits, target, **(options | more))

    right = solve(loss, logits.clone().requires_grad_(), target)
    given = distribute_tensor(logits, mesh, placements).requires_grad_()
    of_rows = [Replicate() if placement == Shard(1) else placement for placement in placements]
    its_target = distribute_tensor(target, mesh, placements if kind == "probabilities" else of_rows)
    ways = [{}]
    if "row_weight" in options:
        own = distribute_tensor(options["row_weight"], mesh, of_rows)
        whole = distribute_tensor(options["row_weight"], mesh, [Replicate()] * mesh.ndim)
        ways = [{"row_weight": each} for each in (own, whole, own.to_local())]
    for its_options in ways:
        with CommDebugMode() as communication:
            found = solve(functools.partial(loss, **its_options), given, its_target)
        assert_whole(found, [right[0].detach(), right[1]])
        assert found[1].placements == given.placements
    if kind == "indices":
        with_metrics = functools.partial(loss, return_metrics=True)
        right = solve(with_metrics, logits.clone().requires_grad_(), target)
        for its_options in ways:
            found = solve(functools.partial(with_metrics, **its_options), given, its_target)
            assert_whole(found, [tensor.detach() for tensor in right])
    return communication


def assert_whole(found, right):
    whole = [tensor.full_tensor().detach() for tensor in found]
    torch.testing.assert_close(whole, right, rtol=1e-12, atol=1e-14)


def check_log_softmax(mesh, placements, dim):
    logits, _ = logits_and_target()
    grad_output = logits.flip(1).abs()
    given = distribute_tensor(logits, mesh, placements).requires_grad_()
    alone = logits.clone().requires_grad_()
    for each, g in (
        (given, distribute_tensor(grad_output, mesh, placements)),
        (alone, grad_output),
    ):
        (pg.log_softmax(each, dim, alpha=0.4) * g).sum().backward()
    torch.testing.assert_close(given.grad.full_tensor(), alone.grad, rtol=1e-12, atol=1e-14)


def every_combination(mesh):
    for placements in ([Replicate()], [Shard(0)]):
        for kind, reduction, options in itertools.product(
            ("indices", "probabilities"), ("none", "sum", "mean"), OPTIONS.values()
        ):
            seen = check_cross_entropy(mesh, placements, kind, reduction, options)
            # A mean of rows that are sharded adds up what it divides by, one number.
            is_shared_mean = reduction == "mean" and placements == [Shard(0)]
            assert seen.get_total_counts() == is_shared_mean
        for dim in (0, 1, -1):
            check_log_softmax(mesh, placements, dim)


def sharded_classes(mesh):
    """One exchange forward, none backward; and classes that the ranks cannot share evenly."""
    for kind, reduction, options in itertools.product(
        ("indices", "probabilities"), ("none", "sum", "mean"), OPTIONS.values()
    ):
        seen = check_cross_entropy(mesh, [Shard(1)], kind, reduction, options)
        assert seen.get_total_counts() == 1
    for dim in (0, 1, -1):
        check_log_softmax(mesh, [Shard(1)], dim)
    logits, target = logits_and_target("probabilities")
    its_target = distribute_tensor(target, mesh, [Shard(1)]).requires_grad_()
    with pytest.raises(NotImplementedError, match="the derivative for 'target' is not implemented"):
        pg.cross_entropy(distribute_tensor(logits, mesh, [Shard(1)]), its_target)
    logits, target = logits_and_target()
    given = distribute_tensor(logits, mesh, [Shard(1)])
    with CommDebugMode() as communication:
        pg.log_softmax(given, -1)
    assert communication.get_total_counts() == 1
    # A target that is no DTensor is that of this rank's rows.
    rank = mesh.get_rank()
    for placement, own in (
        (Shard(1), target),
        (Replicate(), target),
        (Shard(0), target.chunk(2)[rank]),
    ):
        found = pg.cross_entropy(distribute_tensor(logits, mesh, [placement]), own)
        torch.testing.assert_close(found.full_tensor(), pg.cross_entropy(logits, target))
    for options in ({"reduction": ("sum", "mean")[rank]}, {"alpha": 0.3 + rank}):
        with pytest.raises(RuntimeError, match="arguments that differ"):
            pg.cross_entropy(given, target, **options)


def second_order(mesh):
    """create_graph, and the gradient of probability targets, where whole rows lie on each rank."""
    logits, target = logits_and_target("probabilities")

    def derivatives(logits, target, loss):
        g = torch.autograd.grad(loss(logits, target), [logits, target], create_graph=True)
        second = torch.autograd.grad((g[0] * g[0]).sum(), [logits, target])
        return [tensor.detach() for tensor in (*g, *second)]

    def cross_entropy(logits, target, reduction):
        loss = pg.cross_entropy(logits, target, reduction=reduction, alpha=0.4)
        return loss if reduction == "mean" else (loss * loss).sum()

    def log_softmax(logits, target):
        return (pg.log_softmax(logits, -1, alpha=0.4) * target).sum()

    losses = [functools.partial(cross_entropy, reduction=name) for name in ("mean", "none")]
    for placement, loss in itertools.product((Replicate(), Shard(0)), (*losses, log_softmax)):
        given = [distribute_tensor(t, mesh, [placement]).requires_grad_() for t in (logits, target)]
        alone = [t.clone().requires_grad_() for t in (logits, target)]
        found = [tensor.full_tensor() for tensor in derivatives(*given, loss)]
        torch.testing.assert_close(found, derivatives(*alone, loss), rtol=1e-11, atol=1e-13)
    for loss in (*losses, log_softmax):
        given = distribute_tensor(logits, mesh, [Shard(1)]).requires_grad_()
        with pytest.raises(RuntimeError, match="create_graph=True is not implemented"):
            torch.autograd.grad(
                loss(given, distribute_tensor(target, mesh, [Shard(1)])), given, create_graph=True
            )


def no_row_that_counts(mesh):
    """The loss of a mean is NaN, and the gradient 0, as of one process."""
    for placement, rows in itertools.product((Replicate(), Shard(0), Shard(1)), (ROWS, 0)):
        logits = torch.randn(rows, CLASSES, dtype=torch.float64)
        given = distribute_tensor(logits, mesh, [placement]).requires_grad_()
        of_rows = Replicate() if placement == Shard(1) else placement
        target = distribute_tensor(torch.full((rows,), -100), mesh, [of_rows])
        for reduction in ("mean", "sum"):
            loss = pg.cross_entropy(given, target, reduction=reduction)
            (gradient,) = torch.autograd.grad(loss, given)
            assert loss.full_tensor().isnan() if reduction == "mean" else loss.full_tensor() == 0
            assert (gradient.full_tensor() == 0).all()


def targets_that_weigh_nothing(mesh):
    """With label smoothing, the mean and the gradient of rows that count are NaN, as torch's."""
    logits = torch.randn(ROWS, CLASSES, dtype=torch.float64)
    target = torch.arange(ROWS) % 2
    target[2] = -100
    weight = torch.tensor([0.0, 0.0, 1.0, 0.5, 2.0], dtype=torch.float64)
    options = {"weight": weight, "label_smoothing": 0.1}
    right = solve(functools.partial(F.cross_entropy, **options), logits.requires_grad_(), target)
    assert right[0].isnan()
    for placement in (Replicate(), Shard(0), Shard(1)):
        given = distribute_tensor(logits.detach(), mesh, [placement]).requires_grad_()
        of_rows = Replicate() if placement == Shard(1) else placement
        its_target = distribute_tensor(target, mesh, [of_rows])
        found = solve(functools.partial(pg.cross_entropy, **options), given, its_target)
        whole = [tensor.full_tensor() for tensor in found]
        torch.testing.assert_close(whole, list(right), equal_nan=True)


def inside_loss_parallel(mesh):
    """Its F.nll_loss would return ordinary cross-entropy's gradient; ours is right in it."""
    logits, target = logits_and_target()
    given = distribute_tensor(logits, mesh, [Shard(1)]).requires_grad_()
    its_target = distribute_tensor(target, mesh, [Replicate()])
    alone = logits.clone().requires_grad_()
    (right,) = torch.autograd.grad(pg.cross_entropy(alone, target, alpha=0.4), alone)
    log_p = pg.log_softmax(given, -1, alpha=0.4)
    with loss_parallel():
        with pytest.raises(RuntimeError, match=r"not supported inside torch's loss_parallel\(\)"):
            pg.log_softmax(given, -1, alpha=0.4)
        loss = F.nll_loss(log_p, its_target)
        with pytest.raises(RuntimeError, match=r"not supported inside torch's loss_parallel\(\)"):
            torch.autograd.grad(loss, given)
        found = torch.autograd.grad(pg.cross_entropy(given, its_target, alpha=0.4), given)[0]
    torch.testing.assert_close(found.full_tensor(), right)
    loss = F.nll_loss(pg.log_softmax(given, -1, alpha=0.4), its_target)
    torch.testing.assert_close(torch.autograd.grad(loss, given)[0].full_tensor(), right)
    other = distribute_tensor(torch.zeros(ROWS), init_device_mesh("cpu", (1, 2)), [Replicate()] * 2)
    with pytest.raises(ValueError, match="argument 'target' must have the device mesh of 'input'"):
        pg.cross_entropy(given, other.long())
    with pytest.raises(ValueError, match="'row_weight' must have the device mesh of 'input'"):
        pg.cross_entropy(given, its_target, row_weight=other)
    learned = distribute_tensor(torch.ones(ROWS), mesh, [Replicate()]).requires_grad_()
    with pytest.raises(RuntimeError, match="derivative for 'row_weight' is not implemented"):
        pg.cross_entropy(given, its_target, row_weight=learned)


def other_dimensions(mesh):
    """Positions and single rows that are sharded; classes of many positions."""
    random = torch.Generator().manual_seed(3)
    logits = torch.randn(3, 5, 7, dtype=torch.float64, generator=random)
    target = torch.randint(5, (3, 7), generator=random)
    grad_output = torch.randn(3, 7, dtype=torch.float64, generator=random)
    alone = logits.clone().requires_grad_()
    right = pg.cross_entropy(alone, target, reduction="none", alpha=0.4)
    right.backward(grad_output)
    for placement, of_rows in ((Shard(1), Replicate()), (Shard(2), Shard(1))):
        given = distribute_tensor(logits, mesh, [placement]).requires_grad_()
        its_target = distribute_tensor(target, mesh, [of_rows])
        its_grad_output = distribute_tensor(grad_output, mesh, [of_rows])
        with CommDebugMode() as communication:
            found = pg.cross_entropy(given, its_target, reduction="none", alpha=0.4)
            (gradient,) = torch.autograd.grad(found, given, its_grad_output)
        assert found.placements == (of_rows,)
        assert communication.get_total_counts() == (placement == Shard(1))
        torch.testing.assert_close(found.full_tensor(), right)
        torch.testing.assert_close(gradient.full_tensor(), alone.grad)
    single = distribute_tensor(logits[0, :, 0].contiguous(), mesh, [Shard(0)])
    found = pg.cross_entropy(single, distribute_tensor(target[0, 0], mesh, [Replicate()]))
    torch.testing.assert_close(found.full_tensor(), pg.cross_entropy(logits[0, :, 0], target[0, 0]))


def compiled(mesh):
    """One graph, and the same numbers."""
    logits, target = logits_and_target()

    def cross_entropy(logits, target):
        return pg.cross_entropy(logits, target, alpha=0.4).full_tensor()

    def log_softmax(logits, target):
        return (pg.log_softmax(logits, -1, alpha=0.4) * logits).sum().full_tensor()

    def gradient(loss, placement, times=1):
        given = distribute_tensor(logits.repeat(times, 1), mesh, [placement]).requires_grad_()
        rows = Shard(0) if placement == Shard(0) else Replicate()
        value = loss(given, distribute_tensor(target.repeat(times), mesh, [rows]))
        return torch.autograd.grad(value, given)[0].to_local()

    for loss, placement in itertools.product((cross_entropy, log_softmax), (Shard(0), Shard(1))):
        found = gradient(torch.compile(loss, backend="aot_eager", fullgraph=True), placement)
        torch.testing.assert_close(found, gradient(loss, placement))
    torch.compiler.reset()
    again = torch.compile(cross_entropy, backend="aot_eager", fullgraph=True)
    for times in (1, 2, 3):  # a number of rows that the compiler then calls a symbol
        found = gradient(again, Shard(1), times)
        torch.testing.assert_close(found, gradient(cross_entropy, Shard(1), times))


def tensor_parallel_model(mesh):
    """Two layers sharded by torch.distributed.tensor.parallel; its loss by ours."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, CLASSES)).double()
    x, target = torch.randn(ROWS, 6, dtype=torch.float64), logits_and_target()[1]
    criterion = pg.PowerGradCrossEntropyLoss(alpha=0.4)
    right = torch.autograd.grad(criterion(model(x), target), list(model.parameters()))
    plan = {
        "0": ColwiseParallel(),
        "2": RowwiseParallel(output_layouts=Shard(0), use_local_output=False),
    }
    parallelize_module(model, mesh, plan)
    criterion(model(x), distribute_tensor(target, mesh, [Shard(0)])).backward()
    found = [parameter.grad.full_tensor() for parameter in model.parameters()]
    torch.testing.assert_close(found, list(right), rtol=1e-11, atol=1e-13)


def two_dimensions():
    """Data times tensor parallel, on four ranks."""
    mesh = init_device_mesh("cpu", (2, 2))
    for first, second in itertools.product((Replicate(), Shard(0), Shard(1)), repeat=2):
        for reduction, options in itertools.product(("mean", "none"), OPTIONS.values()):
            check_cross_entropy(mesh, [first, second], "indices", reduction, options)
        check_log_softmax(mesh, [first, second], 1)


def on_two():
    mesh = init_device_mesh("cpu", (2,))
    for check in CHECKS:
        check(mesh)


CHECKS = [
    every_combination,
    sharded_classes,
    second_order,
    no_row_that_counts,
    targets_that_weigh_nothing,
    inside_loss_parallel,
    other_dimensions,
    compiled,
    tensor_parallel_model,
]


def test_two_ranks():
    on_ranks(2, on_two)


def test_two_by_two():
    on_ranks(4, two_dimensions)
