"""The machine code of the CUDA kernels on every architecture: no spills, few instructions."""

from __future__ import annotations

import re
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import cuda_code
import pytest
from commands import REPOSITORY, run
from cuda_code import ARCHITECTURES, Kernel

from powergrad_ext import _build
from powergrad_ext._build import tools

GROUPS = _build.read_sources(REPOSITORY / "csrc")
SOURCES = [path for path in GROUPS["cuda"] if path.suffix == ".cu"]
BUILD = REPOSITORY / "build" / "cuda"
JOBS = 2

needs_nvcc = pytest.mark.skipif(cuda_code.nvcc() is None, reason="nvcc is not found")
needs_disassembler = pytest.mark.skipif(
    cuda_code.disassembler() is None,
    reason="nvdisasm is not found: pip install nvidia-cuda-nvdisasm",
)
pytestmark = pytest.mark.slow  # nvcc takes minutes
each_source = pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
each_architecture = pytest.mark.parametrize("architecture", ARCHITECTURES)

Compiled = dict[tuple[Path, str], "Future[tuple[Path, str]]"]


@pytest.fixture(scope="module")
def compiled() -> Compiled:
    """Every source for every architecture, compiled in the background."""
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


def least_threads(name: str) -> int:
    """For which a kernel's registers have to suffice on a multiprocessor (kLeastBlocks)."""
    has_dense_target = re.search(
        r"cross_entropy_(forward_kernel<.*, true, \w+>|backward_kernel<.*, true>)", name
    )
    if "double" in name:
        return 256
    return 512 if has_dense_target or re.search(r"StridedRows<\w+, 4>", name) else 1024


@needs_nvcc
@pytest.mark.skipif(not SOURCES, reason="there are no CUDA kernels")
def test_registers_leave_room_for_many_threads(compiled: Compiled) -> None:
    """Writes a table of all kernels to build/cuda/resources.txt."""
    kernels = [
        kernel for job in compiled.values() for kernel in cuda_code.parse_ptxas(job.result()[1])
    ]
    (BUILD / "resources.txt").write_text(cuda_code.table(kernels))
    names = cuda_code.demangled([kernel.symbol for kernel in kernels])
    crowded = [
        (name, kernel.architecture, kernel.registers)
        for name, kernel in zip(names, kernels, strict=True)
        if _threads(kernel) < least_threads(name)
    ]
    assert crowded == []


def _threads(kernel: Kernel) -> float:
    return kernel.occupancy(128) * cuda_code.LIMITS[kernel.architecture].warps * 32


# The hot loops of a kernel, in their order. Loops over partial vectors may look like one of another
# kind.
SOFTMAX = ("copy", "maximum", "search", "sums")
HOT_LOOPS = {
    "cross_entropy_forward": (*SOFTMAX, "write"),
    "cross_entropy_backward": ("copy", "write"),
    "log_softmax_forward": (*SOFTMAX, "write"),
    "log_softmax_backward": ("copy", "sum", "write"),
}
# The most instructions per element of a kernel's hot loops together, without those over partial
# vectors: for halves and for floats.
BUDGETS: dict[str, tuple[float, float]] = {
    r"cross_entropy_forward_kernel<ContiguousRows<\w+>, EntropyTerms, false, true>": (22.5, 25.0),
    r"cross_entropy_forward_kernel<ContiguousRows<\w+>, (?!Entropy).*, false, true>": (20.0, 23.0),
    r"cross_entropy_forward_kernel<ContiguousRows<\w+>, (?!Entropy).*, false, false>": (13.6, 18.5),
    r"cross_entropy_forward_kernel<ContiguousRows<\w+>, (?!Entropy).*, true, true>": (36.0, 40.0),
    r"cross_entropy_backward_kernel<ContiguousRows<\w+>, false>": (10.0, 11.0),
    r"cross_entropy_backward_kernel<ContiguousRows<\w+>, true>": (15.0, 17.0),
    r"log_softmax_forward_kernel<ContiguousRows<\w+>": (18.5, 22.0),
    r"log_softmax_backward_kernel<ContiguousRows<\w+>": (12.0, 13.0),
    r"cross_entropy_forward_kernel<StridedRows<\w+, 4>, (?!Entropy).*, false, true>": (25.5, 24.0),
    r"cross_entropy_forward_kernel<StridedRows<\w+, 4>, (?!Entropy).*, true, true>": (46.0, 42.0),
    r"cross_entropy_backward_kernel<StridedRows<\w+, 4>, false>": (13.0, 12.0),
    r"log_softmax_forward_kernel<StridedRows<\w+, 4>": (24.0, 21.0),
    r"log_softmax_backward_kernel<StridedRows<\w+, 4>": (14.0, 12.0),
    r"cross_entropy_forward_kernel<PackedRows<\w+, \d>, (?!Entropy).*, false, true>": (24.5, 29.5),
    r"cross_entropy_backward_kernel<PackedRows<\w+, \d>, false>": (10.0, 12.5),
}
# The most instructions of a thread outside its loops, which are most of its work where rows are
# short: on the shortest way through its hot loops and, in forward, the logarithm of the loss. What
# depends on a row's target, and most options, may lie beside that way. For halves and for floats.
BUDGETS_OF_THREAD: dict[str, tuple[float, float]] = {
    r"cross_entropy_forward_kernel<PackedRows<\w+, \d>, (?!Entropy).*, false, true>": (385, 380),
    r"cross_entropy_backward_kernel<PackedRows<\w+, \d>, false>": (325, 270),
}
LOGARITHM = r"\bFFMA\b.* 0\.693147182"  # log1p multiplies an exponent by log(2)


