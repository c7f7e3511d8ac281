"""The last layer sharded over its classes and fused with the loss, in real processes."""

import datetime
import itertools
import os

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    PrepareModuleInput,
    parallelize_module,
)

import powergrad_ext as pg
from powergrad_ext.reference import cross_entropy as reference

ROWS, WIDTH, CLASSES = 13, 6, 11
CHUNK_ROWS = 4
OPTIONS = {
    "plain": {},
    "all": {
        "weight": torch.linspace(0.0, 1.5, CLASSES, dtype=torch.float64),
        "label_smoothing": 0.1,
        "ignore_index": 3,
    },
}


def problem(dtype=torch.float64):
    random = torch.Generator().manual_seed(0)
    shapes = ((ROWS, WIDTH), (CLASSES, WIDTH), (CLASSES,))
    tensors = [torch.randn(shape, dtype=torch.float64, generator=random) for shape in shapes]
    target = torch.randint(CLASSES, (ROWS,), generator=random)
    target[[1, 6, 12]] = 3  # the ignored index of some options
    return [tensor.to(dtype) for tensor in tensors], target


def solve(arguments, target, upstream, **options):
    input, linear_weight, linear_bias = arguments
    loss = pg.linear_cross_entropy(
        input, linear_weight, target, linear_bias=linear_bias, alpha=0.4, **options
    )
    gradients = torch.autograd.grad(
        loss, [tensor for tensor in arguments if tensor is not None], upstream(loss)
    )
    return [loss, *gradients]


def check(mesh, of_rows, of_layer, reduction, options, dtype=torch.float64, bias=True):
    tensors, target = problem(dtype)
    if not bias:
        tensors[2] = None
    rows = torch.linspace(-1.0, 2.0, ROWS, dtype=torch.float64)

    def upstream(loss):
        whole = rows if reduction == "none" else torch.tensor(1.7)
        whole = whole.to(loss.dtype)
        if not isinstance(loss, DTensor):
            return whole
        placements = [Replicate() if p.is_partial() else p for p in loss.placements]
        return distribute_tensor(whole, mesh, placements, src_data_rank=None)

    def leaf(tensor):
        return None if tensor is None else tensor.requires_grad_()

    wide = [leaf(None if tensor is None else tensor.double()) for tensor in tensors]
    right = solve(wide, target, upstream, reduction=reduction, **options)
    given = [
        leaf(None if tensor is None else distribute_tensor(tensor.detach(), mesh, placements))
        for tensor, placements in zip(tensors, (of_rows, of_layer, of_layer), strict=True)
    ]
    its_target = distribute_tensor(target, mesh, of_rows)
    with torch.profiler.profile() as profile:
        found = solve(
            given,
            its_target,
            upstream,
            reduction=reduction,
            chunk_rows=CHUNK_ROWS,
            **options,
        )
    for one, other in zip(found, right, strict=True):
        torch.testing.assert_close(one.full_tensor(), other, rtol=1e-12, atol=1e-12)
    return exchanges(profile)


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
        check(mesh, [of_rows], [of_layer], "mean", {}, bias=False)


def default_row_chunks(mesh):
    """A twelfth of the rows, and at least 128, so that the logits never exist as a whole."""
    layer = distribute_tensor(torch.randn(CLASSES, 2), mesh, [Shard(0)]).requires_grad_()
    for count, chunks in ((100, 1), (300, 3), (4096, 13)):
        input = distribute_tensor(torch.randn(count, 2), mesh, [Replicate()])
        with torch.profiler.profile() as profile:
            pg.linear_cross_entropy(input, layer, torch.zeros(count, dtype=torch.int64))
        assert exchanges(profile) == 1 + chunks


def exact_layer(dtype):
    """Many rows, whose logits are exact in half precision, and a class that is never a target.

    The first feature is 1, so the gradient of its weights is that of the bias.
    """
    random = torch.Generator().manual_seed(0)
    input = torch.randint(0, 2, (600, 4), generator=random)
    input[:, 0] = 1
    linear_weight = torch.randint(-2, 3, (CLASSES, 4), generator=random)
    linear_bias = torch.randint(-1, 2, (CLASSES,), generator=random)
    target = torch.randint(1, CLASSES, (600,), generator=random)
    target[::7] = 3
    return [tensor.to(dtype) for tensor in (input, linear_weight, linear_bias)], target


def check_half(found, tensors, target, dtype, options):
    """Each gradient of the logits is right to 2 ulp, and what is summed of them in float32."""
    input, linear_weight, linear_bias = (tensor.double() for tensor in tensors)
    logits = (input @ linear_weight.t() + linear_bias).requires_grad_()
    loss = reference(logits, target, alpha=0.4, **options)
    (gradient,) = torch.autograd.grad(loss, logits)
    torch.testing.assert_close(found[0].double(), loss.detach(), rtol=4e-6, atol=0)
    eps = torch.finfo(dtype).eps
    # float16 cannot hold the gradients of a mean to that precision.
    error = 2 * eps * gradient.abs() + (2**-24 if dtype == torch.float16 else 0)
    right = (gradient @ linear_weight, gradient.t() @ input, gradient.sum(0))
    bounds = (error @ linear_weight.abs(), error.t() @ input.abs(), error.sum(0))
    for one, other, bound in zip(found[1:], right, bounds, strict=True):
        rounding = eps / 2 * other.abs() + 1e-5 * other.abs().max()
        assert ((one.double() - other).abs() <= bound + rounding).all()
    of_weight, of_bias = (one.double() for one in found[2:])
    torch.testing.assert_close(of_weight[:, 0], of_bias, rtol=eps, atol=0)


