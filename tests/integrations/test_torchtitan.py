"""torchtitan: its own loss at alpha 1, the identity in float64, alone, compiled and in chunks."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from frameworks import framework
from ranks import on_ranks

framework("torchtitan")

from torch.distributed.device_mesh import init_device_mesh  # noqa: E402
from torch.distributed.tensor import Replicate, Shard, distribute_tensor  # noqa: E402
from torchtitan.components.loss import ChunkedLossWrapper, CrossEntropyLoss  # noqa: E402
from torchtitan.config import CompileConfig  # noqa: E402
from torchtitan.distributed import spmd_types, utils  # noqa: E402

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


def expected_metrics(logits, labels, tokens):
    """By torch, in float64."""
    z, counts = logits.detach().double(), labels != -100
    log_p = z.log_softmax(-1)
    of_target = log_p.gather(-1, labels.clamp_min(0).unsqueeze(-1)).squeeze(-1)
    rows = {
        "log_prob_mean": of_target,
        "entropy_mean": torch.special.entr(log_p.exp()).sum(-1),
        "correct_mean": (z.argmax(-1) == labels).double(),
    }
    return {name: (values[counts].sum() / tokens).float() for name, values in rows.items()}


@pytest.mark.parametrize("compiled", [False, True])
def test_metrics_and_z_loss(compiled):
    torch._dynamo.reset()
    compiling = CompileConfig(enable=compiled, components=["loss"], backend="aot_eager")
    logits, labels = batch()
    config = PowerGradLoss.Config(alpha=0.3, z_loss=0.1, metrics=True)
    found, metrics = config.build(compile_config=compiling)(logits, labels, torch.tensor(13.0))
    torch.testing.assert_close(metrics, expected_metrics(logits, labels, 13))
    squares = logits.detach().double().logsumexp(-1)[labels != -100].square().sum()
    plain, _ = PowerGradLoss.Config(alpha=0.3).build()(logits, labels, torch.tensor(13.0))
    torch.testing.assert_close(found, (plain + 0.1 * squares / 13).float())
    found.backward()
    z = logits.detach().double()
    p = torch.softmax(0.3 * z, -1)
    counts = (labels != -100).unsqueeze(-1)
    q = torch.nn.functional.one_hot(labels.clamp(min=0), z.shape[-1])
    of_p = 1 + 2 * 0.1 * z.logsumexp(-1, keepdim=True)
    expected = torch.where(counts, (p * of_p - q) / 13, 0.0)
    torch.testing.assert_close(logits.grad.double(), expected, rtol=1e-5, atol=1e-7)
    _, sums = config.build()(logits, labels)
    torch.testing.assert_close(sums, expected_metrics(logits, labels, 1))


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


def sharded_by_dtensor(compiling):
    """As torchtitan's parallelize functions leave the logits; labels plain, or DTensors as well."""
    mesh = init_device_mesh("cpu", (2,), mesh_dim_names=("tp",))
    logits, labels = batch()
    right = identity(logits, labels, 13)
    value, _ = CrossEntropyLoss.Config().build()(logits, labels, torch.tensor(13.0))
    utils.set_spmd_backend("partial_dtensor")
    for placement, of_labels in ((Shard(2), None), (Shard(2), Replicate()), (Shard(1), Shard(1))):
        given = distribute_tensor(logits.detach(), mesh, [placement]).requires_grad_()
        torch._dynamo.reset()  # which would take other local sizes for dynamic; torch then fails
        its_labels = labels if of_labels is None else distribute_tensor(labels, mesh, [of_labels])
        loss = PowerGradLoss.Config(alpha=0.3, metrics=True).build(compile_config=compiling)
        found, metrics = loss(given, its_labels, torch.tensor(13.0))
        torch.testing.assert_close(metrics, expected_metrics(logits, labels, 13))
        found.backward()
        whole = found if of_labels is None else found.full_tensor()
        torch.testing.assert_close(whole, value)
        torch.testing.assert_close(given.grad.full_tensor(), right.float())


def sharded_as_plain_tensors(compiling):
    """The backend "spmd_types": local tensors, and the mesh beside them."""
    mesh = init_device_mesh("cpu", (2,), mesh_dim_names=("tp",))
    logits, labels = batch()
    right = identity(logits, labels, 13).float()
    value, _ = CrossEntropyLoss.Config().build()(logits, labels, torch.tensor(13.0))
    utils.set_spmd_backend("spmd_types")
    own = logits.detach().chunk(2, -1)[dist.get_rank()].clone().requires_grad_()
    with spmd_types.set_current_spmd_mesh(mesh):
        loss = PowerGradLoss.Config(alpha=0.3, metrics=True).build(compile_config=compiling)
        found, metrics = loss(own, labels, torch.tensor(13.0))
        torch.testing.assert_close(metrics, expected_metrics(logits, labels, 13))
        found.backward()
        theirs, _ = CrossEntropyLoss.Config(global_vocab_size=30).build()(
            own, labels, torch.tensor(13.0)
        )
    torch.testing.assert_close(found, value)
    torch.testing.assert_close(found, theirs)
    torch.testing.assert_close(own.grad, right.chunk(2, -1)[dist.get_rank()])


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("check", [sharded_by_dtensor, sharded_as_plain_tensors])
def test_tensor_parallel(check, compiled):
    compiling = CompileConfig(enable=compiled, components=["loss"], backend="aot_eager")
    on_ranks(2, check, compiling)
