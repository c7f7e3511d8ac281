"""Build, test, sanitize and benchmark on a machine with a GPU, installing nothing.

    python scripts/gpu.py [build] [test] [sanitize] [bench]

Without a part, all of them. Logs and results go to the folder that OUT names, by default build/gpu.
Each part ends within nine minutes. What passed is not done again for the same sources unless
--again is given, so a part that ran out of time goes on where it stopped.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO, NamedTuple

REPOSITORY = Path(__file__).resolve().parents[1]
PASSED = REPOSITORY / "build" / "gpu-passed.json"
PARTS = ("build", "test", "sanitize", "bench")
PART_SECONDS = 9 * 60 - 20


class Step(NamedTuple):
    """A command, what it is for, and what it cannot do without."""

    part: str
    name: str
    command: tuple[str, ...]
    programs: tuple[str, ...] = ()
    modules: tuple[str, ...] = ()
    always: bool = False  # also when it has passed


def python(*words: str) -> tuple[str, ...]:
    """A command of the Python that runs this."""
    return (sys.executable, *words)


def pytest(*words: str) -> tuple[str, ...]:
    """A run of tests that goes on after failures, but not for ever after a lost device."""
    return python("-m", "pytest", "-q", "--tb=short", "--maxfail=40", *words)


def sanitizer(tool: str) -> Step:
    """Every kernel once, watched by one of compute-sanitizer's tools."""
    watched = python("tests/gpu/every_kernel.py")
    command = ("compute-sanitizer", f"--tool={tool}", "--error-exitcode=1", *watched)
    return Step("sanitize", tool, command, programs=("compute-sanitizer",))


def benchmark(name: str, *words: str) -> Step:
    """A script of bench/, its samples beside the logs."""
    command = python(f"bench/{name}.py", "--device=cuda", f"--output={out() / name}.jsonl", *words)
    return Step("bench", name, command, modules=("rich",))


def steps() -> list[Step]:
    """All there is to do, in order."""
    shared = ("tests/semantics", "tests/accuracy", "tests/framework")
    large = "tests/gpu/test_large_indices.py"
    return [
        Step("build", "machine", ("nvidia-smi",), programs=("nvidia-smi",), always=True),
        Step("build", "extension", python("setup.py", "build_ext", "--inplace"), always=True),
        Step("build", "report", python("-m", "powergrad_ext"), always=True),
        Step("test", "what only a GPU can show", pytest("tests/gpu", f"--ignore={large}")),
        Step("test", "large indices", pytest(large)),
        Step("test", "shared tests on the GPU", pytest(*shared, "-k", "cuda")),
        Step("test", "shared tests on the CPU", pytest(*shared, "-k", "not cuda")),
        sanitizer("memcheck"),
        sanitizer("racecheck"),
        sanitizer("synccheck"),
        benchmark("run", "--full"),
        benchmark("overhead"),
    ]


def out() -> Path:
    """Where logs and results go."""
    return Path(os.environ.get("OUT") or REPOSITORY / "build" / "gpu").resolve()


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what is asked for; 1 if any of it failed."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("parts", nargs="*", type=part, metavar="part", help=", ".join(PARTS))
    parser.add_argument("--again", action="store_true", help="also what has passed before")
    options = parser.parse_args(arguments)
    architecture = gpu_architecture()
    if architecture is None:
        print("make gpu needs a GPU and a PyTorch that sees it", file=sys.stderr)
        return 1
    os.environ.setdefault("TORCH_CUDA_ARCH_LIST", architecture)
    use_toolkit()
    out().mkdir(parents=True, exist_ok=True)
    os.chdir(REPOSITORY)
    wanted = options.parts or PARTS
    # Whatever is asked for needs what is built, which takes no time where nothing has changed.
    todo = [step for step in steps() if step.part in {"build", *wanted}]
    return run_all(todo, again=options.again)