@needs_nvcc
@needs_disassembler
@each_source
@each_architecture
def test_the_hot_loops(compiled: Compiled, source: Path, architecture: str) -> None:
    """Whole vectors everywhere and few instructions; writes tables to build/cuda."""
    code = cuda_code.machine_code(compiled[source, architecture].result()[0])
    lines, over = [], []
    for name, instructions in zip(cuda_code.demangled(list(code)), code.values(), strict=True):
        assert not re.search(r"\b(LDL|STL)\b", instructions), f"{name} uses local memory"
        how = cuda_code.accesses(name)
        if how is None or "double" in name:
            continue
        wanted = list(HOT_LOOPS[name.split("_kernel")[0]])
        if "search" in wanted and "ContiguousRows" not in name:
            wanted.remove("search")  # the sums leave the maximum out
        if re.search(r"cross_entropy_forward_kernel<.*false>$", name):
            wanted.remove("write")
        if re.search(r"cross_entropy_forward_kernel<.*, true, \w+>$", name):
            wanted.append("sum")  # of the dense target
        found = cuda_code.hot_loops(instructions, how)
        assert found.keys() >= set(wanted), (
            f"{name} has no loop over whole vectors for each of {wanted}: {sorted(found)}"
        )
        total = sum(found[kind].cost for kind in wanted)
        listed = ", ".join(f"{kind} {found[kind].cost:.2f}" for kind in wanted)
        counts: list[tuple[float, dict[str, tuple[float, float]]]] = [(total, BUDGETS)]
        if any(re.search(pattern, name) for pattern in BUDGETS_OF_THREAD):
            stops = [found[kind].loop.begin for kind in wanted]
            if "sums" in wanted:
                stops.insert(-1, cuda_code.first_instruction(instructions, LOGARITHM))
            of_thread = cuda_code.least_outside_loops(instructions, stops)
            counts.append((of_thread, BUDGETS_OF_THREAD))
            listed += f"; outside loops {of_thread}"
        lines.append(f"{total:6.2f}  {name}: {listed}")
        of_type = 0 if "Float16" in name else 1
        for count, all_budgets in counts:
            for pattern, budgets in all_budgets.items():
                if re.search(pattern, name) and count > budgets[of_type]:
                    over.append((name, count, budgets[of_type]))
    if lines:
        table = "\n".join(["Instructions per element in hot loops", *sorted(lines), ""])
        print(table)
        (BUILD / f"instructions.{source.stem}.{architecture}.txt").write_text(table)
    assert over == []
    assert lines or not source.stem.endswith(("forward", "backward"))


