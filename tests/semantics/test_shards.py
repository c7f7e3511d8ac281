"""The raw operators of shards, in one process and on every device: what ranks would compute."""

import pytest
import torch
from cases import make_problem
from oracle import assert_gradient, assert_loss, definition

from powergrad_ext.options import Options

OPS = torch.ops.powergrad
ALPHA = torch.tensor(0.3, dtype=torch.float64)
STATISTICS = 3  # of the numbers of a row
CLASSES = 50
CUTS = {"uneven": (7, 20, 23), "one class": (1, 49), "nothing": (0, 50, 0), "alone": (50,)}
OPTIONS = {
    "mean": {},
    "sum, weights": {"reduction": "sum", "weighted": True},
    "none, smoothing": {"reduction": "none", "label_smoothing": 0.1},
    "all": {"weighted": True, "label_smoothing": 0.2, "ignore_index": 70},
    "row weights, z-loss": {"weighted_rows": True, "z_loss": 0.05, "label_smoothing": 0.2},
}


def raw_options(problem):
    options = {"ignore_index": -100, "reduction": "mean", "label_smoothing": 0.0} | problem.options
    return Options(problem.weight, **options, alpha=ALPHA)


def check_ranks(problem, sizes):
    """What ranks that have so many of the classes each would compute is right, all together."""
    target, options = problem.target, raw_options(problem)
    reduction = options[2]
    shards = problem.logits.split(sizes, 1)
    first = [sum(sizes[:i]) for i in range(len(sizes))]
    places = [(before, CLASSES - before - size) for before, size in zip(first, sizes, strict=True)]
    messages = []
    for shard, place in zip(shards, places, strict=True):
        message, total = OPS.cross_entropy_shard_forward(shard, target, *options, *place, 5)
        messages.append(message)
    loss, numbers = OPS.cross_entropy_merge_shards(torch.stack(messages), total, *options)
    grad_output = problem.grad_output(loss.view(target.shape) if reduction == "none" else loss)
    gradients = [
        OPS.cross_entropy_backward(
            grad_output, shard, target, numbers[: options.statistics], total, *options, *place
        )
        for shard, place in zip(shards, places, strict=True)
    ]
    expected = problem.expected(definition, grad_output)
    assert_loss(loss.view(grad_output.shape), expected.loss)
    gradient = torch.cat(gradients, 1)
    assert_gradient(gradient, expected.gradient, problem.class_dim, expected.terms)
    alone = OPS.cross_entropy_forward(problem.logits, target, *options, False)[2]
    assert torch.equal(total, alone)


@pytest.mark.parametrize("sizes", CUTS.values(), ids=CUTS.keys())
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
@pytest.mark.parametrize("shape", [(9, CLASSES), (3, CLASSES, 37)], ids=str)
def test_what_ranks_would_compute(shape, options, sizes, dtype, device, isa):
    check_ranks(make_problem(shape, dtype, device, **options), sizes)


@pytest.mark.parametrize("sizes", CUTS.values(), ids=CUTS.keys())
def test_logits_far_below_0(sizes, dtype, device):
    """A rank without classes has no maximum: 0 would be the highest."""
    problem = make_problem((9, CLASSES), dtype, device, label_smoothing=0.1, weighted=True)
    problem.logits -= 64.0
    check_ranks(problem, sizes)


def test_refusals():
    logits, target = torch.randn(4, 5), torch.tensor([0, 3, 9, 11])
    forward = OPS.cross_entropy_shard_forward
    with pytest.raises(IndexError, match=r"Target 11 is out of bounds.* for C = 11 classes"):
        forward(logits, target, *Options(alpha=ALPHA), 3, 3, 0)
    with pytest.raises(RuntimeError, match="must not be negative, got -1 and 9"):
        forward(logits, target, *Options(alpha=ALPHA), -1, 9, 0)
    with pytest.raises(RuntimeError, match="for all 12 classes"):
        forward(logits, target, *Options(torch.ones(5), alpha=ALPHA), 3, 4, 0)
    with pytest.raises(RuntimeError, match="must have at least one class"):
        forward(torch.empty(4, 0), target, *Options(alpha=ALPHA), 0, 0, 0)
    with pytest.raises(ValueError, match="average is not a valid value for reduction"):
        forward(logits, target, *Options(reduction="average", alpha=ALPHA), 3, 4, 0)
    one, total = forward(logits, target, *Options(alpha=ALPHA), 3, 4, 1)
    other, _ = forward(logits, target, *Options(alpha=ALPHA), 3, 4, 2)

    def merge(messages, reduction, alpha, total):
        options = Options(reduction=reduction, alpha=alpha)
        return OPS.cross_entropy_merge_shards(messages, total, *options)

    with pytest.raises(RuntimeError, match=r"ranks 0 and 2 of the group .* that differ"):
        merge(torch.stack([one, one, other]), "mean", ALPHA, total)
    strided = torch.stack([one, one], 1).t()
    for wrong in (one, one[None, :-1], one[None].half(), one[:0].view(0, 1), strided):
        with pytest.raises(RuntimeError, match="argument 'shard_statistics' must hold what"):
            merge(wrong, "mean", ALPHA, total)
    with pytest.raises(RuntimeError, match="total_weight must be what the forward operator"):
        merge(one[None], "mean", ALPHA, torch.ones(2))
    with pytest.raises(ValueError, match="alpha must be finite and greater than 0, got -1"):
        merge(one[None], "mean", torch.tensor(-1.0), total)
    with pytest.raises(ValueError, match="'alpha' must be a float or a 0-d floating point tensor"):
        merge(one[None], "mean", torch.ones(2), total)
    with pytest.raises(ValueError, match="is not a valid value for reduction"):
        merge(one[None], "average", ALPHA, total)


