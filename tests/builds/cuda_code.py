"""The CUDA kernels as nvcc compiles them: the resources that ptxas reports, and machine code."""

from __future__ import annotations

import functools
import hashlib
import heapq
import os
import re
import shutil
import subprocess
import sysconfig
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from commands import REPOSITORY, run

from powergrad_ext import _build
from powergrad_ext._build import tools

ARCHITECTURES = ("sm_80", "sm_90", "sm_100", "sm_120")
THREADS = 256


class Limits(NamedTuple):
    """Resources of a multiprocessor."""

    warps: int
    blocks: int
    registers: int = 65536


LIMITS = {
    "sm_80": Limits(64, 32),
    "sm_90": Limits(64, 32),
    "sm_100": Limits(64, 32),
    "sm_120": Limits(48, 24),
}


class Kernel(NamedTuple):
    """The resources of a kernel that ptxas reports."""

    symbol: str
    architecture: str
    registers: int
    shared_bytes: int
    local_bytes: int  # stack frame and spills

    def occupancy(self, threads: int = THREADS) -> float:
        """The share of a multiprocessor's warps that can run, in blocks of `threads`.

        Limited by registers only: dynamic shared memory is not known here.
        """
        limits = LIMITS[self.architecture]
        of_warp = (
            -(-self.registers * 32 // 256) * 256
        )  # registers are allocated to a warp in units of 256
        warps = limits.registers // of_warp // 4 * 4  # for each of four schedulers
        of_block = threads // 32
        return (
            min(warps // of_block, limits.blocks, limits.warps // of_block)
            * of_block
            / (limits.warps)
        )


def nvcc() -> Path | None:
    """The toolkit's compiler, if there is one."""
    folder = os.environ.get("CUDA_HOME") or tools.DEFAULT_CUDA_FOLDER
    found = shutil.which("nvcc", path=f"{folder}/bin") or shutil.which("nvcc")
    return None if found is None else Path(found)


def disassembler() -> str | None:
    """From the toolkit or the package nvidia-cuda-nvdisasm, whose folder is not on PATH."""
    packaged = Path(sysconfig.get_path("purelib"), "nvidia", "cu13", "bin")
    return shutil.which("nvdisasm") or shutil.which("nvdisasm", path=str(packaged))


def compile_kernels(source: Path, architecture: str, folder: Path) -> tuple[Path, str]:
    """The machine code of one source for one architecture, and the report of ptxas.

    Both are cached under a name that changes with the sources, since compiling takes a minute.
    """
    compiler = nvcc()
    assert compiler is not None
    flags = [*_build.NVCC_FLAGS, "-std=c++17", "-Xptxas", "-v,-warn-spills"]
    csrc = REPOSITORY / "csrc"
    digest = hashlib.sha256(f"{compiler} {flags} {source}".encode())
    for path in sorted({source, *csrc.glob("*.h"), *(csrc / "cuda").iterdir()}):
        digest.update(path.read_bytes())
    name = f"{source.stem}.{architecture}.{digest.hexdigest()[:12]}"
    code, report = folder / f"{name}.cubin", folder / f"{name}.txt"
    if not report.exists():
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.glob(f"{source.stem}.{architecture}.*"):
            old.unlink()
        command = [compiler, "-cubin", f"-arch={architecture}", *flags, f"-I{csrc}", source]
        done = run(*command, "-o", code, cwd=folder)
        report.write_text(done.stdout + done.stderr)
    return code, report.read_text()


def parse_ptxas(text: str) -> Iterator[Kernel]:
    """The kernels in the output of `nvcc -Xptxas -v`."""
    entries = re.split(r"Compiling entry function '(\S+)' for '(\S+)'", text)
    for symbol, architecture, report in zip(
        entries[1::3], entries[2::3], entries[3::3], strict=True
    ):
        # One line for each function: the kernel and those that it calls.
        memory = re.findall(r"(\d+) bytes (?:stack frame|spill stores|spill loads)", report)
        used = re.search(r"Used (\d+) registers", report)
        assert used is not None, report
        assert memory, report
        shared = re.search(r"(\d+) bytes smem", report)
        yield Kernel(
            symbol,
            architecture,
            int(used[1]),
            int(shared[1]) if shared else 0,
            sum(map(int, memory)),
        )


def demangled(symbols: list[str]) -> list[str]:
    """Readable names: the function and its template arguments."""
    words = "\n".join(symbols)
    done = subprocess.run(["c++filt"], input=words, capture_output=True, text=True, check=True)
    scopes = r"powergrad::|_GLOBAL__N__\w+::|\(anonymous namespace\)::|^void "
    names = re.sub(scopes, "", done.stdout, flags=re.MULTILINE)
    return [name.rsplit("(", 1)[0] for name in names.splitlines()]


@functools.cache
def machine_code(code: Path) -> dict[str, str]:
    """The instructions of every kernel, by its symbol."""
    program = disassembler()
    assert program is not None
    text = run(program, "-c", "-ndf", code, cwd=code.parent).stdout
    parts = re.split(r"^\.text\.(\S+):$", text, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


class Loop(NamedTuple):
    """The instructions of an innermost loop."""

    begin: int  # the index of the first one in the kernel
    instructions: tuple[str, ...]

    def count(self, pattern: str) -> int:
        return sum(bool(re.search(pattern, line)) for line in self.instructions)


def parse_code(code: str) -> tuple[list[str], dict[str, int]]:
    """The instructions of a kernel, and which of them its labels stand before."""
    labels: dict[str, int] = {}
    instructions: list[str] = []
    for line in code.splitlines():
        if label := re.match(r"^(\.L\w+):", line):
            labels[label[1]] = len(instructions)
        elif re.match(r"^\s*/\*[0-9a-f]{4,}\*/", line):
            instructions.append(line)
    return instructions, labels


def innermost_loops(code: str) -> list[Loop]:
    """The innermost loops in a kernel's machine code: from a label to a jump back to it."""
    instructions, labels = parse_code(code)
    spans = []
    for end, line in enumerate(instructions):
        jump = re.search(r"\bBRA\b.*?\((\.L\w+)\)", line)
        if jump and labels.get(jump[1], end + 1) <= end:
            spans.append((labels[jump[1]], end))
    return [
        Loop(begin, tuple(instructions[begin : end + 1]))
        for begin, end in spans
        if not any(begin <= b and e <= end and (b, e) != (begin, end) for b, e in spans)
    ]


def least_outside_loops(code: str, stops: Iterable[int]) -> int:
    """The fewest instructions that lead through a kernel and, one after another, through `stops`.

    Those of innermost loops are not counted, and those of called functions neither.
    """
    instructions, labels = parse_code(code)
    in_loops = {
        loop.begin + i for loop in innermost_loops(code) for i in range(len(loop.instructions))
    }
    end = len(instructions)

    def following(i: int) -> list[int]:
        line = instructions[i]
        may_pass = bool(re.search(r"@!?U?P\d|\bBRA\S* !?U?P\d|\bBRA\.DIV\b", line))
        if re.search(r"\b(EXIT|RET)\b", line):
            return [end, i + 1] if may_pass else [end]
        jump = re.search(r"\b(?:BRA|CALL)\b.*?\((\.L\w+)\)", line)
        if jump is None:
            return [i + 1]
        return [labels[jump[1]], i + 1] if may_pass else [labels[jump[1]]]

    total, here = 0, 0
    for stop in (*stops, end):
        costs, queue = {here: 0}, [(0, here)]
        while queue and (nearest := heapq.heappop(queue))[1] != stop:
            cost, i = nearest
            if i == end or cost > costs[i]:
                continue
            cost += i not in in_loops
            for j in following(i):
                if cost < costs.get(j, cost + 1):
                    costs[j] = cost
                    heapq.heappush(queue, (cost, j))
        if stop not in costs:
            raise ValueError(f"there is no way from instruction {here} to {stop}")
        total, here = total + costs[stop], stop
    return total


def first_instruction(code: str, pattern: str) -> int:
    """The index of the first instruction of a kernel that matches."""
    instructions, _ = parse_code(code)
    return next(i for i, line in enumerate(instructions) if re.search(pattern, line))


class Accesses(NamedTuple):
    """The instructions by which the threads of a layout move elements, and how many by each."""

    copy: str
    load: str
    store: str
    elements: int  # of a vector
    elements_of_copy: int


def accesses(name: str) -> Accesses | None:
    """Of the kernel with that demangled name; None for layouts whose speed does not matter."""
    layout = re.search(r"<(ContiguousRows|PackedRows|StridedRows)<(\w+)(?:, (\d))?>", name)
    if layout is None or (layout[0].startswith("<StridedRows") and layout[3] == "1"):
        return None
    size = {"double": 8, "float": 4}.get(layout[2], 2)
    copy, store = r"\bLDGSTS\.E\S*\.128\b", r"\bSTG\.E\S*\.128\b"
    if layout[1] == "ContiguousRows":
        return Accesses(copy, r"\bLDS\.128\b", store, 16 // size, 16 // size)
    if layout[1] == "PackedRows":
        classes = int(layout[3])
        load = {2: r"\bLDS\.U16\b", 4: r"\bLDS\b(?!\.)", 8: r"\bLDS\.64\b"}[size * classes]
        return Accesses(copy, load, r"\bSTS\b", classes, 16 // size)
    positions = int(layout[3])
    width = {16: r"\.128", 8: r"\.64"}[positions * size]
    words = (rf"\b{word}{width}\b" for word in (r"LDGSTS\.E\S*", "LDS", r"STG\.E\S*"))
    return Accesses(*words, positions, positions)


class HotLoop(NamedTuple):
    """A loop over a thread's vectors, and its instructions per element."""

    loop: Loop
    cost: float


def hot_loops(code: str, how: Accesses) -> dict[str, HotLoop]:
    """The hot loops of a kernel by their kind, the cheapest one of each.

    More expensive ones of the same kind are remainders of unrolled loops.
    """
    found: dict[str, HotLoop] = {}
    for loop in innermost_loops(code):
        access, elements = how.load, how.elements
        if loop.count(how.copy):
            name, access, elements = "copy", how.copy, how.elements_of_copy
        elif not loop.count(how.load):
            continue
        elif loop.count(how.store):
            name = "write"
        elif loop.count(r"\bMUFU\.EX2\b"):
            name = "sums"
        elif loop.count("MNMX") and not loop.count(r"\bFSETP\b"):
            name = "maximum"
        elif loop.count(r"\bFADD\b"):
            name = "sum"
        else:
            name = "search"
        cost = len(loop.instructions) / loop.count(access) / elements
        if name not in found or cost < found[name].cost:
            found[name] = HotLoop(loop, cost)
    return found


def table(kernels: list[Kernel]) -> str:
    """Registers and occupancy of every kernel on every architecture."""
    by_name: dict[str, dict[str, Kernel]] = {}
    for name, kernel in zip(demangled([k.symbol for k in kernels]), kernels, strict=True):
        by_name.setdefault(name, {})[kernel.architecture] = kernel
    lines = [
        f"Registers, static shared memory, and occupancy by registers at {THREADS} threads a block",
        "".join(f"{architecture:<16}" for architecture in ARCHITECTURES) + "kernel",
    ]
    for name, kernel_on in sorted(by_name.items()):
        cells = (_cell(kernel_on.get(architecture)) for architecture in ARCHITECTURES)
        lines.append("".join(f"{cell:<16}" for cell in cells) + name)
    return "\n".join(lines) + "\n"


def _cell(kernel: Kernel | None) -> str:
    if kernel is None:
        return "-"
    return f"{kernel.registers} {kernel.shared_bytes}B {kernel.occupancy():.0%}"