@needs_nvcc
@needs_disassembler
@each_source
def test_no_double_precision_for_a_class(compiled: Compiled, source: Path) -> None:
    """It is up to 64 times slower: label smoothing's share is rounded once a thread."""
    code = cuda_code.machine_code(compiled[source, "sm_120"].result()[0])
    for name, instructions in zip(cuda_code.demangled(list(code)), code.values(), strict=True):
        how = cuda_code.accesses(name)
        if how is None or "double" in name:
            continue
        for loop, _ in cuda_code.hot_loops(instructions, how).values():
            assert not loop.count(r"\b(DADD|DMUL|DFMA|F2F\.F64)\b"), name


LOOPS = """
.L_x_1:
        /*0000*/                   LDS.128 R4, [R2] ;
.L_x_2:
        /*0010*/                   LDS.128 R4, [R2] ;
        /*0020*/                   MUFU.EX2 R4, R5 ;
        /*0030*/              @!P0 BRA `(.L_x_2) ;
        /*0040*/                   BRA `(.L_x_1) ;
.L_x_3:
        /*0050*/                   LDGSTS.E.BYPASS.128 [R1], desc[UR4][R2.64] ;
        /*0060*/                   LDGSTS.E.BYPASS.128 [R1+0x10], desc[UR4][R2.64] ;
        /*0070*/               @P0 BRA `(.L_x_3) ;
        /*0080*/               @P0 BRA `(.L_x_9) ;
.L_x_9:
        /*0090*/                   EXIT ;
"""


def test_innermost_loops_are_counted() -> None:
    assert [len(loop.instructions) for loop in cuda_code.innermost_loops(LOOPS)] == [3, 3]
    rows = cuda_code.accesses("a_kernel<ContiguousRows<BFloat16>, false>")
    assert rows is not None
    costs = {kind: loop.cost for kind, loop in cuda_code.hot_loops(LOOPS, rows).items()}
    assert costs == {"sums": 3 / 8, "copy": 1.5 / 8}


BRANCHES = """
        /*0000*/               @P0 BRA `(.L_x_2) ;
        /*0010*/                   FADD R4, R5, R6 ;
        /*0020*/                   FADD R4, R5, R6 ;
        /*0030*/                   FADD R4, R5, R6 ;
.L_x_1:
        /*0040*/                   LDS.128 R4, [R2] ;
        /*0050*/               @P1 BRA `(.L_x_1) ;
        /*0060*/               @P2 EXIT ;
.L_x_2:
        /*0070*/                   FMUL R4, R5, R6 ;
        /*0080*/                   BRA P3, `(.L_x_3) ;
        /*0090*/                   FFMA R4, R5, R6, R7 ;
.L_x_3:
        /*00a0*/                   EXIT ;
        /*00b0*/                   FADD R4, R5, R6 ;
"""


def test_the_shortest_way_outside_loops() -> None:
    """By hand: instructions 0, 7, 8, a; 0 to 3 and 6; the same and 7 to a."""
    loop = cuda_code.innermost_loops(BRANCHES)[0].begin
    fused = cuda_code.first_instruction(BRANCHES, "FFMA")
    assert (loop, fused) == (4, 9)
    assert cuda_code.least_outside_loops(BRANCHES, []) == 4
    assert cuda_code.least_outside_loops(BRANCHES, [loop]) == 5
    assert cuda_code.least_outside_loops(BRANCHES, [loop, fused]) == 9
    with pytest.raises(ValueError, match="no way"):
        cuda_code.least_outside_loops(BRANCHES, [fused, loop])


@needs_nvcc
def test_the_table_of_launchers_is_valid(tmp_path: Path) -> None:
    """Its syntax and types, against the toolkit's headers."""
    compiler = cuda_code.nvcc()
    assert compiler is not None
    include = compiler.resolve().parents[1] / "include"
    if not (include / "cuda_runtime_api.h").exists():
        pytest.skip(f"the toolkit's headers are not in {include}")
    (tmp_path / "sources_version.h").write_text('#define POWERGRAD_SOURCES "of the test"\n')
    checks = ["-std=c++17", "-fsyntax-only", "-Wall", "-Wextra", "-Werror"]
    macro = '-DPOWERGRAD_CUDA_ARCHITECTURES="9.0"'
    csrc = REPOSITORY / "csrc"
    folders = [f"-I{csrc}", f"-I{tmp_path}", f"-isystem{include}"]
    run(*tools.compiler(), *checks, macro, *folders, csrc / "cuda" / "library.cpp", cwd=csrc)


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
