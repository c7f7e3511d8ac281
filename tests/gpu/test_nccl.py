"""Classes sharded over GPUs by NCCL; a single one runs all but the exchange."""

import os

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

import powergrad_ext as pg
from powergrad_ext.distributed import vocab_parallel_cross_entropy

ROWS, CLASSES = 257, 1001


def problem(dtype):
    random = torch.Generator().manual_seed(0)
    logits = (3 * torch.randn(ROWS, CLASSES, generator=random)).to(dtype).cuda()
    target = torch.randint(CLASSES, (ROWS,), generator=random).cuda()
    target[3] = -100
    return logits, target


def check_shards(dtype):
    logits, target = problem(dtype)
    own = logits.tensor_split(dist.get_world_size(), 1)[dist.get_rank()].clone().requires_grad_()
    vocab_parallel_cross_entropy(own, target)  # exchanges sizes, which waits
    torch.cuda.set_sync_debug_mode("error")
    loss = vocab_parallel_cross_entropy(own, target, label_smoothing=0.1, alpha=0.4)
    loss.backward()
    torch.cuda.set_sync_debug_mode("default")
    alone = logits.double().requires_grad_()
    right = pg.cross_entropy(alone, target, label_smoothing=0.1, alpha=0.4)
    right.backward()
    torch.testing.assert_close(loss.double(), right, rtol=4e-6, atol=0)
    whole = alone.grad.tensor_split(dist.get_world_size(), 1)[dist.get_rank()]
    bound = {"rtol": 2 * torch.finfo(dtype).eps, "atol": 4e-6 * alone.grad.abs().max().item()}
    torch.testing.assert_close(own.grad.double(), whole, **bound)


def check_dtensor(dtype):
    logits, target = problem(dtype)
    mesh = init_device_mesh("cuda", (dist.get_world_size(),))
    given = distribute_tensor(logits, mesh, [Shard(1)]).requires_grad_()
    found = pg.cross_entropy(given, distribute_tensor(target, mesh, [Replicate()]))
    found.backward()
    alone = logits.clone().requires_grad_()
    right = pg.cross_entropy(alone, target)
    right.backward()
    torch.testing.assert_close(found.full_tensor(), right)
    torch.testing.assert_close(given.grad.full_tensor(), alone.grad)


def run(rank, processes, rendezvous):
    torch.cuda.set_device(rank)
    dist.init_process_group(
        "nccl", init_method=f"file://{rendezvous}", rank=rank, world_size=processes
    )
    for dtype in (torch.float32, torch.bfloat16):
        check_shards(dtype)
        check_dtensor(dtype)
    dist.barrier()
    os._exit(0)  # as tests/framework/test_distributed.py tells


def test_processes(tmp_path):
    if not dist.is_nccl_available():
        pytest.skip("torch was built without NCCL")
    processes = torch.cuda.device_count()
    torch.multiprocessing.spawn(run, (processes, tmp_path / "rendezvous"), processes)
