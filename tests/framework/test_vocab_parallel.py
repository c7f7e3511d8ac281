"""Classes sharded over processes: the loss and gradient of one, for one exchange of numbers."""

import itertools
import os

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from ranks import on_ranks
from torch.distributed.tensor.debug import CommDebugMode
from torch.utils._python_dispatch import TorchDispatchMode

import powergrad_ext as pg
from powergrad_ext.distributed import vocab_parallel_cross_entropy

ROWS, CLASSES = 9, 23
NUMBERS = 5  # that each rank tells of a row
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
}
# Of the loss and of the largest gradient, besides two rounding steps of the gradient's type.
BOUNDS = {torch.float64: 1e-14, torch.float32: 4e-6, torch.bfloat16: 4e-6, torch.float16: 4e-6}


def problem(dtype=torch.float64, seed=0):
    random = torch.Generator().manual_seed(seed)
    logits = (3 * torch.randn(ROWS, CLASSES, dtype=torch.float64, generator=random)).to(dtype)
    target = torch.randint(CLASSES, (ROWS,), generator=random)
    target[[2, 5]] = torch.tensor([3, -7])
    return logits, target


def options_of(name, target):
    options = {"alpha": 0.3, **OPTIONS[name]}
    target = torch.where(target == -7, options.setdefault("ignore_index", -100), target)
    return options, target


def shard_of(tensor, sizes):
    return tensor.split(sizes, 1)[dist.get_rank()]


def solve(loss, logits, upstream):
    logits = logits.clone().requires_grad_()
    value = loss(logits)
    value.backward(upstream.to(value.dtype))
    return value.detach(), logits.grad


def check_bits(loss):
    everyone = [torch.empty_like(loss) for _ in range(dist.get_world_size())]
    dist.all_gather(everyone, loss)
    for other in everyone:
        assert torch.equal(other, loss)


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
        upstream = torch.randn((ROWS,) if reduction == "none" else (), dtype=torch.float64)
        dist.broadcast(upstream, 0)

        def alone(z, target=target, reduction=reduction, options=options):
            return pg.cross_entropy(z, target, reduction=reduction, **options)

        def together(z, target=target, reduction=reduction, options=options):
            return vocab_parallel_cross_entropy(z, target, reduction=reduction, **options)

        forget_sizes()
        right_loss, right_gradient = solve(alone, logits.double(), upstream)
        loss, gradient = solve(together, shard_of(logits, sizes), upstream)
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


def forget_sizes():
    """A layer of another size, as by a group of its own."""
    pg.distributed._sizes.clear()


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
        upstream = torch.ones(ROWS)

        def loss(z, function, target=target, smoothing=smoothing):
            return function(z, target, reduction="none", label_smoothing=smoothing)

        right = solve(lambda z: loss(z, pg.cross_entropy), logits, upstream)
        found = solve(
            lambda z: loss(z, vocab_parallel_cross_entropy), shard_of(logits, sizes), upstream
        )
        torch.testing.assert_close(found[0], right[0], equal_nan=True)
        torch.testing.assert_close(found[1], shard_of(right[1], sizes), equal_nan=True)
        nothing = torch.empty(0, sizes[dist.get_rank()])
        assert vocab_parallel_cross_entropy(nothing, target[:0], reduction="sum") == 0
        assert vocab_parallel_cross_entropy(nothing, target[:0]).isnan()


def confident_rows():
    """What is left of the loss and the gradient at a target of probability almost 1."""
    logits = torch.zeros(4, CLASSES)
    target = torch.tensor([0, 5, 12, 22])
    logits[range(4), target] = torch.tensor([20.0, 30.0, 40.0, 50.0])
    sizes = SIZES[2][0]
    upstream = torch.ones(4)

    def loss(z, function):
        return function(z, target, reduction="none", alpha=0.5)

    right = solve(lambda z: loss(z, pg.cross_entropy), logits.double(), upstream)
    found = solve(
        lambda z: loss(z, vocab_parallel_cross_entropy), shard_of(logits, sizes), upstream
    )
    torch.testing.assert_close(found[0].double(), right[0], rtol=4e-6, atol=0)
    whole = shard_of(right[1], sizes)
    torch.testing.assert_close(found[1].double(), whole, rtol=4e-6, atol=0)


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
    sizes, upstream = SIZES[2][0], torch.tensor(1.7)
    right = solve(lambda z: F.cross_entropy(z, target, **options), logits, upstream)
    own = shard_of(logits, sizes)
    found = solve(lambda z: vocab_parallel_cross_entropy(z, target, **options), own, upstream)
    assert right[0].isnan()
    torch.testing.assert_close(found, (right[0], shard_of(right[1], sizes)), equal_nan=True)


