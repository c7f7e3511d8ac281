"""torch.library.opcheck on every operator that is registered, and on nothing less.

Schemas that tell the truth about mutation and aliasing, autograd where it belongs, fakes that agree
with the kernels, and tracing with dynamic shapes.
"""

import pytest
import torch
from cases import make_logits

from powergrad_ext.options import Options

ALPHA = torch.tensor(0.3, dtype=torch.float64)
OPS = torch.ops.powergrad


def smoothed(weight, reduction):
    return Options(weight, reduction=reduction, label_smoothing=0.1, alpha=ALPHA)


def index_arguments(device, shape=(6, 10), reduction="mean"):
    logits = make_logits(shape, torch.float32, device)
    target = torch.arange(shape[0]) if len(shape) == 2 else torch.zeros(2, shape[2]).long()
    weight = torch.linspace(0.5, 1.5, shape[1])
    return logits, (target.to(device), *smoothed(weight.to(device), reduction))


def with_rows(options, target):
    """The same with a weight for each row, some of them 0, and z-loss."""
    rows = torch.arange(target.numel(), device=target.device).reshape(target.shape)
    return options._replace(row_weight=rows % 3 / 2, z_loss=0.1)


def row_arguments(device):
    logits, (target, *options) = index_arguments(device)
    return logits, (target, *with_rows(Options(*options), target))


def inner_row_arguments(device):
    logits, (target, *options) = inner_arguments(device)
    return logits, (target, *with_rows(Options(*options), target))


def z_loss_arguments(device):
    logits, (target, *options) = index_arguments(device)
    return logits, (target, *Options(*options)._replace(z_loss=0.1))


def inner_arguments(device):
    return index_arguments(device, (2, 5, 7), "none")


def probability_arguments(device):
    logits = make_logits((6, 10), torch.bfloat16, device)
    return logits, (logits.float().softmax(1), *Options(reduction="none", alpha=ALPHA))


def transposed_arguments(device):
    logits, rest = index_arguments(device)
    return logits.T.contiguous().T, rest


cases = pytest.mark.parametrize(
    "make_arguments",
    [
        index_arguments,
        row_arguments,
        z_loss_arguments,
        inner_arguments,
        inner_row_arguments,
        probability_arguments,
        transposed_arguments,
    ],
    ids=lambda function: function.__name__.removesuffix("_arguments"),
)


def saved(logits, rest):
    return OPS.cross_entropy_forward(logits, *rest, True)[1:]


def grad_output(logits, rest):
    return torch.ones_like(OPS.cross_entropy_forward(logits, *rest, False)[0])


def log_softmax_saved(logits, dim):
    return OPS.log_softmax_forward(logits, dim, ALPHA, True)[1]


def linear_forward(layer):
    return OPS.linear_cross_entropy_forward(*layer, [False] * 3)


# Each operator, as functions of logits and of the arguments that follow them.
CROSS_ENTROPY_OPERATORS = {
    "cross_entropy_forward": lambda z, rest: (z, *rest, True),
    "cross_entropy_backward": lambda z, rest: (
        grad_output(z, rest),
        z,
        rest[0],
        *saved(z, rest),
        *rest[1:],
    ),
}
LOG_SOFTMAX_OPERATORS = {
    "log_softmax_forward": lambda z, dim: (z, dim, ALPHA, True),
    "log_softmax_backward": lambda z, dim: (
        torch.randn_like(z),
        z,
        dim,
        ALPHA,
        log_softmax_saved(z, dim),
    ),
}
LINEAR_OPERATORS = {
    "linear_cross_entropy_forward": lambda layer, wanted: (*layer, wanted),
    "linear_cross_entropy_backward": lambda layer, wanted: (
        torch.ones_like(linear_forward(layer)[0]),
        *layer,
        *linear_forward(layer)[2:4],
        wanted,
    ),
}
# Of the classes 2 to 11 of 14, whose logits are those of the whole.
SHARD = (2, 2)