def half_precision(mesh):
    for dtype in (torch.bfloat16, torch.float16):
        tensors, target = exact_layer(dtype)
        placements = ([Replicate()], [Shard(0)], [Shard(0)])
        given = [
            distribute_tensor(tensor, mesh, of).requires_grad_()
            for tensor, of in zip(tensors, placements, strict=True)
        ]
        for reduction in ("mean", "sum"):
            options = {"reduction": reduction, "ignore_index": 3}
            found = solve(given, target, torch.ones_like, chunk_rows=4, **options)
            assert all(one.dtype == dtype for one in found[1:])
            whole = [one.full_tensor() for one in found]
            check_half(whole, tensors, target, dtype, options)


def autocast(mesh):
    """The layer in bfloat16, as F.linear would have it; float64 stays as it is."""
    tensors, target = exact_layer(torch.float32)
    placements = ([Replicate()], [Shard(0)], [Shard(0)])
    for reduction in ("mean", "none"):
        given = [
            distribute_tensor(tensor, mesh, of).requires_grad_()
            for tensor, of in zip(tensors, placements, strict=True)
        ]
        with torch.autocast("cpu", torch.bfloat16):
            loss, *gradients = solve(
                given, target, torch.ones_like, reduction=reduction, chunk_rows=50
            )
        assert loss.dtype == torch.float32
        found = [loss.sum().full_tensor(), *(gradient.full_tensor() for gradient in gradients)]
        assert all(gradient.dtype == torch.float32 for gradient in gradients)
        options = {"reduction": "sum" if reduction == "none" else reduction}
        check_half(found, tensors, target, torch.bfloat16, options)
    with torch.autocast("cpu", torch.bfloat16):
        check(mesh, [Replicate()], [Shard(0)], "mean", {})


def no_row_that_counts(mesh):
    """The loss is NaN for a mean, and every gradient 0, as of a layer that is no DTensor."""
    tensors, _ = problem()
    for (of_rows, of_layer), rows, reduction in itertools.product(
        ((Replicate(), Shard(0)), (Shard(0), Replicate())), (ROWS, 0), ("mean", "sum", "none")
    ):
        given = [
            distribute_tensor(tensor, mesh, [of]).requires_grad_()
            for tensor, of in (
                (tensors[0][:rows], of_rows),
                (tensors[1], of_layer),
                (tensors[2], of_layer),
            )
        ]
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
        given = [
            distribute_tensor(tensor, mesh, [of]).requires_grad_()
            for tensor, of in zip(tensors, (of_rows, of_layer, of_layer), strict=True)
        ]
        its_target = distribute_tensor(target, mesh, [of_rows])
        loss = pg.linear_cross_entropy(*given[:2], its_target, linear_bias=given[2], **options)
        found = [each.full_tensor() for each in (loss, *torch.autograd.grad(loss, given))]
        torch.testing.assert_close(found, [right, *gradients], equal_nan=True)


def saved_tensors(mesh):
    """Hooks decide about all of them; and what forward has computed serves one backward."""
    tensors, target = problem(torch.float32)

    def layer():
        placements = ([Replicate()], [Shard(0)], [Shard(0)])
        return [
            distribute_tensor(tensor, mesh, of).requires_grad_()
            for tensor, of in zip(tensors, placements, strict=True)
        ]

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
            given = [
                distribute_tensor(tensor, mesh, of).requires_grad_()
                for tensor, of in zip(tensors, ([Replicate()], [Shard(0)], [Shard(0)]), strict=True)
            ]
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


WHOLE_ROWS = PrepareModuleInput(
    input_layouts=(Replicate(), None), desired_input_layouts=(Replicate(), None)
)
PLANS = {
    "the layer's own": {"linear": ColwiseParallel()},
    "its output as a DTensor": {"linear": ColwiseParallel(use_local_output=False)},
    "its output whole": {"linear": ColwiseParallel(output_layouts=Replicate())},
    "the module's": {"": WHOLE_ROWS, "linear": ColwiseParallel()},
}


