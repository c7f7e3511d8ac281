"""Build, test, sanitize and benchmark on a machine with a GPU, installing nothing.

    python scripts/gpu.py [build] [test] [sanitize] [bench]

Without a part, all of them. The machine may be at hand for minutes only: every test file is a
process of its own, several at a time, so that neither an illegal access (which leaves its process
without a device) nor a slow file keeps the others from running, and each part ends in time. What
is found goes to the folder that OUT names, by default build/gpu: results.json, the samples of
benchmarks, and all that was printed in logs.tar.gz.
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
import tarfile
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

REPOSITORY = Path(__file__).resolve().parents[1]
# Of the sources that the built module is of; beside it, so that the two can be carried together.
BUILT = REPOSITORY / "powergrad_ext" / "_C.built"
# Seconds that a part may take, on 16 cores and an H100.
LIMITS = {"build": 300.0, "test": 150.0, "sanitize": 530.0, "bench": 240.0}
# More processes would not fit the device's memory beside each other.
MOST_AT_ONCE = 8
SHARED_TESTS = ("semantics", "accuracy", "framework")
# Takes most of the device's memory.
LARGE = "tests/gpu/test_large_indices.py"


class Step(NamedTuple):
    """A command, what it is for, and what it cannot do without."""

    part: str
    name: str
    command: tuple[str, ...]
    programs: tuple[str, ...] = ()
    modules: tuple[str, ...] = ()
    alone: bool = True  # not while another one runs


class Outcome(NamedTuple):
    """How a step ended, and the last that it printed where it failed."""

    part: str
    step: str
    result: str
    seconds: float
    failures: list[str]


def python(*words: str) -> tuple[str, ...]:
    """A command of the Python that runs this."""
    return (sys.executable, *words)


def a_test(path: str, *words: str) -> Step:
    """One file of tests."""
    command = python("-m", "pytest", "-q", "--tb=short", "-p", "no:cacheprovider", path, *words)
    return Step("test", path.removeprefix("tests/"), command, alone=path == LARGE)


def sanitizer(tool: str) -> Step:
    """Every kernel once, watched by one of compute-sanitizer's tools."""
    watched = python("tests/gpu/every_kernel.py")
    command = ("compute-sanitizer", f"--tool={tool}", "--error-exitcode=1", *watched)
    return Step("sanitize", tool, command, programs=("compute-sanitizer",))


def benchmark(name: str, *words: str) -> Step:
    """A script of bench/, its samples among the results."""
    command = python(f"bench/{name}.py", "--device=cuda", f"--output={out() / name}.jsonl", *words)
    return Step("bench", name, command, modules=("rich",))


def files(folder: str) -> list[str]:
    """The test files of a folder, the longest first."""
    paths = sorted(Path(REPOSITORY, folder).glob("test_*.py"), key=lambda p: -p.stat().st_size)
    return [str(path.relative_to(REPOSITORY)) for path in paths]


# Whoever built the module that is there.
REFUSED = """
import torch, powergrad_ext
try:
    powergrad_ext.cross_entropy(torch.ones(2, 3), torch.zeros(4, dtype=torch.long))
except ValueError as error:
    assert "batch_size (2)" in str(error), error
"""


def steps() -> list[Step]:
    """All there is to do, in order."""
    build = Step("build", "extension", python("setup.py", "build_ext", "--inplace"))
    return [
        Step("build", "machine", ("nvidia-smi",), programs=("nvidia-smi",)),
        *([] if is_built() else [build]),
        Step("build", "report", python("-m", "powergrad_ext")),
        Step("build", "exceptions", python("-c", REFUSED)),
        *(a_test(path) for path in files("tests/gpu") if path != LARGE),
        *(
            a_test(path, "-k", "cuda")
            for folder in SHARED_TESTS
            for path in files(f"tests/{folder}")
        ),
        a_test(LARGE),
        sanitizer("memcheck"),
        sanitizer("racecheck"),
        sanitizer("synccheck"),
        benchmark("run", "--gpu"),
    ]


def out() -> Path:
    """Where results go."""
    return Path(os.environ.get("OUT") or REPOSITORY / "build" / "gpu").resolve()


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what is asked for; 1 if any of it failed."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("parts", nargs="*", type=part, metavar="part", help=", ".join(LIMITS))
    options = parser.parse_args(arguments)
    architecture = gpu_architecture()
    if architecture is None:
        print("make gpu needs a GPU and a PyTorch that sees it", file=sys.stderr)
        return 1
    os.environ.setdefault("TORCH_CUDA_ARCH_LIST", architecture)
    use_toolkit()
    if not is_built():
        use_compiler()
    os.chdir(REPOSITORY)
    wanted = {"build", *(options.parts or LIMITS)}
    return run_all([step for step in steps() if step.part in wanted])


def part(name: str) -> str:
    """A part of the work, by its name."""
    if name not in LIMITS:
        raise argparse.ArgumentTypeError(f"{name} is not one of {', '.join(LIMITS)}")
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


# Raises as the extension does: in a function of torch or by itself, called through torch or not.
RAISING = """
#include <ATen/core/Tensor.h>
#include <pybind11/pybind11.h>
#include <torch/library.h>
int64_t raises(double number) {
  TORCH_CHECK(number != 1.5, "number ", number, " of ", 2);
  TORCH_CHECK_VALUE(number != 2.5, "number ", number, " of ", 2);
  return 0;
}
TORCH_LIBRARY(raising, library) { library.def("raises", &raises); }
PYBIND11_MODULE(raising, module) { module.def("raises", &raises); }
"""
# Compiled and linked as the binding is.
BUILDING = """
import sys
from pathlib import Path
sys.path.append(sys.argv[1])
import _build
here = Path.cwd()
(here / "sources.txt").write_text("module raising.cpp\\n")
torch, python = _build.installed_torch(), _build.running_python()
library = _build.binding(here, torch, python)._replace(name="raising.so")
_build.build([library], here, here / "build", here)
"""
# What torch raises first: a module that has raised by itself before may live through it.
CATCHING = """
import itertools, torch, raising
kinds = (1.5, RuntimeError), (2.5, ValueError)
for (number, kind), module in itertools.product(kinds, [raising, torch.ops.raising]):
    try:
        module.raises(number)
    except kind as error:
        assert str(error).startswith(f"number {number} of 2"), error
"""


