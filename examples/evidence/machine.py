"""What the figures of a run depend on, in a line."""

from __future__ import annotations

import platform

import torch

import powergrad_ext
from powergrad_ext._native import _C


def machine(threads: int) -> str:
    """Return the processor, the number of threads used, versions and instruction sets in a line."""
    processor = torch.cpu.get_capabilities().get("cpu_name") or platform.machine()
    return (
        f"{processor}, {count_of(threads)}, torch {torch.__version__} "
        f"({torch.backends.cpu.get_cpu_capability()}), powergrad_ext {powergrad_ext.__version__} "
        f"({_C.isa().upper()})"
    )


def count_of(threads: int) -> str:
    """Return so many threads, in words."""
    return "1 thread" if threads == 1 else f"{threads} threads"
