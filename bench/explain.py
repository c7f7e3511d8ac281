"""How to look into a kernel with the profilers that its maker's tools bring: command lines."""

from __future__ import annotations

from collections.abc import Sequence

from .cases import BACKWARD, FORWARD, FRESH, IN_PLACE, LOG_SOFTMAX

# Which mode runs which kernels, by the part of their names that all types and layouts share.
KERNELS = {
    FORWARD: ("cross_entropy_forward",),
    BACKWARD: ("cross_entropy_backward",),
    FRESH: ("cross_entropy_forward",),
    IN_PLACE: ("cross_entropy_forward", "cross_entropy_backward"),
    LOG_SOFTMAX: ("log_softmax_forward", "log_softmax_backward"),
}
# A GPU takes a mean with a kernel of its own, the same one in every mode that has a mean.
GPU_KERNELS = {**KERNELS, FORWARD: (*KERNELS[FORWARD], "sum_rows")}

PERF = """\
perf record --freq=5000 --call-graph=fp --output=perf.data -- {bench}
perf report --input=perf.data --no-children --sort=symbol
perf annotate --input=perf.data --stdio   # instruction by instruction, hottest symbol first
perf stat --event=cycles,instructions,cache-misses,page-faults -- {bench}"""

NCU = """\
ncu --set=full --kernel-name-base=function --kernel-name='regex:{kernel}' --launch-skip=5 \\
    --launch-count=1 --export={case}-{mode}-{kernel} {bench}
ncu --metrics=dram__bytes.sum,dram__throughput.avg.pct_of_peak_sustained_elapsed,\\
sm__inst_executed_pipe_xu.avg.pct_of_peak_sustained_active \\
    --kernel-name='regex:{kernel}' --launch-count=1 {bench}"""

NSYS = "nsys profile --trace=cuda,nvtx --output={case}-{mode} {bench} --profile=profile"


def command_lines(case: str, device: str) -> str:
    """The commands for each of our kernels, at this case."""
    if device == "cuda":
        texts = [gpu_commands(case, mode, kernels) for mode, kernels in GPU_KERNELS.items()]
    else:
        texts = [cpu_commands(case, mode, kernels) for mode, kernels in KERNELS.items()]
    return "\n\n".join(texts)


def cpu_commands(case: str, mode: str, kernels: Sequence[str]) -> str:
    """All kernels of a mode at once: perf tells them apart by their symbols."""
    return f"# {mode}: {', '.join(kernels)}\n{PERF.format(bench=bench(case, mode))}"


def gpu_commands(case: str, mode: str, kernels: Sequence[str]) -> str:
    """Each kernel of a mode by itself, and the mode's timeline."""
    words = {"case": case, "mode": mode, "bench": f"{bench(case, mode)} --device cuda"}
    of_kernels = [f"# {mode}: {name}\n{NCU.format(kernel=name, **words)}" for name in kernels]
    return "\n".join([*of_kernels, NSYS.format(**words)])


def bench(case: str, mode: str) -> str:
    """A run of the copy and ours alone."""
    return f"python bench/run.py --case {case} --mode {mode} --dtype float32 --peer"