def part(name: str) -> str:
    """A part of the work, by its name."""
    if name not in PARTS:
        raise argparse.ArgumentTypeError(f"{name} is not one of {', '.join(PARTS)}")
    return name


def gpu_architecture() -> str | None:
    """The compute capability of the first GPU, as TORCH_CUDA_ARCH_LIST names it."""
    import torch

    if not torch.cuda.is_available():
        return None
    return "{}.{}".format(*torch.cuda.get_device_capability(0))


def use_toolkit() -> None:
    """Puts the CUDA toolkit's programs, of which compute-sanitizer is one, on PATH."""
    toolkit = Path(os.environ.get("CUDA_HOME") or "/usr/local/cuda", "bin")
    os.environ["PATH"] = os.pathsep.join([os.environ.get("PATH", os.defpath), str(toolkit)])


def run_all(todo: list[Step], *, again: bool = False) -> int:
    """Run the steps, print and write how each ended; 1 if one failed."""
    sources = fingerprint()
    passed = set() if again else set(previously_passed(sources))
    deadlines: dict[str, float] = {}
    outcomes = []
    for step in todo:
        deadline = deadlines.setdefault(step.part, time.monotonic() + PART_SECONDS)
        begun = time.monotonic()
        if step.name in passed and not step.always:
            result = "passed before"
        elif lacking := missing(step):
            result = f"skipped: {lacking} is not here"
        else:
            print(f"{step.part}: {step.name} ...", flush=True)
            with (out() / f"{step.part}.log").open("a") as log:
                result = run(step, deadline - begun, log)
        if result == "passed":
            passed.add(step.name)
            PASSED.parent.mkdir(exist_ok=True)
            PASSED.write_text(json.dumps({"sources": sources, "steps": sorted(passed)}))
        seconds = round(time.monotonic() - begun, 1)
        outcomes.append(
            {"part": step.part, "step": step.name, "result": result, "seconds": seconds}
        )
        (out() / "results.json").write_text(json.dumps(outcomes, indent=1) + "\n")
    for outcome in outcomes:
        print("{part:<9}{step:<28}{seconds:>7} s  {result}".format_map(outcome))
    return int(any(outcome["result"].startswith("failed") for outcome in outcomes))


def run(step: Step, seconds: float, log: IO[str]) -> str:
    """How the command ended; what it prints goes to the log."""
    log.write(f"\n===== {step.name}: {' '.join(step.command)}\n")
    log.flush()
    # Without torch's cache of device memory, a sanitizer sees where each tensor ends.
    uncached = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"} if step.part == "sanitize" else {}
    process = subprocess.Popen(
        step.command,
        stdout=log,
        stderr=subprocess.STDOUT,
        env=os.environ | uncached,
        start_new_session=True,
    )
    try:
        status = process.wait(max(seconds, 1.0))
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return "failed: out of time"
    return "passed" if status == 0 else f"failed: exit status {status}"


def missing(step: Step) -> str | None:
    """What the step needs and is not here."""
    for program in step.programs:
        if shutil.which(program) is None:
            return program
    for module in step.modules:
        if importlib.util.find_spec(module) is None:
            return f"Python's {module}"
    return None


def fingerprint() -> str:
    """Changes with whatever a step may depend on."""
    digest = hashlib.sha256()
    for folder in ("csrc", "powergrad_ext", "tests", "bench", "scripts"):
        for path in sorted((REPOSITORY / folder).rglob("*")):
            if path.suffix in {".py", ".cpp", ".cu", ".h", ".cuh", ".txt"}:
                digest.update(str(path).encode() + path.read_bytes())
    return digest.hexdigest()


def previously_passed(sources: str) -> list[str]:
    """The steps that passed with the same sources."""
    if not PASSED.exists():
        return []
    record = json.loads(PASSED.read_text())
    return record["steps"] if record["sources"] == sources else []


if __name__ == "__main__":
    sys.exit(main())
