"""timm: its own losses at alpha 1, the identity in float64 at any other alpha."""

from __future__ import annotations

import pytest
import torch
from frameworks import framework

timm = framework("timm")

from timm import loss as timm_loss  # noqa: E402
from timm.task import ClassificationTask  # noqa: E402

from powergrad_ext.integrations.timm import (  # noqa: E402
    LabelSmoothingCrossEntropy,
    SoftTargetCrossEntropy,
)

CLASSES = 7
PAIRS = {
    "smoothing": (LabelSmoothingCrossEntropy, timm_loss.LabelSmoothingCrossEntropy),
    "soft": (SoftTargetCrossEntropy, timm_loss.SoftTargetCrossEntropy),
}
pairs = pytest.mark.parametrize("kind", PAIRS)


def problem(kind, dtype=torch.float32):
    random = torch.Generator().manual_seed(0)
    logits = (3 * torch.randn(6, CLASSES, generator=random)).to(dtype)
    if kind == "smoothing":
        return logits, torch.randint(CLASSES, (6,), generator=random)
    return logits, torch.rand(6, CLASSES, generator=random).softmax(-1).to(dtype)


def solve(criterion, logits, target):
    logits = logits.detach().requires_grad_()
    loss = criterion(logits, target)
    return loss.detach(), torch.autograd.grad(-1.7 * loss, logits)[0]


@pairs
def test_alpha_one_is_timms(kind):
    ours, timms = PAIRS[kind]
    torch.testing.assert_close(
        solve(ours(alpha=1.0), *problem(kind)), solve(timms(), *problem(kind))
    )
    assert isinstance(ours(), timms)


@pairs
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_gradient_is_the_transforms(kind, dtype):
    ours, timms = PAIRS[kind]
    logits, target = problem(kind, dtype)
    loss, found = solve(ours(alpha=0.3), logits, target)
    wide = logits.double(), target.double() if kind == "soft" else target
    _, expected = solve(lambda z, q: timms()(0.3 * z, q) / 0.3, *wide)
    torch.testing.assert_close(loss, timms()(*wide).float())
    torch.testing.assert_close(found, expected.to(dtype))


def test_smoothing_is_an_argument():
    logits, target = problem("smoothing")
    ours = LabelSmoothingCrossEntropy(smoothing=0.25, alpha=1.0)(logits, target)
    torch.testing.assert_close(ours, timm_loss.LabelSmoothingCrossEntropy(0.25)(logits, target))


def test_soft_targets_of_more_dimensions():
    logits, target = torch.randn(2, 3, CLASSES), torch.rand(2, 3, CLASSES)
    ours = SoftTargetCrossEntropy(alpha=1.0)(logits, target)
    torch.testing.assert_close(ours, timm_loss.SoftTargetCrossEntropy()(logits, target))


def test_soft_targets_of_one_input():
    logits, target = torch.randn(CLASSES), torch.rand(CLASSES)
    ours = SoftTargetCrossEntropy(alpha=1.0)(logits, target)
    torch.testing.assert_close(ours, timm_loss.SoftTargetCrossEntropy()(logits, target))
    with pytest.raises(ValueError, match="target must have x's shape"):
        SoftTargetCrossEntropy()(logits, target[None])


@pairs
def test_as_the_train_script_calls_it(kind):
    """train.py hands its criterion to a task, which may be compiled."""
    ours, timms = PAIRS[kind]
    torch.manual_seed(0)
    model = timm.create_model("test_resnet", num_classes=CLASSES)
    images, (_, target) = torch.randn(6, 3, 32, 32), problem(kind)
    losses = [
        ClassificationTask(model, criterion=criterion.to(device="cpu"))(images, target)["loss"]
        for criterion in (ours(alpha=0.3), timms())
    ]
    torch.testing.assert_close(*losses)
    losses[0].backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
