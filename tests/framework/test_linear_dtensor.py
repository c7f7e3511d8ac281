"""The last layer sharded over its classes and fused with the loss, in real processes."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from ranks import on_ranks
from sharded_layer import CLASSES, ROWS, WIDTH, leaves, problem, solve
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

import powergrad_ext as pg

CHUNK_ROWS = 4
OPTIONS = {
    "plain": {},
    "all": {
        "weight": torch.linspace(0.0, 1.5, CLASSES, dtype=torch.float64),
        "label_smoothing": 0.1,
        "ignore_index": 3,
    },
    "capped": {"logit_scale": 0.7, "softcap": 2.0},
    "of rows": {"row_weight": (torch.arange(ROWS) % 4).double(), "z_loss": 0.05, "ignore_index": 3},
}


def check(mesh, of_rows, of_layer, reduction, options, bias=True):
    tensors, target = problem()
    if not bias:
        tensors[2] = None
    rows = torch.linspace(-1.0, 2.0, ROWS, dtype=torch.float64)

    def grad_output(loss):
        whole = rows if reduction == "none" else torch.tensor(1.7)
        whole = whole.to(loss.dtype)
        if not isinstance(loss, DTensor):
            return whole
        placements = [Replicate() if p.is_partial() else p for p in loss.placements]
        return distribute_tensor(whole, mesh, placements, src_data_rank=None)

    alone = [None if tensor is None else tensor.clone().requires_grad_() for tensor in tensors]
    right = solve(alone, target, grad_output, reduction=reduction, **options)
    given = leaves(tensors, mesh, of_rows, of_layer)
    its_target = distribute_tensor(target, mesh, of_rows)
    its_options = {"reduction": reduction, "chunk_rows": CHUNK_ROWS}
    ways = [options]
    if "row_weight" in options:
        # Rows that are sharded are gathered where classes are.
        local = [Replicate() if Shard(0) in of_layer else each for each in of_rows]
        row_weight = options["row_weight"]
        as_dtensor = distribute_tensor(row_weight, mesh, of_rows)
        ways = [
            options | {"row_weight": each}
            for each in (as_dtensor, distribute_tensor(row_weight, mesh, local).to_local())
        ]
    for way in ways:
        with torch.profiler.profile() as profile:
            found = solve(given, its_target, grad_output, **its_options, **way)
        assert_same(found, right)
    with_metrics = {"return_metrics": True}
    right = solve(alone, target, grad_output, reduction=reduction, **options, **with_metrics)
    for way in ways:
        assert_same(
            solve(given, its_target, grad_output, **its_options, **way, **with_metrics), right
        )
    return exchanges(profile)


def assert_same(found, right):
    for one, other in zip(found, right, strict=True):
        assert one.shape == other.shape
        torch.testing.assert_close(one.full_tensor(), other, rtol=1e-12, atol=1e-12)


def exchanges(profile):
    """How many collectives, of those in operators too, which Python's modes do not see."""
    names = [event.name for event in profile.events()]
    return sum(
        name.startswith("_c10d_functional::") and name != "_c10d_functional::wait_tensor"
        for name in names
    )


