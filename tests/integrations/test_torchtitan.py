"""torchtitan: its own loss at alpha 1, the identity in float64, alone, compiled and in chunks."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from frameworks import framework

framework("torchtitan")

from torchtitan.components.loss import ChunkedLossWrapper, CrossEntropyLoss  # noqa: E402
from torchtitan.config import CompileConfig  # noqa: E402

from powergrad_ext.integrations.torchtitan import PowerGradLoss  # noqa: E402


def batch(dtype=torch.float32):
    random = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 8, 30, generator=random).to(dtype).requires_grad_()
    labels = torch.randint(30, (2, 8), generator=random)
    labels[0, 5:] = -100
    return logits, labels


def identity(logits, labels, tokens, alpha=0.3):
    z = logits.detach().double().requires_grad_()
    loss = F.cross_entropy(alpha * z.flatten(0, 1), labels.flatten(), reduction="sum") / alpha
    return torch.autograd.grad(loss / tokens, z)[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("compiled", [False, True])
def test_the_loss(dtype, compiled):
    torch._dynamo.reset()
    compiling = CompileConfig(enable=compiled, components=["loss"], backend="aot_eager")
    logits, labels = batch(dtype)
    tokens = torch.tensor(13.0)
    theirs, _ = CrossEntropyLoss.Config().build()(logits, labels, tokens)
    for alpha in (1.0, 0.3):
        loss = PowerGradLoss.Config(alpha=alpha).build(compile_config=compiling)
        found, metrics = loss(logits, labels, tokens)
        assert metrics == {}
        torch.testing.assert_close(found, theirs)
        (gradient,) = torch.autograd.grad(found, logits)
        torch.testing.assert_close(gradient, identity(logits, labels, 13, alpha).to(dtype))


def test_in_chunks():
    torch.manual_seed(0)
    head, (_, labels) = torch.nn.Linear(6, 30, bias=False), batch()
    hidden = torch.randn(2, 8, 6, requires_grad=True)
    chunked = ChunkedLossWrapper.Config(num_chunks=2, loss_fn=PowerGradLoss.Config()).build()
    chunked.set_lm_head(head)
    loss, _ = chunked(hidden, labels, torch.tensor(13.0))
    loss.backward()
    logits = head(hidden)
    expected = torch.autograd.grad(logits, hidden, identity(logits, labels, 13).float())[0]
    torch.testing.assert_close(hidden.grad, expected)
