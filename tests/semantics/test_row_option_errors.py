"""What row_weight, z_loss and return_metrics refuse, by name, before anything is computed."""

from __future__ import annotations

import math

import pytest
import torch

import powergrad_ext as pg
from powergrad_ext.options import Options

OPS = torch.ops.powergrad
LOGITS = torch.linspace(-1.0, 2.0, 12).view(3, 4)
TARGET = torch.tensor([0, 3, 1])
ALPHA = torch.tensor(0.3)

# name: (options, class of the error, what its text matches)
BAD = {
    "z-loss negative": ({"z_loss": -1e-4}, ValueError, r"'z_loss' must be finite and >= 0, got -"),
    "z-loss infinite": ({"z_loss": math.inf}, ValueError, "'z_loss' must be finite.*got inf"),
    "z-loss nan": ({"z_loss": math.nan}, ValueError, "'z_loss' must be finite.*got nan"),
    "too many weights": (
        {"row_weight": torch.ones(4)},
        RuntimeError,
        r"'row_weight' must have a number for each row, shape \[3\], got shape \[4\]",
    ),
    "weights of classes": (
        {"row_weight": torch.ones(3, 4)},
        RuntimeError,
        r"'row_weight' must .* shape \[3\], got shape \[3, 4\]",
    ),
    "one weight": (
        {"row_weight": torch.tensor(1.0)},
        RuntimeError,
        r"'row_weight'.* got shape \[\]",
    ),
    "integer weights": (
        {"row_weight": torch.ones(3).long()},
        TypeError,
        "'row_weight' must be float32, float64, bfloat16 or float16, got Long",
    ),
    "boolean weights": ({"row_weight": torch.ones(3).bool()}, TypeError, "'row_weight'.*Bool"),
    "weights with a gradient": (
        {"row_weight": torch.ones(3, requires_grad=True)},
        RuntimeError,
        r"derivative for 'row_weight' is not implemented; pass row_weight\.detach\(\)",
    ),
    "weights elsewhere": (
        {"row_weight": torch.ones(3, device="meta")},
        RuntimeError,
        "same device.*'row_weight'",
    ),
    "infinite weight": (
        {"row_weight": torch.tensor([1.0, math.inf, 1.0])},
        ValueError,
        "'row_weight' must be finite and >= 0, got inf for row 1",
    ),
    "a weight beyond float32": (
        {"row_weight": torch.tensor([1.0, 1.0, 1e60], dtype=torch.float64)},
        ValueError,
        "'row_weight' must be finite and >= 0, got inf for row 2",
    ),
    "sparse weights": (
        {"row_weight": torch.ones(3).to_sparse()},
        RuntimeError,
        "'row_weight' must be a dense",
    ),
    "negative weight": (
        {"row_weight": torch.tensor([1.0, -2.5, 1.0])},
        ValueError,
        r"'row_weight' must be finite and >= 0, got -2\.5 for row 1",
    ),
    "nan weight": (
        {"row_weight": torch.tensor([1.0, 1.0, math.nan])},
        ValueError,
        "'row_weight' must be finite and >= 0, got nan for row 2",
    ),
}
WRONG_TYPES = {
    "z-loss": ({"z_loss": "no"}, "'z_loss' must be float, not str"),
    "row weight": ({"row_weight": [1.0] * 3}, "'row_weight' must be Tensor or None, not list"),
}


def cross_entropy(**options):
    return pg.cross_entropy(LOGITS.clone().requires_grad_(), TARGET, **options)


def with_metrics(**options):
    return pg.cross_entropy(LOGITS.clone(), TARGET, **options, return_metrics=True)


def linear(**options):
    return pg.linear_cross_entropy(torch.eye(3, 2), torch.eye(4, 2), TARGET, **options)


def of_many_dimensions(**options):
    if "row_weight" in options and options["row_weight"].shape == (3,):
        options["row_weight"] = options["row_weight"].unsqueeze(1)
    return pg.linear_cross_entropy(
        torch.eye(3, 2), torch.eye(4, 2).unsqueeze(1), TARGET.unsqueeze(1), **options
    )


def raw_forward(**options):
    return OPS.cross_entropy_forward(LOGITS, TARGET, *Options(**options, alpha=ALPHA), True)


def raw_backward(**options):
    _, _, total = OPS.cross_entropy_forward(LOGITS, TARGET, *Options(alpha=ALPHA), True)
    count = 4 if options.get("z_loss") else 3
    return OPS.cross_entropy_backward(
        torch.ones(()),
        LOGITS,
        TARGET,
        torch.zeros(count, 3),
        total,
        *Options(**options, alpha=ALPHA),
    )


