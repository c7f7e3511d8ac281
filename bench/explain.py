"""How to look into a kernel with the profilers that its maker's tools bring: command lines."""

from __future__ import annotations

from .cases import BACKWARD, FORWARD, FRESH, IN_PLACE

# Which mode runs which kernels, by the part of their names that all types and layouts share.
KERNELS = {
    FORWARD: "cross_entropy_forward",
    BACKWARD: "cross_entropy_backward",
    FRESH: "cross_entropy_forward",
    IN_PLACE: "cross_entropy_(forward|backward)",
}

PERF = """\
perf record --freq=5000 --call-graph=fp --output=perf.data -- {bench}
perf report --input=perf.data --no-children --sort=symbol
perf annotate --input=perf.data --stdio   # instruction by instruction, hottest symbol first
perf stat --event=cycles,instructions,cache-misses,page-faults -- {bench}"""

NCU = """\
ncu --set=full --kernel-name-base=function --kernel-name='regex:{kernel}' --launch-skip=5 \\
    --launch-count=1 --export={case}-{mode} {bench}
ncu --metrics=dram__bytes.sum,dram__throughput.avg.pct_of_peak_sustained_elapsed,\\
sm__inst_executed_pipe_xu.avg.pct_of_peak_sustained_active \\
    --kernel-name='regex:{kernel}' --launch-count=1 {bench}
nsys profile --trace=cuda,nvtx --output={case}-{mode} {bench} --profile=profile"""


def command_lines(case: str, device: str) -> str:
    """The commands for each of our kernels, at this case."""
    texts = []
    for mode, kernel in KERNELS.items():
        bench = f"python bench/run.py --case {case} --mode {mode} --dtype float32 --peer"
        if device == "cuda":
            bench += " --device cuda"
        template = NCU if device == "cuda" else PERF
        title = f"# {mode}: {kernel}"
        texts.append(
            f"{title}\n{template.format(bench=bench, kernel=kernel, case=case, mode=mode)}"
        )
    return "\n\n".join(texts)
