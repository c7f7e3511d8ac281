"""Ranks of a process group on gloo, for what is tested in several processes."""

from __future__ import annotations

import datetime
import multiprocessing
import os
import tempfile
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import ProcessRaisedException

IMPORTED = (
    "torch._dynamo",
    "torch.distributed.fsdp",
    "torch.distributed.tensor.parallel",
    "transformers.trainer",
)


def on_ranks(count: int, function: Callable[..., None], *arguments: Any) -> None:
    """Runs ``function(*arguments)`` on each rank; what it raises reaches the test.

    Ranks are forked from one server that has imported what takes long. The test's own process has
    threads and perhaps a GPU, and cannot be forked. Now and then gloo fails to connect the ranks of
    a new group; they are started once more then.
    """
    multiprocessing.set_forkserver_preload(list(IMPORTED))
    for is_last in (False, True):
        with tempfile.TemporaryDirectory() as folder:
            try:
                torch.multiprocessing.start_processes(
                    _rank, (count, folder, function, arguments), count, start_method="forkserver"
                )
            except ProcessRaisedException as error:
                if is_last or "connectFullMesh failed" not in str(error):
                    raise
            else:
                return


def _rank(
    rank: int, count: int, folder: str, function: Callable[..., None], arguments: Any
) -> None:
    """Ends its process itself.

    DTensor's caches keep the mesh, and with it the process group and the threads of gloo, alive
    after destroy_process_group. Such a thread needs the interpreter to release the tensors of its
    last collective; on a busy machine it comes to that only while the interpreter is being
    finalized, which aborts the process.
    """
    torch.set_num_threads(1)
    timeout = datetime.timedelta(seconds=120)  # for a rank that exchanges something else
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=count, timeout=timeout
    )
    function(*arguments)
    dist.barrier()  # none leaves while another still talks to it
    os._exit(0)