def shard_forward(**options):
    return OPS.cross_entropy_shard_forward(
        LOGITS, TARGET, *Options(**options, alpha=ALPHA), 0, 2, 7
    )


CALLS = [cross_entropy, with_metrics, linear, raw_forward, raw_backward, shard_forward]


@pytest.mark.parametrize(("bad", "kind", "words"), BAD.values(), ids=BAD.keys())
@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.__name__)
def test_bad_options(call, bad, kind, words):
    with pytest.raises(kind, match=words):
        call(**bad)


@pytest.mark.parametrize("name", ["negative weight", "z-loss nan", "weights with a gradient"])
def test_bad_options_of_a_layer_of_many_dimensions(name):
    bad, kind, words = BAD[name]
    with pytest.raises(kind, match=words):
        of_many_dimensions(**bad)


@pytest.mark.parametrize(("bad", "words"), WRONG_TYPES.values(), ids=WRONG_TYPES.keys())
@pytest.mark.parametrize("call", [cross_entropy, with_metrics, linear], ids=lambda c: c.__name__)
def test_wrong_types(call, bad, words):
    with pytest.raises(TypeError, match=words):
        call(**bad)


@pytest.mark.parametrize("call", [cross_entropy, linear], ids=lambda call: call.__name__)
def test_return_metrics_is_a_bool(call):
    with pytest.raises(TypeError, match="'return_metrics' must be bool, not int"):
        call(return_metrics=1)


METRICS_OF_PROBABILITIES = {
    "cross_entropy": lambda q: pg.cross_entropy(LOGITS, q, return_metrics=True),
    "linear": lambda q: pg.linear_cross_entropy(
        torch.eye(3, 2), torch.eye(4, 2), q, return_metrics=True
    ),
    "reference": lambda q: pg.reference.cross_entropy(LOGITS, q, return_metrics=True),
    "shard": lambda q: OPS.cross_entropy_shard_forward(
        LOGITS, q, *Options(alpha=ALPHA), 0, 2, 7, True
    ),
    "meta": lambda q: OPS.cross_entropy_forward(
        LOGITS.to("meta"), q.to("meta"), *Options(alpha=ALPHA), True, True
    ),
}


@pytest.mark.parametrize(
    "call", METRICS_OF_PROBABILITIES.values(), ids=METRICS_OF_PROBABILITIES.keys()
)
def test_metrics_need_class_indices(call):
    with pytest.raises(ValueError, match=r"return_metrics.* must be False.*probabilities"):
        call(torch.full_like(LOGITS, 0.25))


@pytest.mark.parametrize("z_loss", [-1.0, math.inf, math.nan, "no"])
def test_modules(z_loss):
    for make in (
        pg.PowerGradCrossEntropyLoss,
        lambda **o: pg.PowerGradLinearCrossEntropyLoss(2, 4, **o),
    ):
        with pytest.raises(ValueError, match="z_loss must be a finite number >= 0"):
            make(z_loss=z_loss)


@pytest.mark.parametrize("bad", [{"z_loss": -1.0}, {"row_weight": -torch.ones(3)}], ids=str)
def test_reference(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        pg.reference.cross_entropy(LOGITS, TARGET, **bad)


def test_torch_func_does_not_lose_the_derivative_for_row_weights():
    """Which would be a silent 0."""
    with pytest.raises(RuntimeError, match="derivative for 'row_weight' is not implemented"):
        torch.func.grad(lambda r: pg.cross_entropy(LOGITS, TARGET, row_weight=r))(torch.ones(3))


@pytest.mark.parametrize("name", ["z_loss", "label_smoothing"])
def test_no_derivative_is_silently_0(name):
    """Of torch.func, for numbers that torch takes as 0-d tensors."""

    def loss(value):
        return pg.cross_entropy(LOGITS, TARGET, **{name: value})

    with pytest.raises((TypeError, RuntimeError), match=name):
        torch.func.grad(loss)(torch.tensor(0.1))
    with pytest.raises((TypeError, RuntimeError), match=name):
        loss(torch.tensor(0.1, requires_grad=True))


def test_weights_that_float32_rounds_to_0():
    """Are 0 for all who ask: the loss, its mean and its derivatives, also under vmap."""
    tiny = torch.tensor([1.0, 1e-60, 1.0], dtype=torch.float64)
    options = {"row_weight": tiny, "z_loss": 0.1}
    expected = pg.cross_entropy(LOGITS, TARGET, row_weight=(tiny > 0.5).double(), z_loss=0.1)
    torch.testing.assert_close(pg.cross_entropy(LOGITS, TARGET, **options), expected)
    stacked = torch.func.vmap(lambda z: pg.cross_entropy(z, TARGET, **options))(LOGITS[None])
    torch.testing.assert_close(stacked[0], expected)