def test_rows_are_told_apart():
    """Ranks with the same options and other numbers of rows have other fingerprints."""
    few, _ = OPS.cross_entropy_shard_forward(
        torch.randn(4, 5), torch.zeros(4).long(), *Options(alpha=ALPHA), 0, 0, 1
    )
    more, _ = OPS.cross_entropy_shard_forward(
        torch.randn(6, 5), torch.zeros(6).long(), *Options(alpha=ALPHA), 0, 0, 1
    )
    assert few[0] != more[0]


def test_an_operator_is_not_differentiable_in_silence():
    logits = torch.randn(4, 5, requires_grad=True)
    message, _ = OPS.cross_entropy_shard_forward(
        logits, torch.zeros(4).long(), *Options(alpha=ALPHA), 0, 0, 1
    )
    with pytest.raises(RuntimeError, match="not implemented"):
        message.sum().backward()
    gradient = OPS.cross_entropy_backward(
        torch.ones(()),
        logits,
        torch.zeros(4).long(),
        torch.ones(STATISTICS, 4),
        torch.tensor(4.0).double(),
        *Options(alpha=ALPHA),
        *(2, 0),
    )
    with pytest.raises(RuntimeError, match="not implemented where other classes"):
        gradient.sum().backward()


def merged(rows, alpha=ALPHA):
    """Of shard statistics, (shards, 5, rows): maximum, alpha sum, target weight, sum, distance."""
    messages = torch.cat([torch.zeros(len(rows), 1), rows.flatten(1)], 1)
    options = Options(reduction="none", alpha=alpha)
    return OPS.cross_entropy_merge_shards(messages, torch.ones(()).double(), *options)[1]


def test_sums_are_merged_without_loss(device):
    """To a few ulp of float32 at every distance of the maxima, which rounds in it.

    exp(factor (a - b)) is as accurate as what rounding takes from its exponent, which reaches
    4e-6 at a distance of 80: that is added back (exp_of_difference in csrc/shards.h).
    """
    random = torch.Generator().manual_seed(0)
    distance = torch.empty(1000).uniform_(1, 80, generator=random)
    highest = torch.empty(1000).uniform_(-0.5, 0.5, generator=random)
    nothing = torch.zeros(1000)
    for alpha in (0.3, 0.77, 1.0):
        lower = highest - distance
        exact = lower.double() - highest.double()
        # So many classes at the lower maximum that their sum is about 1.
        count, alpha_count = (-exact).exp().float(), (-alpha * exact).exp().float()
        rows = torch.stack(
            [
                torch.stack([lower, alpha_count - 1, nothing, count - 1, nothing]),
                torch.stack([highest, nothing, nothing, nothing, nothing]),
            ]
        )
        found = merged(rows.to(device), torch.tensor(alpha, dtype=torch.float64)).double().cpu()
        rounded = float(torch.tensor(alpha))  # as kernels have it
        right = (1 + rows[0, 3].double()) * exact.exp()
        alpha_right = (1 + rows[0, 1].double()) * (rounded * exact).exp()
        torch.testing.assert_close(found[3], right, rtol=5e-7, atol=0)
        torch.testing.assert_close(found[1], alpha_right, rtol=5e-7, atol=0)


@pytest.mark.parametrize("value", [torch.inf, torch.nan])
def test_infinite_rows_are_nan(value, device):
    """Loss and gradient of every class, whichever shard has the logit that is infinite or NaN."""
    for place in range(12):
        logits = torch.randn(2, 12, device=device)
        logits[0, place] = value
        target = torch.tensor([1, 1], device=device)
        options = Options(reduction="none", alpha=ALPHA)
        shards = logits.split(4, 1)
        messages, totals = zip(
            *(
                OPS.cross_entropy_shard_forward(shard, target, *options, 4 * i, 8 - 4 * i, 5)
                for i, shard in enumerate(shards)
            ),
            strict=True,
        )
        losses, numbers = OPS.cross_entropy_merge_shards(torch.stack(messages), totals[0], *options)
        assert losses.isnan().tolist() == [True, False]
        assert numbers[[1, 3]].isnan().tolist() == [[True, False]] * 2
        for i, shard in enumerate(shards):
            gradient = OPS.cross_entropy_backward(
                torch.ones_like(losses),
                shard,
                target,
                numbers[:STATISTICS],
                totals[0],
                *options,
                4 * i,
                8 - 4 * i,
            )
            assert gradient[0].isnan().all()
            assert gradient[1].isfinite().all()


def test_a_shard_masked_by_the_least_number(dtype, device):
    """Its difference to the maximum overflows: it adds nothing to the entropy."""
    logits = torch.randn(4, 10, dtype=torch.float64).to(device, dtype)
    logits[:, 5:] = torch.finfo(dtype).min
    target = torch.tensor([0, 4, 2, 1], device=device)
    options = (None, -100, "none", 0.0, torch.tensor(0.3), None, 0.0)
    messages = []
    for first in (0, 5):
        message, total = OPS.cross_entropy_shard_forward(
            logits[:, first : first + 5], target, *options, first, 5 - first, 1, True
        )
        messages.append(message)
    _, numbers = OPS.cross_entropy_merge_shards(torch.stack(messages), total, *options, True)
    expected = torch.special.entr(logits.double().softmax(1)).sum(1)
    torch.testing.assert_close(numbers[-2].double(), expected, rtol=4e-6, atol=0)