def shard_arguments(device, arrangement, dtype, reduction):
    logits = {
        "rows": lambda: make_logits((6, 12), dtype, device)[:, 1:11],
        "columns": lambda: make_logits((10, 6), dtype, device).t(),
        "positions": lambda: make_logits((6, 10, 3), dtype, device),
        "permuted": lambda: make_logits((6, 3, 10), dtype, device).movedim(2, 1),
    }[arrangement]()
    target = torch.tensor([0, 2, 5, 11, 13, -100], device=device)
    if logits.dim() == 3:
        target = torch.stack([target] * 3, 1)
    weight = torch.linspace(0.5, 1.5, 14, device=device)
    return logits, target, smoothed(weight, reduction)


def message(logits, target, options, metrics=False):
    return OPS.cross_entropy_shard_forward(logits, target, *options, *SHARD, 7, metrics)


def merged(logits, target, options):
    messages, total = message(logits, target, options)
    return OPS.cross_entropy_merge_shards(messages.unsqueeze(0), total, *options)


SHARD_OPERATORS = {
    "cross_entropy_shard_forward": lambda z, target, options, metrics: (
        *(z, target, *options, *SHARD, 7, metrics),
    ),
    "cross_entropy_merge_shards": lambda z, target, options, metrics: (
        torch.stack([message(z, target, options, metrics)[0]] * 2),
        message(z, target, options)[1],
        *options,
        metrics,
    ),
    "cross_entropy_backward": lambda z, target, options, metrics: (
        torch.ones_like(merged(z, target, options)[0]).view(
            target.shape if options.reduction == "none" else ()
        ),
        z,
        target,
        merged(z, target, options)[1][: options.statistics],
        message(z, target, options)[1],
        *options,
        *SHARD,
    ),
}
PUBLIC_OPERATORS = {
    "cross_entropy",
    "linear_cross_entropy",
    "linear_cross_entropy_metrics",
    "log_softmax",
}


def operator(name):
    return getattr(OPS, name).default


def test_no_operator_is_left_out():
    registered = {
        name.removeprefix("powergrad::").partition(".")[0]
        for name in torch._C._dispatch_get_all_op_names()
        if name.startswith("powergrad::")
    }
    checked = CROSS_ENTROPY_OPERATORS.keys() | LOG_SOFTMAX_OPERATORS.keys()
    checked |= LINEAR_OPERATORS.keys() | SHARD_OPERATORS.keys()
    assert registered == checked | PUBLIC_OPERATORS


@cases
@pytest.mark.parametrize("name", CROSS_ENTROPY_OPERATORS)
def test_cross_entropy_operators(name, make_arguments, device):
    logits, rest = make_arguments(device)
    arguments = CROSS_ENTROPY_OPERATORS[name](logits, rest)
    torch.library.opcheck(operator(name), arguments)
    if name == "cross_entropy_forward" and not rest[0].is_floating_point():
        torch.library.opcheck(operator(name), (*arguments, True))  # with metrics


@pytest.mark.parametrize("dim", [0, 1, -1])
@pytest.mark.parametrize("name", LOG_SOFTMAX_OPERATORS)
def test_log_softmax_operators(name, dim, device):
    logits = make_logits((2, 5, 7), torch.float32, device)
    torch.library.opcheck(operator(name), LOG_SOFTMAX_OPERATORS[name](logits, dim))


@pytest.mark.parametrize(
    ("arrangement", "dtype", "reduction"),
    [
        ("rows", torch.float64, "none"),
        ("columns", torch.bfloat16, "mean"),
        ("positions", torch.float64, "mean"),
        ("permuted", torch.bfloat16, "none"),
    ],
)
@pytest.mark.parametrize("rows", [False, True], ids=["", "row weights, z-loss and metrics"])
@pytest.mark.parametrize("name", SHARD_OPERATORS)
def test_shard_operators(name, rows, arrangement, dtype, reduction, device):
    logits, target, options = shard_arguments(device, arrangement, dtype, reduction)
    options = with_rows(options, target) if rows else options
    arguments = SHARD_OPERATORS[name](logits, target, options, rows)
    torch.library.opcheck(operator(name), arguments)