def what_is_communicated():
    """Sizes once; then a single gather of five numbers a row, and nothing in backward."""
    logits, target = problem()
    target = target.clamp(min=0)
    own = shard_of(logits, SIZES[2][0]).clone().requires_grad_()
    vocab_parallel_cross_entropy(own, target)
    sent = []

    class Recorded(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
            if function is torch.ops._c10d_functional.all_gather_into_tensor.default:
                sent.append(arguments[0].numel())
            return function(*arguments, **keywords or {})

    with CommDebugMode() as communication, Recorded():
        vocab_parallel_cross_entropy(own, target).backward()
    assert communication.get_total_counts() == 1
    assert sent == [1 + NUMBERS * ROWS]


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

    def loss(z, target):
        return vocab_parallel_cross_entropy(z, target, alpha=0.4, label_smoothing=0.1)

    def gradient(loss):
        own = shard_of(logits, SIZES[2][0]).clone().requires_grad_()
        loss(own, target).backward()
        return own.grad

    for dynamic in (False, True):
        torch.compiler.reset()
        found = gradient(torch.compile(loss, backend="aot_eager", fullgraph=True, dynamic=dynamic))
        torch.testing.assert_close(found, gradient(loss))


def arguments_that_differ():
    """An error on every rank, and the next call is a new one."""
    rank = dist.get_rank()
    logits, target = problem()
    target = target.clamp(min=0)
    own = shard_of(logits, SIZES[2][0])
    different = [
        {"ignore_index": -1 - rank},
        {"label_smoothing": 0.1 * rank},
        {"reduction": ("sum", "mean")[rank]},
        {"alpha": 0.3 + rank},
        {"weight": torch.ones(CLASSES) if rank == 0 else None},
    ]
    for options in different:
        with pytest.raises(RuntimeError, match="ranks 0 and 1 of the group"):
            vocab_parallel_cross_entropy(own, target, **options)
    with pytest.raises(RuntimeError, match="ranks 0 and 1 of the group"):
        vocab_parallel_cross_entropy(own.to((torch.float32, torch.bfloat16)[rank]), target)
    # What only one of them can know of.
    wrong = [
        ({"target": target[rank:]}, ValueError, "to match target batch_size"),
        ({"target": target + 50 * rank}, IndexError, "out of bounds"),
        ({"alpha": -1.0 * rank}, ValueError, "alpha must be finite"),
        ({"reduction": ("sum", "average")[rank]}, ValueError, "average is not a valid value"),
        ({"label_smoothing": 2.0 * rank}, RuntimeError, "must be between 0.0 and 1.0"),
        ({"weight": torch.ones(CLASSES + rank)}, RuntimeError, "for all 23 classes"),
    ]
    for changed, error, message in wrong:
        arguments = {"target": target, "alpha": 0.3, **changed}
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
    own = shard_of(problem()[0], SIZES[2][0])
    target = problem()[1].clamp(min=0)
    vocab_parallel_cross_entropy(own, target)
    if dist.get_rank() == 1:
        os._exit(0)
    with pytest.raises(RuntimeError):
        vocab_parallel_cross_entropy(own, target)
    os._exit(0)


def run(checks):
    torch.set_num_threads(1 + dist.get_rank() % 2)  # the bits do not depend on it
    for check in checks:
        check()


ON_TWO = [
    every_combination,
    positions,
    unusual_logits,
    confident_rows,
    no_row_that_counts,
    targets_that_weigh_nothing,
    what_is_communicated,
    more_than_one_backward,
    compiled,
    arguments_that_differ,
    a_group_without_this_process,
    groups_of_their_own,
    layers_of_one_group,
    an_error_while_another_rank_asks_for_sizes,
]


@pytest.mark.parametrize(
    ("world", "checks"),
    [
        (1, [every_combination]),
        (2, ON_TWO),
        (2, [a_rank_that_dies]),
        (3, [every_combination]),
        (4, [every_combination]),
    ],
    ids=["alone", "two", "death", "three", "four"],
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
