"""Where a step's time goes, as torch.profiler sees it.

Operators are named there by themselves (powergrad::cross_entropy_forward_gradient), through the
ranges that torch's dispatcher opens while somebody profiles; around them stands a range with the
peer's name. Under `nsys profile` the same names appear as NVTX ranges. Without a profiler none of
these ranges exists.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch
from rich.console import Console
from torch.autograd.profiler import emit_nvtx
from torch.profiler import ProfilerActivity, profile, record_function

from .cases import Group
from .measure import checked_steps
from .peers import Peer
from .problem import Problem

CALLS = 5
SHOWN_ROWS = 25


def write_profile(group: Group, peers: Sequence[Peer], folder: Path, console: Console) -> None:
    """Write a trace of a few calls of each peer into the folder, and print a table of operators."""
    steps, _ = checked_steps(Problem(group), peers)
    on_gpu = group.device == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with profile(activities=activities, record_shapes=True) as profiler, nvtx_ranges(on_gpu):
        for name, step in steps.items():
            for _ in range(CALLS):
                step.prepare()
                with record_function(name):
                    step.run()
        if on_gpu:
            torch.cuda.synchronize()
    folder.mkdir(parents=True, exist_ok=True)
    trace = folder / f"{group.case.name}-{group.dtype}-{group.mode}.json"
    profiler.export_chrome_trace(str(trace))
    order = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    table = profiler.key_averages().table(sort_by=order, row_limit=SHOWN_ROWS)
    console.print(str(group), table, f"Written to {trace}", sep="\n", soft_wrap=True, markup=False)


def nvtx_ranges(on_gpu: bool) -> AbstractContextManager[object]:
    """For a profiler that watches from outside, which torch can serve with a CUDA build only."""
    return emit_nvtx() if on_gpu else nullcontext()
