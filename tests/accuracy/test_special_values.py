"""Infinities and NaNs: what they mean, and that they stay in their own row."""

import math

import pytest
import torch
from cases import LAYOUTS, make_logits, solve_rows
from oracle import assert_gradient, assert_loss, definition

INF = math.inf
IGNORED = -100
ROW = 2  # the row that a test spoils

pytestmark = pytest.mark.parametrize("layout", LAYOUTS)


@pytest.fixture
def rows(dtype, device):
    """Whole vectors before and after row 2, in both layouts."""
    return make_logits((37, 40), dtype, device)


@pytest.fixture
def target(device):
    return torch.arange(37, device=device)


def assert_as_torch(losses, gradients, rows, target, **options):
    grad_output = torch.ones(len(rows), device=rows.device)
    expected = definition(rows, target, grad_output, alpha=0.3, reduction="none", **options)
    assert_loss(losses, expected.loss)
    assert_gradient(gradients, expected.gradient, 1)


def assert_others_untouched(spoiled, clean):
    keep = torch.arange(len(clean[0])) != ROW
    for now, before in zip(spoiled, clean, strict=True):
        assert torch.equal(now[keep], before[keep])


def test_masked_classes_have_gradient_zero(rows, target, layout, isa):
    rows[ROW, 5:30] = -INF
    losses, gradients = solve_rows(rows, target, layout)
    assert (gradients[ROW, 5:30] == 0).all()
    assert_as_torch(losses, gradients, rows, target)


def test_masked_target(rows, target, layout, isa):
    """The loss is infinite as torch's is; the gradient still pulls the target up."""
    rows[ROW, target[ROW]] = -INF
    losses, gradients = solve_rows(rows, target, layout)
    assert losses[ROW] == INF
    assert gradients[ROW, target[ROW]] == -1
    assert_as_torch(losses, gradients, rows, target)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_masked_class_under_probabilities_and_smoothing(rows, layout, smoothing, isa):
    """0 times -inf is NaN in torch's loss, and so here; smoothing makes it inf."""
    rows[ROW, 5:30] = -INF
    probabilities = torch.rand(rows.shape, device=rows.device).to(rows.dtype)
    probabilities[ROW, 5:30] = 0
    losses, gradients = solve_rows(rows, probabilities, layout, label_smoothing=smoothing)
    assert_as_torch(losses, gradients, rows, probabilities, label_smoothing=smoothing)


@pytest.mark.parametrize("poison", [math.nan, INF], ids=["nan", "inf"])
@pytest.mark.parametrize("column", [0, 17, 39], ids=["first", "middle", "last"])
def test_poison_stays_in_its_row(rows, target, layout, poison, column, isa):
    clean = solve_rows(rows, target, layout)
    rows[ROW, column] = poison
    losses, gradients = solve_rows(rows, target, layout)
    assert losses[ROW].isnan()
    assert gradients[ROW].isnan().all()
    assert_others_untouched((losses, gradients), clean)


def test_row_of_minus_infinity(rows, target, layout, isa):
    """No class is possible: NaN, as torch has it, and only there."""
    clean = solve_rows(rows, target, layout)
    rows[ROW] = -INF
    losses, gradients = solve_rows(rows, target, layout)
    assert losses[ROW].isnan()
    assert gradients[ROW].isnan().all()
    assert_others_untouched((losses, gradients), clean)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("poison", [math.nan, INF, -INF], ids=str)
def test_ignored_rows_may_hold_anything(rows, target, layout, poison, smoothing, isa):
    target[ROW] = IGNORED
    rows[ROW] = poison
    losses, gradients = solve_rows(rows, target, layout, label_smoothing=smoothing)
    assert losses[ROW] == 0
    assert (gradients[ROW] == 0).all()
    assert losses.isfinite().all()
    assert gradients.isfinite().all()


@pytest.mark.parametrize("alpha", [0.3, 2.0])
def test_the_largest_finite_logits(dtype, device, layout, alpha, isa):
    """Differences overflow to -inf, which is what they are; nothing turns into NaN."""
    largest = torch.finfo(dtype).max
    rows = torch.tensor([[largest, -largest, 0.0], [-largest, -largest, -largest]], dtype=dtype)
    rows = rows.to(device).repeat(1, 11)
    target = torch.zeros(2, dtype=torch.int64, device=device)
    losses, gradients = solve_rows(rows, target, layout, alpha=alpha)
    assert losses.tolist() == pytest.approx([math.log(11), math.log(33)], rel=4e-6)
    assert gradients[0, 0].item() == pytest.approx(1 / 11 - 1, rel=8e-3)
    assert (gradients[0, 1::3] == 0).all()
    assert gradients[1, 1].item() == pytest.approx(1 / 33, rel=8e-3)