def module(mesh):
    """As a model ends in it, its layer sharded by torch, whose plan says what a plain input is."""
    torch.manual_seed(0)
    x, target = torch.randn(ROWS, WIDTH), problem()[1]
    upstream = torch.linspace(-1.0, 2.0, ROWS)
    for plan, reduction in itertools.product(PLANS.values(), ("mean", "none")):
        model = pg.PowerGradLinearCrossEntropyLoss(
            WIDTH, CLASSES, bias=True, alpha=0.4, reduction=reduction
        )
        g = upstream if reduction == "none" else torch.tensor(1.7)
        given = x.clone().requires_grad_()
        right = model(given, target)
        gradients = torch.autograd.grad(right, [given, *model.parameters()], g)
        parallelize_module(model, mesh, plan)
        given = x.clone().requires_grad_()
        loss = model(given, target).full_tensor()
        loss.backward(g)
        torch.testing.assert_close(loss, right)
        found = [given.grad, *(parameter.grad.full_tensor() for parameter in model.parameters())]
        torch.testing.assert_close(found, list(gradients))
    # Where the plan says that a plain input holds this rank's rows, these are gathered.
    plan = {"linear": ColwiseParallel(input_layouts=Shard(0))}
    model = pg.PowerGradLinearCrossEntropyLoss(WIDTH, CLASSES, alpha=0.4)
    right = model(x[:12], target[:12])
    parallelize_module(model, mesh, plan)
    found = model(x[:12].chunk(2)[mesh.get_rank()], target[:12])
    torch.testing.assert_close(found.full_tensor(), right)
    rows = pg.PowerGradLinearCrossEntropyLoss(WIDTH, CLASSES, reduction="none")
    parallelize_module(rows, mesh, {"linear": ColwiseParallel(output_layouts=Shard(0))})
    with pytest.raises(RuntimeError, match=r"output layout of \.linear must be"):
        rows(x, target)


def fsdp_and_tensor_parallel(mesh):
    """The last layer on both dimensions of a mesh: a group of FSDP2's of its own, and not."""
    data, tensor = mesh["data"], mesh["tensor"]
    torch.manual_seed(0)
    x, target = torch.randn(ROWS - 1, WIDTH), problem()[1][1:]
    for own_group in (False, True):
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU())
        head = pg.PowerGradLinearCrossEntropyLoss(WIDTH, CLASSES, bias=True, alpha=0.4)
        model.head = head

        def forward(x, target, model=model, head=head):
            return head(model[1](model[0](x)), target)

        model.forward = forward
        right = forward(x, target)
        gradients = torch.autograd.grad(right, list(model.parameters()))
        parallelize_module(model, tensor, {"head.linear": ColwiseParallel()})
        if own_group:
            fully_shard(head.linear, mesh=data)
        fully_shard(model, mesh=data)
        rank = data.get_local_rank()
        loss = model(x.chunk(2)[rank], target.chunk(2)[rank]).full_tensor()
        loss.backward()
        mean = loss.detach().clone()
        dist.all_reduce(mean)
        torch.testing.assert_close(mean / mesh.size(), right.detach())
        found = [parameter.grad.full_tensor() for parameter in model.parameters()]
        torch.testing.assert_close(found, list(gradients))


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
    for options in (
        {"reduction": ("sum", "mean")[rank]},
        {"alpha": 0.3 + rank},
        {"weight": torch.ones(CLASSES) if rank == 0 else None},
        {"label_smoothing": 0.1 * rank},
        {"ignore_index": -100 - rank},
        {"chunk_rows": 4 + rank},
        {"chunk_rows": None if rank else 5},
    ):
        with pytest.raises(RuntimeError, match="arguments that differ"):
            pg.linear_cross_entropy(input, layer, target, **options)

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


def run(rank, rendezvous, shape, checks):
    """In a process of its own; why it ends itself is told in test_distributed.py."""
    torch.set_num_threads(1)
    processes = torch.Size(shape).numel()
    dist.init_process_group(
        "gloo",
        init_method=f"file://{rendezvous}",
        rank=rank,
        world_size=processes,
        timeout=datetime.timedelta(seconds=120),  # for a rank that exchanges something else
    )
    mesh = init_device_mesh("cpu", shape, mesh_dim_names=("data", "tensor")[-len(shape) :])
    for each in checks:
        each(mesh)
    dist.barrier()
    os._exit(0)


CHECKS = [
    sharded,
    default_row_chunks,
    half_precision,
    autocast,
    no_row_that_counts,
    targets_that_weigh_nothing,
    saved_tensors,
    compiled,
    module,
    refusals,
    arguments_that_differ,
]


@pytest.mark.parametrize(
    ("shape", "checks"),
    [((2,), CHECKS), ((2, 2), [two_dimensions, fsdp_and_tensor_parallel])],
    ids=["two ranks", "two by two"],
)
def test_linear(shape, checks, tmp_path):
    processes = torch.Size(shape).numel()
    torch.multiprocessing.spawn(run, (tmp_path / "rendezvous", shape, checks), processes)


def test_a_layer_that_is_not_linear():
    """What computes something else is not fused in silence: adapters, wrappers."""

    class Adapted(nn.Linear):
        def forward(self, input):
            return super().forward(input) + 1

    model = pg.PowerGradLinearCrossEntropyLoss(WIDTH, CLASSES)
    model.linear = Adapted(WIDTH, CLASSES)
    with pytest.raises(TypeError, match=r"\.linear must compute what nn\.Linear does.* Adapted"):
        model(torch.randn(3, WIDTH), torch.tensor([0, 1, 2]))
