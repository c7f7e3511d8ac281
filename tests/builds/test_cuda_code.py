"""The CUDA kernels as far as no GPU is needed: every architecture compiles and nothing spills."""

from __future__ import annotations

import re
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import cuda_code
import pytest
from commands import REPOSITORY, run
from cuda_code import ARCHITECTURES, Kernel

from powergrad_ext import _build

GROUPS = _build.read_sources(REPOSITORY / "csrc")
SOURCES = [path for path in GROUPS["cuda"] if path.suffix == ".cu"]
BUILD = REPOSITORY / "build" / "cuda"
JOBS = 2

needs_nvcc = pytest.mark.skipif(cuda_code.nvcc() is None, reason="nvcc is not found")
needs_disassembler = pytest.mark.skipif(
    cuda_code.disassembler() is None,
    reason="nvdisasm is not found: pip install nvidia-cuda-nvdisasm",
)
each_source = pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
each_architecture = pytest.mark.parametrize("architecture", ARCHITECTURES)

Compiled = dict[tuple[Path, str], "Future[tuple[Path, str]]"]


@pytest.fixture(scope="module")
def compiled() -> Compiled:
    """Every source for every architecture; begun together, waited for one by one."""
    pool = ThreadPoolExecutor(JOBS)
    jobs = {
        (source, architecture): pool.submit(cuda_code.compile_kernels, source, architecture, BUILD)
        for source in SOURCES
        for architecture in ARCHITECTURES
    }
    pool.shutdown(wait=False)
    return jobs


@needs_nvcc
@each_source
@each_architecture
def test_no_kernel_uses_local_memory(compiled: Compiled, source: Path, architecture: str) -> None:
    _, report = compiled[source, architecture].result()
    kernels = list(cuda_code.parse_ptxas(report))
    assert kernels
    spilling = [kernel for kernel in kernels if kernel.local_bytes]
    names = cuda_code.demangled([kernel.symbol for kernel in spilling])
    assert not names, f"{len(names)} of {len(kernels)} kernels have a stack frame or spill: {names}"


@needs_nvcc
@pytest.mark.skipif(not SOURCES, reason="there are no CUDA kernels")
def test_every_kernel_leaves_room_for_two_blocks(compiled: Compiled) -> None:
    """And the table of all of them goes to build/cuda/resources.txt."""
    kernels = [
        kernel for job in compiled.values() for kernel in cuda_code.parse_ptxas(job.result()[1])
    ]
    (BUILD / "resources.txt").write_text(cuda_code.table(kernels))
    crowded = [kernel for kernel in kernels if _blocks(kernel) < 2]
    assert cuda_code.demangled([kernel.symbol for kernel in crowded]) == []


def _blocks(kernel: Kernel) -> float:
    limits = cuda_code.LIMITS[kernel.architecture]
    return kernel.occupancy() * limits.warps * 32 / cuda_code.THREADS


# Of kernels over contiguous rows, whose second argument is how many elements make 16 bytes.
OVER_VECTORS = re.compile(r"(cross_entropy|log_softmax)_(forward|backward)_kernel<(\S+), (\d+)")


@needs_nvcc
@needs_disassembler
@each_source
@each_architecture
def test_vectors_and_exponentials_of_the_machine_code(
    compiled: Compiled, source: Path, architecture: str
) -> None:
    code = cuda_code.machine_code(compiled[source, architecture].result()[0])
    over_vectors = 0
    for name, instructions in zip(cuda_code.demangled(list(code)), code.values(), strict=True):
        assert not re.search(r"\b(LDL|STL)\b", instructions), f"{name} uses local memory"
        found = OVER_VECTORS.match(name)
        if found is None or int(found[4]) == 1:
            continue
        over_vectors += 1
        operation, direction, storage = found[1], found[2], found[3]
        assert re.search(r"\bLDG\.E\S*\.128\b", instructions), f"{name} reads no 16 bytes at once"
        if operation == "log_softmax" or direction == "backward" or name.endswith("true>"):
            assert re.search(r"\bSTG\.E\S*\.128\b", instructions), f"{name} writes no 16 bytes"
        if storage != "double":
            assert re.search(r"\bMUFU\.EX2\b", instructions), f"{name} has no exponential"
    assert over_vectors or not source.stem.endswith(("forward", "backward"))


