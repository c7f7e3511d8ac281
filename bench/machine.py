"""Where the figures were taken: without that, they say nothing."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

import powergrad_ext
from powergrad_ext._native import _C

from . import allocator

PACKAGES = (
    "numpy",
    "jax",
    "jaxlib",
    "optax",
    "triton",
    "liger-kernel",
    "quack-kernels",
    "flash-attn",
    "apex",
)
REPOSITORY = Path(__file__).resolve().parents[1]
CODE = ("csrc", "powergrad_ext", "bench", ":!bench/results")
HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def describe(device: str = "cpu") -> dict[str, Any]:
    """Machine, settings, versions and commit, as one record."""
    return {
        "kind": "machine",
        **processor(),
        **(graphics_card() if device == "cuda" else {}),
        "cpus": len(os.sched_getaffinity(0)),
        "load": os.getloadavg()[0],
        "huge_pages": huge_pages(),
        "allocator": allocator.current(),
        "threads": torch.get_num_threads(),
        "isa": _C.isa(),
        "torch_isa": torch.backends.cpu.get_cpu_capability(),
        "system": f"{platform.system()} {platform.machine()}",
        "versions": versions(),
        "commit": commit(),
    }


def processor() -> dict[str, Any]:
    """The processor's name and its number of cores, as Linux knows them.

    The family and model say which it is where a virtual machine has no more than "AMD EPYC".
    """
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        text = ""
    blocks = [
        {
            key.strip(): value.strip()
            for key, _, value in (line.partition(":") for line in block.splitlines())
        }
        for block in text.strip().split("\n\n")
    ]
    cores = {(block.get("physical id"), block.get("core id")) for block in blocks}
    name = blocks[0].get("model name", platform.machine())
    if "cpu family" in blocks[0]:
        name += f" (family {blocks[0]['cpu family']}, model {blocks[0]['model']})"
    return {"cpu": name, "cores": len(cores)}


def graphics_card() -> dict[str, Any]:
    """The GPU's name and what decides its speed."""
    card = torch.cuda.get_device_properties("cuda")
    return {
        "gpu": card.name,
        "multiprocessors": card.multi_processor_count,
        "l2_bytes": card.L2_cache_size,
        "cuda": torch.version.cuda,
    }


def lines(facts: dict[str, Any]) -> list[str]:
    """The record in two lines."""
    card = f"{facts['gpu']}, CUDA {facts['cuda']}; " if "gpu" in facts else ""
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    return [
        f"{card}{facts['cpu']}, {facts['cores']} cores, {facts['threads']} threads, "
        f"{facts['isa']} (torch: {facts['torch_isa']}), huge pages: {facts['huge_pages']}, "
        f"memory from {facts.get('allocator', allocator.DEFAULT)}, load {facts['load']:.1f}",
        f"{versions}, commit {facts['commit']}",
    ]


def huge_pages() -> str:
    """Whether the kernel gives huge pages: never, always, or where they are asked for (madvise)."""
    try:
        return HUGE_PAGES.read_text().partition("[")[2].partition("]")[0]
    except OSError:
        return "unknown"


def versions() -> dict[str, str]:
    """Versions of what takes part and is installed."""
    found = {
        "powergrad_ext": powergrad_ext.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def commit() -> str:
    """The commit of the source tree, with a plus where code has been changed since."""
    try:
        described = git("rev-parse", "--short=12", "HEAD")
        changed = git("status", "--porcelain", "--untracked-files=no", "--", *CODE)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return described + ("+" if changed else "")


def git(*arguments: str) -> str:
    """What git says about this source tree."""
    command = ("git", *arguments)
    answer = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    return answer.stdout.strip()
