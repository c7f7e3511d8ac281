"""Processes for what trains in several."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from typing import Any

import torch


def start(function: Callable[..., None], arguments: tuple[Any, ...], count: int) -> None:
    """Run ``function(rank, *arguments)`` in each process.

    They are forked from one server that has imported what takes long. The test's own process has
    threads and perhaps a GPU, and cannot be forked.
    """
    multiprocessing.set_forkserver_preload(["torch.distributed.fsdp", "transformers.trainer"])
    torch.multiprocessing.start_processes(function, arguments, count, start_method="forkserver")
