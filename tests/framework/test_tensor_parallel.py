"""FSDP2 times tensor parallel, on four ranks: a small transformer trains as on one.

Its last layer shards the vocabulary, and its logits come to the loss as they are.
"""

import re
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from ranks import on_ranks
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Replicate, Shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    parallelize_module,
)

import powergrad_ext as pg
from powergrad_ext.distributed import vocab_parallel_cross_entropy

SHAPE = (2, 2)  # data, tensor
BATCH, LENGTH, WIDTH, HEADS, VOCABULARY = 4, 6, 16, 4, 29
STEPS = 3


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.query = nn.Linear(WIDTH, WIDTH)
        self.key = nn.Linear(WIDTH, WIDTH)
        self.value = nn.Linear(WIDTH, WIDTH)
        self.out = nn.Linear(WIDTH, WIDTH)
        self.up = nn.Linear(WIDTH, 4 * WIDTH)
        self.down = nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x):
        heads = [
            layer(x).unflatten(-1, (-1, WIDTH // HEADS)).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        ]
        mixed = F.scaled_dot_product_attention(*heads, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(x)))


class Transformer(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.block = Block()
        self.head = nn.Linear(WIDTH, VOCABULARY)

    def forward(self, tokens):
        return self.head(self.block(self.embedding(tokens)))


def with_dtensor(logits, target, mesh):
    return pg.cross_entropy(logits.flatten(0, 1), target.flatten(), alpha=0.4).full_tensor()


def with_local_logits(logits, target, mesh):
    group = mesh.get_group("tensor")
    return vocab_parallel_cross_entropy(
        logits.flatten(0, 1), target.flatten(), alpha=0.4, group=group
    )


def alone(logits, target, mesh):
    return pg.cross_entropy(logits.flatten(0, 1), target.flatten(), alpha=0.4)


def sharded(model, mesh, local_logits):
    plan = {
        **{f"block.{name}": ColwiseParallel() for name in ("query", "key", "value", "up")},
        **{f"block.{name}": RowwiseParallel() for name in ("out", "down")},
        "embedding": RowwiseParallel(input_layouts=Replicate()),
        "head": ColwiseParallel(output_layouts=Shard(-1), use_local_output=local_logits),
    }
    parallelize_module(model, mesh["tensor"], plan)
    for layer in (model.block, model.head, model):
        fully_shard(layer, mesh=mesh["data"])
    return model


def train(model, loss, tokens, mesh=None):
    """The losses of a few steps."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    losses = []
    for _ in range(STEPS):
        value = loss(model(tokens[:, :-1]), tokens[:, 1:], mesh)
        value.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(value.detach())
    return torch.stack(losses)


def run(loss, compiles):
    torch.set_default_dtype(torch.float64)
    mesh = init_device_mesh("cpu", SHAPE, mesh_dim_names=("data", "tensor"))
    random = torch.Generator().manual_seed(1)
    tokens = torch.randint(VOCABULARY, (BATCH, LENGTH + 1), generator=random)
    right_model = Transformer()
    right = train(right_model, alone, tokens)
    model = sharded(Transformer(), mesh, local_logits=loss is with_local_logits)
    if compiles:
        loss = torch.compile(loss, backend="aot_eager")
    own = tokens.chunk(SHAPE[0])[mesh["data"].get_local_rank()]
    found = train(model, loss, own, mesh)
    dist.all_reduce(found)
    torch.testing.assert_close(found / dist.get_world_size(), right, rtol=1e-10, atol=0)
    for parameter, whole in zip(model.parameters(), right_model.parameters(), strict=True):
        torch.testing.assert_close(parameter.full_tensor(), whole, rtol=1e-9, atol=1e-11)


def run_page(code):
    """The page's block as it stands; the names that it does not make are those of such a layer."""
    mesh = init_device_mesh("cpu", (2,))
    torch.manual_seed(0)
    head, hidden = nn.Linear(WIDTH, VOCABULARY, bias=False), torch.randn(BATCH * LENGTH, WIDTH)
    target = torch.randint(VOCABULARY, (BATCH * LENGTH,))
    right = pg.cross_entropy(head(hidden), target, alpha=0.3)
    layout = ColwiseParallel(output_layouts=Shard(-1), use_local_output=False)
    parallelize_module(head, mesh, layout)
    logits = head(hidden.view(BATCH, LENGTH, WIDTH))
    names = {
        "pg": pg,
        "mesh": mesh,
        "group": mesh.get_group(),
        "local_logits": logits.to_local().flatten(0, 1),
        "logits": logits,
        "hidden": hidden,
        "head": head,
        "target": target,
    }
    blocks = re.split(r"^(?=# )", code, flags=re.MULTILINE)[1:]
    assert len(blocks) == 3
    for block in blocks:
        exec(compile(block, "sharded_vocabularies.md", "exec"), names)
        torch.testing.assert_close(names.pop("loss"), right)


def test_page():
    text = (Path(__file__).parents[2] / "docs" / "sharded_vocabularies.md").read_text()
    code = text.split("```python\n")[1].split("```")[0]
    on_ranks(2, run_page, code)


@pytest.mark.parametrize("compiles", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("loss", [with_dtensor, with_local_logits])
def test_training(loss, compiles):
    on_ranks(SHAPE[0] * SHAPE[1], run, loss, compiles)
