"""Where a step's time goes, as torch.profiler sees it.

Operators are named there by themselves (powergrad::cross_entropy), through the
ranges that torch's dispatcher opens while somebody profiles; around them stands a range with the
peer's name. On a GPU the same names are then given to NVTX, for a profiler that watches from
outside (nsys, ncu). Without a profiler none of these ranges exists.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from rich.console import Console
from torch.autograd.profiler import emit_nvtx
from torch.profiler import ProfilerActivity, profile, record_function

from .cases import Group
from .measure import checked_steps
from .peers import Peer
from .problem import Problem
from .step import Step

CALLS = 5
SHOWN_ROWS = 25


def write_profile(group: Group, peers: Sequence[Peer], folder: Path, console: Console) -> None:
    """Write a trace of a few calls of each peer into the folder, and print a table of operators."""
    steps, _ = checked_steps(Problem(group), peers)
    on_gpu = group.device == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with profile(activities=activities, record_shapes=True) as profiler:
        call(steps)
        if on_gpu:
            torch.cuda.synchronize()
    if on_gpu:
        with emit_nvtx():
            call(steps)
    folder.mkdir(parents=True, exist_ok=True)
    trace = folder / f"{group.case.name}-{group.dtype}-{group.mode}.json"
    profiler.export_chrome_trace(str(trace))
    order = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    table = profiler.key_averages().table(sort_by=order, row_limit=SHOWN_ROWS)
    console.print(str(group), table, f"Written to {trace}", sep="\n", soft_wrap=True, markup=False)


def call(steps: Mapping[str, Step]) -> None:
    """A few calls of each, in a range of its name."""
    for name, step in steps.items():
        for _ in range(CALLS):
            step.prepare()
            with record_function(name):
                step.run()
