"""How much memory a step takes at its peak, besides what it is given.

On a CPU that is resident memory, told by a process of its own, in which nobody else's freed memory
waits to be used again. On a GPU torch's allocator knows it, in whatever process.
"""

from __future__ import annotations

import ctypes
import multiprocessing
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from .cases import CASES, Group
from .measure import checked_steps
from .peers import Peer, registry
from .problem import Problem
from .result import Record, Result
from .step import Step


@dataclass(frozen=True)
class Peak:
    """The most bytes that one peer's step held at once, or why there is no figure."""

    group: Group
    peer: str
    bytes: int | None
    reason: str = ""

    @property
    def of_logits(self) -> float:
        """In units of the logits' own size."""
        return (self.bytes or 0) / self.group.logits_bytes

    def as_json(self) -> list[Record]:
        about = {"kind": "memory", **self.group.as_json()}
        return [{**about, "peer": self.peer, "bytes": self.bytes, "reason": self.reason}]

    @classmethod
    def from_json(cls, record: Record) -> Peak:
        return cls(Group.from_json(record), record["peer"], record["bytes"], record["reason"])


def peaks_of(records: Iterable[Record]) -> list[Peak]:
    """The peaks of a file, in its order."""
    return [Peak.from_json(record) for record in records if record["kind"] == "memory"]


def as_results(peaks: Iterable[Peak]) -> list[Result]:
    """The peaks of each group as its peers' one round, to be judged as times are."""
    results: dict[Group, Result] = {}
    for peak in peaks:
        result = results.setdefault(peak.group, Result(peak.group))
        if peak.bytes is None:
            result.skipped[peak.peer] = peak.reason
        else:
            result.seconds[peak.peer] = np.array([float(peak.bytes)])
    return list(results.values())


def peak(group: Group, peer: Peer, alphas: Sequence[float], threads: int) -> Peak:
    """Measure one peer, where it matters in a process of its own."""
    if group.device == "cuda":
        return peak_here(group, peer.name, alphas, threads)
    arguments = (group, peer.name, tuple(alphas), threads)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(peak_here, arguments)


def peak_here(group: Group, name: str, alphas: Sequence[float], threads: int) -> Peak:
    """Run the step once at a small size, for what loads with it, and measure it at its own."""
    torch.set_num_threads(threads)
    peer = next(peer for peer in registry(alphas) if peer.name == name)
    for of_group in (replace(group, case=CASES["tiny"]), group):
        steps, skipped = checked_steps(Problem(of_group), [peer])
        if skipped:
            return Peak(group, name, None, skipped[name])
    step = steps[name]
    return Peak(group, name, cuda_peak(step) if group.device == "cuda" else resident_peak(step))


def resident_peak(step: Step) -> int:
    """By how much resident memory rises above what is there before the call."""
    step.prepare()
    ctypes.CDLL(None).malloc_trim(0)  # what earlier calls freed is no room for this one
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
    before = resident("VmRSS")
    output = step.run()
    after = resident("VmHWM")
    del output
    return max(after - before, 0)


def resident(field: str) -> int:
    """A size in /proc/self/status, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


def cuda_peak(step: Step) -> int:
    """By how much the allocator's peak rises above what is allocated before the call."""
    step.prepare()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    output = step.run()
    torch.cuda.synchronize()
    peak_bytes = torch.cuda.max_memory_allocated() - before
    del output
    return peak_bytes
