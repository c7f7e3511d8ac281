"""Two gloo processes of a Trainer train as one with the whole batch does."""

from __future__ import annotations

import os
import socket

import torch
from frameworks import framework
from ranks import on_ranks

framework("transformers")

from test_transformers import (  # noqa: E402
    assert_same,
    language_model,
    weights_after_training,
    with_loss_function,
)

from powergrad_ext.integrations.transformers import trainer_loss  # noqa: E402

PROCESSES = 2


def train(port, folder):
    """Labels are unequally many in the processes: each batch of two has one long row."""
    rank = torch.distributed.get_rank()
    torch.distributed.destroy_process_group()  # the Trainer makes its own
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(PROCESSES),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    options = {"batch_size": 1, "arguments": {"gradient_accumulation_steps": 2}}
    with_trainer = weights_after_training(
        folder, language_model(), loss=trainer_loss(0.3), **options
    )
    options["arguments"] = {"gradient_accumulation_steps": 2}
    assert_same(weights_after_training(folder, with_loss_function(0.3), **options), with_trainer)
    if rank == 0:
        torch.save(with_trainer, folder / "weights.pt")


def test_two_processes(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    on_ranks(PROCESSES, train, port, tmp_path)
    whole = weights_after_training(tmp_path, language_model(), loss=trainer_loss(0.3))
    assert_same(torch.load(tmp_path / "weights.pt"), whole)