@needs_nvcc
@pytest.mark.parametrize("source", GROUPS["torch_cuda"], ids=lambda path: path.stem)
def test_the_binding_is_valid_in_front_of_any_torch(source: Path) -> None:
    """Its syntax and types, against the headers of a torch that may have no CUDA itself."""
    from torch.utils import cpp_extension

    compiler = cuda_code.nvcc()
    assert compiler is not None
    toolkit = compiler.resolve().parents[1] / "include"
    if not (toolkit / "cuda_runtime_api.h").exists():
        pytest.skip(f"the toolkit's headers are not in {toolkit}")
    include = [f"-isystem{path}" for path in [*cpp_extension.include_paths(), toolkit]]
    macros = ["-DC10_CUDA_NO_CMAKE_CONFIGURE_FILE", "-DPOWERGRAD_WITH_CUDA"]
    checks = ["-std=c++20", "-fsyntax-only", "-Wall", "-Wextra", "-Werror"]
    csrc = REPOSITORY / "csrc"
    run(*_build.compiler(), *checks, *macros, f"-I{csrc}", *include, source, cwd=csrc)


SPILLING = """
__global__ void spills(float* x, int step) {
  float many[64] = {};
  for (int i = 0; i < 64; ++i) many[i * step % 64] += x[i];
  for (int i = 0; i < 64; ++i) x[i] = many[i];
}
__global__ void does_not(float* x) { x[threadIdx.x] += 1.0f; }
"""


@needs_nvcc
def test_local_memory_would_be_seen(tmp_path: Path) -> None:
    source = tmp_path / "spilling.cu"
    source.write_text(SPILLING)
    _, report = cuda_code.compile_kernels(source, "sm_90", tmp_path / "build")
    kernels = list(cuda_code.parse_ptxas(report))
    names = cuda_code.demangled([kernel.symbol for kernel in kernels])
    local = dict(zip(names, (kernel.local_bytes > 0 for kernel in kernels), strict=True))
    assert local == {"spills": True, "does_not": False}


@needs_nvcc
def test_a_report_is_kept_until_the_source_changes(tmp_path: Path) -> None:
    source = tmp_path / "kernel.cu"
    source.write_text("__global__ void one(float* x) { *x = 1; }")
    first, _ = cuda_code.compile_kernels(source, "sm_90", tmp_path / "build")
    made = first.stat().st_mtime_ns
    again, _ = cuda_code.compile_kernels(source, "sm_90", tmp_path / "build")
    assert again.stat().st_mtime_ns == made
    source.write_text("__global__ void two(float* x) { *x = 2; }")
    changed, report = cuda_code.compile_kernels(source, "sm_90", tmp_path / "build")
    assert "two" in report
    assert changed != first
    assert not first.exists()


@pytest.mark.parametrize(
    ("registers", "architecture", "expected"),
    [
        (32, "sm_90", 1.0),
        (33, "sm_90", 0.75),  # 1280 a warp: 51 warps, so 6 blocks of 8
        (64, "sm_80", 0.5),
        (64, "sm_120", 2 / 3),  # 48 warps at most
        (255, "sm_100", 0.125),
    ],
)
def test_occupancy(registers: int, architecture: str, expected: float) -> None:
    """By hand, from the rules of NVIDIA's occupancy calculator."""
    kernel = Kernel("", architecture, registers, shared_bytes=0, local_bytes=0)
    assert kernel.occupancy(256) == pytest.approx(expected)