@cases
def test_cross_entropy(make_arguments, device):
    """With autograd: the gradients of traced and eager calls are compared too."""
    logits, (target, *options) = make_arguments(device)
    logits = logits.detach().requires_grad_()
    torch.library.opcheck(operator("cross_entropy"), (logits, target), Options(*options).keywords())


@pytest.mark.parametrize("dim", [0, 1, -1])
def test_log_softmax(dim, device):
    logits = make_logits((2, 5, 7), torch.float32, device).requires_grad_()
    torch.library.opcheck(operator("log_softmax"), (logits, dim), {"alpha": ALPHA})


def linear_arguments(device, dtype, reduction):
    """Of the layer; the options, chunk_rows and the function of the logits."""
    input, linear_weight, linear_bias = (
        make_logits(shape, dtype, device, seed=seed)
        for seed, shape in enumerate([(9, 6), (10, 6), (10,)])
    )
    target = torch.arange(9, device=device)
    weight = torch.linspace(0.5, 1.5, 10, device=device)
    options = smoothed(weight, reduction)
    if reduction == "mean":
        options = with_rows(options, target)
    options = (*options, 4, 0.7, 3.0)
    return (input, linear_weight, target, linear_bias), options


@pytest.mark.parametrize("shard", [False, True], ids=["whole", "shard"])
@pytest.mark.parametrize("wanted", [[True, True, True], [False, True, False], [False] * 3], ids=str)
@pytest.mark.parametrize("reduction", ["none", "mean"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", LINEAR_OPERATORS)
def test_linear_operators(name, dtype, reduction, wanted, shard, device):
    layer, (weight, *rest) = linear_arguments(device, dtype, reduction)
    if shard:  # a group of one has nothing to exchange
        weight = torch.linspace(0.5, 1.5, 14, device=device)
    shard = ("group", 1, *SHARD) if shard else ("", 1, 0, 0)
    arguments = LINEAR_OPERATORS[name]((*layer, weight, *rest, *shard), wanted)
    torch.library.opcheck(operator(name), arguments)
    if name == "linear_cross_entropy_forward" and all(wanted):
        torch.library.opcheck(operator(name), (*arguments, True))  # with metrics


@pytest.mark.parametrize("name", LINEAR_OPERATORS)
def test_linear_operators_of_one_row(name, device):
    """Whose gradient has no dimension of rows either."""
    (input, linear_weight, target, bias), options = linear_arguments(device, torch.float32, "mean")
    options = (*Options(*options[:7])._replace(row_weight=None), *options[7:])
    layer = (input[0], linear_weight, target[0], bias)
    arguments = LINEAR_OPERATORS[name]((*layer, *options, "", 1, 0, 0), [True] * 3)
    torch.library.opcheck(operator(name), arguments)


@pytest.mark.parametrize("reduction", ["none", "mean"])
@pytest.mark.parametrize("name", ["linear_cross_entropy", "linear_cross_entropy_metrics"])
@pytest.mark.parametrize("requires_grad", [False, True])
def test_linear_cross_entropy(requires_grad, name, reduction, device):
    layer, (*options, rows, scale, cap) = linear_arguments(device, torch.float32, reduction)
    if requires_grad:
        layer = [each.requires_grad_() if each.is_floating_point() else each for each in layer]
    of_layer = {"chunk_rows": rows, "logit_scale": scale, "softcap": cap}
    named = Options(*options).keywords() | of_layer
    positional = [named.pop(each) for each in Options._fields[:4]]
    torch.library.opcheck(operator(name), (*layer, *positional), named)