def survives_exceptions(compiler: str) -> bool:
    """Whether what a module that it builds raises comes to Python, word for word.

    With the C++ library linked into the module, statically, numbers are missing in the words, or
    the process ends: whichever of both libraries a call meets, it was set up by the other.
    """
    build = python("-c", BUILDING, str(REPOSITORY / "powergrad_ext"))
    with tempfile.TemporaryDirectory() as scratch:
        Path(scratch, "raising.cpp").write_text(RAISING)
        return all(
            subprocess.run(
                command,
                cwd=scratch,
                env=os.environ | {"CXX": compiler},
                capture_output=True,
                check=False,
            ).returncode
            == 0
            for command in (build, python("-c", CATCHING))
        )


END = "end Python or lose their words"


def use_compiler() -> None:
    """Sets the C++ compiler: the one that CXX names, if modules built by it can throw."""
    named = os.environ.get("CXX")
    candidates = [*([named] if named else []), "g++", "clang++"]
    present = [compiler for compiler in candidates if shutil.which(compiler.split()[0])]
    for compiler in present:
        if survives_exceptions(compiler):
            if compiler != named and named:
                print(f"building with {compiler}: exceptions of modules by {named} {END}")
            os.environ["CXX"] = os.environ["CUDAHOSTCXX"] = compiler
            return
    sys.exit(f"exceptions of modules by every compiler here {END}: {', '.join(present)}")


def run_all(todo: list[Step]) -> int:
    """Run the steps, print and write how each ended; 1 if one failed."""
    out().mkdir(parents=True, exist_ok=True)
    outcomes: list[Outcome] = []
    with tempfile.TemporaryDirectory() as folder:
        logs = Path(folder)
        for name, seconds in LIMITS.items():
            deadline = time.monotonic() + seconds
            steps_of_part = [step for step in todo if step.part == name]
            together = [step for step in steps_of_part if not step.alone]
            with ThreadPoolExecutor(min(os.cpu_count() or 1, MOST_AT_ONCE)) as pool:
                outcomes += pool.map(lambda step: run(step, deadline, logs), together)  # noqa: B023
            outcomes += [run(step, deadline, logs) for step in steps_of_part if step.alone]
        with tarfile.open(out() / "logs.tar.gz", "w:gz") as archive:
            archive.add(logs, "logs")
    (out() / "results.json").write_text(
        json.dumps([outcome._asdict() for outcome in outcomes], indent=1) + "\n"
    )
    for outcome in outcomes:
        print(f"{outcome.part:<9}{outcome.step:<44}{outcome.seconds:>7.1f} s  {outcome.result}")
        for failure in outcome.failures:
            print(f"    {failure}")
    return int(any(outcome.result.startswith("failed") for outcome in outcomes))


def run(step: Step, deadline: float, logs: Path) -> Outcome:
    """How the command ended; what it prints goes to its log."""
    begun = time.monotonic()
    if lacking := missing(step):
        return Outcome(step.part, step.name, f"skipped: {lacking} is not here", 0.0, [])
    if begun >= deadline:
        return Outcome(step.part, step.name, "failed: out of time", 0.0, [])
    log = logs / f"{step.part}-{step.name.replace('/', '-').replace(' ', '-')}.log"
    # Without torch's cache of device memory, a sanitizer sees where each tensor ends.
    uncached = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"} if step.part == "sanitize" else {}
    with log.open("w") as output:
        process = subprocess.Popen(
            step.command,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=os.environ | uncached,
            start_new_session=True,
        )
        try:
            status: int | None = process.wait(deadline - begun)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            status = None
    seconds = round(time.monotonic() - begun, 1)
    # pytest exits with 5 where a file has no test of the kind that was asked for.
    if status == 0 or (status == 5 and step.part == "test"):
        if step.name == "extension":
            BUILT.write_text(sources())
        return Outcome(step.part, step.name, "passed", seconds, [])
    result = "failed: out of time" if status is None else f"failed: exit status {status}"
    return Outcome(step.part, step.name, result, seconds, failures(log.read_text()))


def failures(log: str) -> list[str]:
    """The lines that name what failed, or else the last ones."""
    lines = log.splitlines()
    return [line for line in lines if line.startswith(("FAILED", "ERROR"))][:12] or lines[-4:]


def missing(step: Step) -> str | None:
    """What the step needs and is not here."""
    for program in step.programs:
        if shutil.which(program) is None:
            return program
    for module in step.modules:
        if importlib.util.find_spec(module) is None:
            return f"Python's {module}"
    return None


def is_built() -> bool:
    """Whether the module is there and of these sources."""
    return BUILT.exists() and BUILT.read_text() == sources()


def sources() -> str:
    """Changes with whatever the module is built from, and with what for."""
    import torch

    digest = hashlib.sha256(f"{torch.__version__} {sys.version}".encode())
    for path in sorted(p for p in (REPOSITORY / "csrc").rglob("*") if p.is_file()):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()


if __name__ == "__main__":
    sys.exit(main())