def sharded(mesh):
    """An exchange for each row chunk, and one by which ranks agree about their arguments."""
    combinations = itertools.product(("mean", "sum", "none"), OPTIONS.values(), (True, False))
    chunks = -(-ROWS // CHUNK_ROWS)
    for reduction, options, bias in combinations:
        seen = check(mesh, [Replicate()], [Shard(0)], reduction, options, bias=bias)
        assert seen == 1 + chunks
    for of_rows, of_layer in itertools.product((Replicate(), Shard(0)), (Replicate(), Shard(1))):
        for options in (OPTIONS["plain"], OPTIONS["of rows"]):
            check(mesh, [of_rows], [of_layer], "mean", options, bias=False)


def default_row_chunks(mesh):
    """A twelfth of the rows, and at least 128, so that the logits never exist as a whole."""
    layer = distribute_tensor(torch.randn(CLASSES, 2), mesh, [Shard(0)]).requires_grad_()
    for count, chunks in ((100, 1), (300, 3), (4096, 13)):
        input = distribute_tensor(torch.randn(count, 2), mesh, [Replicate()])
        with torch.profiler.profile() as profile:
            pg.linear_cross_entropy(input, layer, torch.zeros(count, dtype=torch.int64))
        assert exchanges(profile) == 1 + chunks


def no_row_that_counts(mesh):
    """The loss is NaN for a mean, and every gradient 0, as of a layer that is no DTensor."""
    tensors, _ = problem()
    for (of_rows, of_layer), rows, reduction in itertools.product(
        ((Replicate(), Shard(0)), (Shard(0), Replicate())), (ROWS, 0), ("mean", "sum", "none")
    ):
        given = leaves([tensors[0][:rows], *tensors[1:]], mesh, [of_rows], [of_layer])
        target = distribute_tensor(torch.full((rows,), -100), mesh, [of_rows])
        loss = pg.linear_cross_entropy(
            given[0], given[1], target, linear_bias=given[2], reduction=reduction
        )
        whole = loss.full_tensor()
        assert whole.isnan() if reduction == "mean" else (whole == 0).all()
        whole.sum().backward()
        for tensor in given:
            assert (tensor.grad.full_tensor() == 0).all()


def targets_that_weigh_nothing(mesh):
    """With label smoothing, a mean and its gradients are NaN, as torch's of the same logits."""
    tensors, target = problem()
    target = torch.where(target == 3, -100, target % 3)
    weight = torch.ones(CLASSES, dtype=torch.float64)
    weight[:3] = 0.0
    options = {"weight": weight, "label_smoothing": 0.1}
    alone = [tensor.clone().requires_grad_() for tensor in tensors]
    right = F.cross_entropy(F.linear(*alone), target, **options)
    gradients = torch.autograd.grad(right, alone)
    assert right.isnan()
    for of_rows, of_layer in ((Replicate(), Shard(0)), (Shard(0), Replicate())):
        given = leaves(tensors, mesh, [of_rows], [of_layer])
        its_target = distribute_tensor(target, mesh, [of_rows])
        loss = pg.linear_cross_entropy(*given[:2], its_target, linear_bias=given[2], **options)
        found = [each.full_tensor() for each in (loss, *torch.autograd.grad(loss, given))]
        torch.testing.assert_close(found, [right, *gradients], equal_nan=True)


def saved_tensors(mesh):
    """Hooks decide about all of them; and what forward has computed serves one backward."""
    tensors, target = problem(torch.float32)

    def layer():
        return leaves(tensors, mesh)

    def loss_of(layer, target=target, reduction="mean"):
        return pg.linear_cross_entropy(
            layer[0], layer[1], target, linear_bias=layer[2], reduction=reduction, chunk_rows=5
        )

    for reduction, its_target in itertools.product(
        ("mean", "none"), (target, torch.full_like(target, -100))
    ):
        packed = []

        def pack(tensor, packed=packed):
            packed.append(tensor.shape)  # every other one in another type
            is_turn = len(packed) % 2 == 0 and tensor.is_floating_point()
            return tensor.double() if is_turn else tensor.clone()

        given, alone = layer(), layer()
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            hooked = loss_of(given, its_target, reduction)
        assert given[1].to_local().shape in packed
        hooked.full_tensor().sum().backward()
        loss_of(alone, its_target, reduction).full_tensor().sum().backward()
        for one, other in zip(given, alone, strict=True):
            torch.testing.assert_close(one.grad.full_tensor(), other.grad.full_tensor())
    given = layer()
    value = loss_of(given).full_tensor()
    once = torch.autograd.grad(value, given, retain_graph=True)
    with torch.profiler.profile() as profile:  # the statistics are at hand
        again = torch.autograd.grad(value, given)
    assert exchanges(profile) == 0
    for one, other in zip(once, again, strict=True):
        assert torch.equal(one.to_local(), other.to_local())


def compiled(mesh):
    tensors, target = problem()
    for reduction in ("mean", "none"):

        def gradients(function, reduction=reduction):
            given = leaves(tensors, mesh)
            loss = function(*given, reduction).full_tensor()
            return torch.autograd.grad(loss.sum(), given)

        def loss(input, linear_weight, linear_bias, reduction):
            return pg.linear_cross_entropy(
                input,
                linear_weight,
                target,
                linear_bias=linear_bias,
                reduction=reduction,
                chunk_rows=CHUNK_ROWS,
            )

        for one, other in zip(
            gradients(torch.compile(loss, backend="aot_eager", fullgraph=True)),
            gradients(loss),
            strict=True,
        ):
            torch.testing.assert_close(one.full_tensor(), other.full_tensor())


def two_dimensions(mesh):
    for of_rows, of_layer in (
        ([Shard(0), Replicate()], [Replicate(), Shard(0)]),
        ([Replicate(), Shard(0)], [Shard(0), Replicate()]),
        ([Shard(0), Shard(0)], [Replicate(), Shard(0)]),
        ([Replicate(), Replicate()], [Shard(0), Shard(0)]),
    ):
        for reduction in ("mean", "none"):
            check(mesh, of_rows, of_layer, reduction, OPTIONS["all"])


def refusals(mesh):
    tensors, target = problem()
    layer = distribute_tensor(tensors[1], mesh, [Shard(0)]).requires_grad_()
    input = distribute_tensor(tensors[0], mesh, [Replicate()])
    for placement in (Shard(0), Replicate(), Shard(1)):
        given = distribute_tensor(tensors[1], mesh, [placement])
        with pytest.raises(TypeError, match="argument 'input' must be a DTensor"):
            pg.linear_cross_entropy(tensors[0], given, target)
    other = init_device_mesh("cpu", (1, 2))
    with pytest.raises(ValueError, match="argument 'input' must have the device mesh of 'linear_w"):
        elsewhere = distribute_tensor(tensors[0], other, [Replicate(), Replicate()])
        pg.linear_cross_entropy(elsewhere, layer, target)
    with pytest.raises(ValueError, match="argument 'target' must have the device mesh of 'linear_"):
        elsewhere = distribute_tensor(target, other, [Replicate(), Replicate()])
        pg.linear_cross_entropy(input, layer, elsewhere)
    plain = pg.PowerGradLinearCrossEntropyLoss(WIDTH, CLASSES).double()
    plain.linear.weight = nn.Parameter(layer)  # sharded by hand: nothing says what its rows are
    with pytest.raises(TypeError, match="argument 'input' must be a DTensor"):
        plain(tensors[0], target)
    with pytest.raises(NotImplementedError, match=r"must have shape \(C, H\) and 'input' \(N, H\)"):
        pg.linear_cross_entropy(input[0], layer, target[0])
    with pytest.raises(IndexError, match="out of bounds"):
        pg.linear_cross_entropy(input, layer, target + CLASSES)
    with pytest.raises(NotImplementedError, match="'target' must hold class indices"):
        pg.linear_cross_entropy(input, layer, torch.rand(ROWS, CLASSES).double())
    for reduction in ("mean", "none"):
        loss = pg.linear_cross_entropy(input, layer, target, reduction=reduction).sum()
        with pytest.raises(RuntimeError, match="create_graph=True is not implemented"):
            torch.autograd.grad(loss, layer, create_graph=True)


def arguments_that_differ(mesh):
    """Are found out before anything whose size depends on them is exchanged."""
    tensors, target = problem()
    layer = distribute_tensor(tensors[1], mesh, [Shard(0)])
    input = distribute_tensor(tensors[0], mesh, [Replicate()])
    rank = mesh.get_rank()
    # Of one rank alone: the other is told.
    error, message = ((RuntimeError, "an error of its own"), (IndexError, "out of bounds"))[rank]
    with pytest.raises(error, match=message):
        pg.linear_cross_entropy(input, layer, target + CLASSES * rank)
    for name, valid, invalid in (
        ("chunk_rows", 4, 0),
        ("logit_scale", 1.0, math.inf),
        ("softcap", 2.0, -1.0),
    ):
        with pytest.raises(ValueError, match=name):  # of all ranks: after they agreed
            pg.linear_cross_entropy(input, layer, target, **{name: invalid})
        with pytest.raises(RuntimeError, match="arguments that differ"):
            pg.linear_cross_entropy(input, layer, target, **{name: (valid, invalid)[rank]})
    for options in (
        {"reduction": ("sum", "mean")[rank]},
        {"alpha": 0.3 + rank},
        {"weight": torch.ones(CLASSES) if rank == 0 else None},
        {"label_smoothing": 0.1 * rank},
        {"ignore_index": -100 - rank},
        {"chunk_rows": 4 + rank},
        {"chunk_rows": None if rank else 5},
        {"z_loss": 0.1 * rank},
        {"return_metrics": rank == 1},
    ):
        with pytest.raises(RuntimeError, match="arguments that differ"):
            pg.linear_cross_entropy(input, layer, target, **options)
    for options, words in (
        ({"row_weight": torch.ones(ROWS) - 2 * rank}, "'row_weight' must be finite and >= 0"),
        ({"z_loss": -1.0 * rank}, "'z_loss' must be finite"),
    ):
        error, message = ((RuntimeError, "an error of its own"), (ValueError, words))[rank]
        with pytest.raises(error, match=message):
            pg.linear_cross_entropy(input, layer, target, **options, return_metrics=True)

    def on_each(local, placement):
        return DTensor.from_local(local, mesh, [placement], run_check=False)

    rows = ROWS - rank
    half = (torch.float32, torch.bfloat16)[rank]
    for its_input, its_layer, its_target in (
        (on_each(tensors[0][:rows], Replicate()), layer, target[:rows]),
        (input, on_each(torch.ones(5 + rank, WIDTH).double(), Shard(0)), target % 5),
        (
            on_each(tensors[0].to(half), Replicate()),
            on_each(torch.ones(5, WIDTH, dtype=half), Shard(0)),  # of one size, unlike layer's
            target,
        ),
    ):
        with pytest.raises(RuntimeError, match="arguments that differ"):
            pg.linear_cross_entropy(its_input, its_layer, its_target % 10)
    assert pg.linear_cross_entropy(input, layer, target).full_tensor().isfinite()


def on_two(checks):
    mesh = init_device_mesh("cpu", (2,))
    for each in checks:
        each(mesh)


def on_two_by_two():
    two_dimensions(init_device_mesh("cpu", (2, 2)))


CHECKS = [
    sharded,
    default_row_chunks,
    no_row_that_counts,
    targets_that_weigh_nothing,
    saved_tensors,
    compiled,
    refusals,
    arguments_that_differ,
]


def test_two_ranks():
    on_ranks(2, on_two, CHECKS)


def test_two_by_two():
    on_ranks(4, on_two_by_two)
