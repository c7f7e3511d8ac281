"""Write the README's figures and draw its plots, both from the results in bench/results."""

from __future__ import annotations

import hashlib
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

# As `python bench/readme.py`, from a source tree in which nothing needs to be installed.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench import packages

if __name__ == "__main__":
    packages.require("matplotlib")

from rich.text import Text

from bench import overhead, plots, sweep
from bench.cases import BACKWARD, FORWARD, FRESH, IN_PLACE
from bench.memory import Peak, peaks_of
from bench.peers import COPY, DEFAULT_ALPHA, heading_of, name_of_ours, others, ours
from bench.report import median_milliseconds, memory_cells, verdict_cells
from bench.requirements import ALPHA_ONE, COMPILERS, DEFAULT, LARGE, judge
from bench.result import Record, Result, machine_of, read, results_of

REPOSITORY = Path(__file__).resolve().parents[1]
README = REPOSITORY / "README.md"
RESULTS = REPOSITORY / "bench" / "results" / "cpu-zen5"
SPEED = ("float32.jsonl", "bfloat16.jsonl")
GPU_RESULTS = REPOSITORY / "bench" / "results" / "gpu-h100" / "run.jsonl"
FILES = (*SPEED, "modes.jsonl", "memory.jsonl", "overhead.jsonl", "sweep.jsonl")
BEGIN = "<!-- From here on written by `python bench/readme.py`. -->\n"
END = "<!-- Up to here written by `python bench/readme.py`. -->\n"
BEGIN_GPU = "<!-- On a GPU: from here on written by `python bench/readme.py`. -->\n"
END_GPU = "<!-- On a GPU: up to here written by `python bench/readme.py`. -->\n"


def main() -> None:
    """Draw the plots, and put each text between its two marks."""
    draw(RESULTS)
    write_between(BEGIN, text(RESULTS), END)
    write_between(BEGIN_GPU, gpu_text(GPU_RESULTS), END_GPU)


def write_between(begin: str, words: str, end: str) -> None:
    before, after = README.read_text().split(begin)[0], README.read_text().split(end)[1]
    README.write_text(before + begin + words + end + after)


def text(folder: Path) -> str:
    """All that the README says in figures."""
    speed = [record for name in SPEED for record in read(folder / name)]
    results = results_of(speed)
    sections = (
        "**Milliseconds of a step of the loss**, forward and backward, the gradient in fresh "
        "memory; and ratios of such times (medians of each round's ratio, not ratios of the "
        "medians, ± half their 95 % interval; `ours` is this package):",
        speed_table(results),
        machine_sentence(machine_of(speed), commits_of(folder)),
        picture("Time of the others as a multiple of ours", folder / "speed.png"),
        "**The same in place** (`inplace_backward=True`), our gradient written over the logits:",
        in_place_table(results),
        "**What this project promises, and what it aims at**, each judged by the case that fares "
        "worst (`?`: the bound that the verdict names lies within the ratio's interval):",
        requirements_table(results),
        "**Does PGT cost anything?** A step of the loss alone, and whole training steps around it "
        "(a ResNet-8 at CIFAR's size, a small transformer with a vocabulary of 50257): the median "
        "ratio of times with its 95 % interval. Below 1, PGT is faster.",
        overhead_table(overhead.subjects_of(read(folder / "overhead.jsonl"))),
        picture("Ratios of times with their intervals", folder / "overhead.png"),
        "**How it grows.** A slope of 1 is proportional growth; it is fitted to the larger half of "
        "the points.",
        picture("Time over rows, classes, α, threads and type", folder / "sweep.png"),
        other_ways_sentence(results_of(read(folder / "modes.jsonl"))),
        "**Peak memory** of a step besides the logits, in units of their size:",
        memory_table(peaks_of(read(folder / "memory.jsonl"))),
    )
    return "\n" + "\n\n".join(sections) + "\n\n"


def gpu_text(path: Path) -> str:
    """What the README says of a GPU in figures."""
    records = read(path)
    results = results_of(records)
    facts = machine_of(records)
    cells = verdict_cells(judge(results, "cuda"))
    sections = (
        "**Copies of the logits** that a step of the loss takes, and its parts (medians of "
        "interleaved rounds, the cache cold; a copy reads and writes the logits once):",
        copies_table(results),
        f"Measured on one {facts['gpu']}; torch {facts['versions']['torch']}, "
        f"python {facts['versions']['python']}; commit {facts['commit']}.",
        "**What is wanted there**, each judged by the case that fares worst:",
        markdown_table(cells.headings, cells.rows),
    )
    return "\n" + "\n\n".join(sections) + "\n\n"


def copies_table(results: Sequence[Result]) -> str:
    """A row for each type and shape that fills the device."""
    shown = (
        (FRESH, DEFAULT),
        (FRESH, ALPHA_ONE),
        (FRESH, "eager"),
        (FORWARD, DEFAULT),
        (FORWARD, "eager"),
        (BACKWARD, DEFAULT),
        (BACKWARD, "eager"),
    )
    words = {FRESH: "a step", FORWARD: "the loss alone", BACKWARD: "backward alone"}
    by_group = {(r.group.size, r.group.dtype, r.group.mode): r for r in results}
    rows = []
    for size, dtype in dict.fromkeys(
        (r.group.size, r.group.dtype) for r in results if r.group.case.gpu_rows
    ):
        row = [size, dtype]
        for mode, peer in shown:
            result = by_group.get((size, dtype, mode))
            known = result is not None and peer in result.seconds
            row.append(f"{result.ratio(peer, COPY.name).median:.2f}" if result and known else "-")
        rows.append(row)
    headings = [f"{words[mode]}, {heading_of(peer)}" for mode, peer in shown]
    return markdown_table(["logits", "type", *headings], rows)


def commits_of(folder: Path) -> str:
    """What the results were measured on, as recorded: a plus says that code had been changed."""
    files: dict[str, list[str]] = {}
    for name in FILES:
        commit = machine_of(read(folder / name))["commit"]
        files.setdefault(commit, []).append(Path(name).stem)
    if len(files) == 1:
        return f"commit {next(iter(files))}"
    named = (f"{commit} ({', '.join(names)})" for commit, names in files.items())
    return f"commits {', '.join(named)}"


def machine_sentence(facts: Record, commits: str) -> str:
    versions = ", ".join(
        f"{name} {facts['versions'][name]}"
        for name in ("torch", "jax", "python")
        if name in facts["versions"]
    )
    return (
        f"Measured on {facts['cpu']}, {facts['cores']} cores, {facts['threads']} threads, "
        f"{facts['isa'].upper()}; {versions}; {commits}."
    )


def speed_table(results: Sequence[Result]) -> str:
    peers = (COPY.name, "eager", *COMPILERS, ALPHA_ONE, DEFAULT, name_of_ours(0.25))
    rows = []
    for result in results:
        if result.group.mode != FRESH:
            continue
        times = [median_milliseconds(result.seconds, peer) for peer in peers]
        compiler = result.fastest(COMPILERS)
        ratios = [str(result.ratio(over, DEFAULT)) for over in ("eager", compiler) if over]
        rows.append([f"{result.group.size}, {result.group.dtype}", *times, *ratios])
    compilers = f"the faster of {' and '.join(map(heading_of, COMPILERS))}"
    ratios_of = [f"{over} / {heading_of(DEFAULT)}" for over in (heading_of("eager"), compilers)]
    times_of = [f"{heading_of(peer)}, ms" for peer in peers]
    return markdown_table(["logits", *times_of, *ratios_of], rows)


def in_place_table(results: Sequence[Result]) -> str:
    pairs = (("eager", DEFAULT), (DEFAULT, COPY.name))
    rows = [
        [
            f"{result.group.size}, {result.group.dtype}",
            median_milliseconds(result.seconds, DEFAULT),
            *(str(result.ratio(*pair)) for pair in pairs),
        ]
        for result in results
        if result.group.mode == IN_PLACE and result.group.case.name in LARGE
    ]
    headings = [f"{heading_of(over)} / {heading_of(under)}" for over, under in pairs]
    return markdown_table(["logits", f"{heading_of(DEFAULT)}, ms", *headings], rows)


def requirements_table(results: Sequence[Result]) -> str:
    cells = verdict_cells(judge(results))
    return markdown_table(cells.headings, cells.rows)


def overhead_table(subjects: Sequence[overhead.Subject]) -> str:
    rows = []
    for subject in subjects:
        row = [subject.name, subject.logits]
        for pair in overhead.SHOWN:
            ratio = subject.ratio(*pair)
            row += [ratio.with_interval, Text.from_markup(overhead.verdict(ratio)).plain]
        rows.append(row)
    headings = ["what is timed", "logits"]
    for over, under in overhead.SHOWN:
        headings += [f"{heading_of(over)} / {heading_of(under)}", "verdict"]
    return markdown_table(headings, rows)


def other_ways_sentence(results: Sequence[Result]) -> str:
    """What PGT costs as plain PyTorch."""
    (result,) = (r for r in results if r.group.mode == FRESH and "hook" in r.seconds)
    parts = [
        f"{result.ratio(peer, DEFAULT).median:.1f} times our time {words} ({heading_of(peer)})"
        for peer, words in (
            ("hook", "as a corrected hook on the gradient"),
            ("scaled", "as `F.cross_entropy(alpha * z) / alpha`, another loss's value"),
            ("reference", "as `powergrad_ext.reference`"),
        )
    ]
    return f"**PGT in plain PyTorch** takes, at {result.group.size}, {'; '.join(parts)}."


def memory_table(peaks: Sequence[Peak]) -> str:
    alphas = (DEFAULT_ALPHA,)
    cells = memory_cells(peaks, (*others(alphas), *map(ours, alphas)))
    return markdown_table(cells.headings, cells.rows)


def picture(title: str, path: Path) -> str:
    return f"![{title}]({path.relative_to(REPOSITORY)})"


def markdown_table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [map(code, headings), ["---"] * len(headings), *(map(code, row) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def code(words: str) -> str:
    """With the names of functions as code."""
    return re.sub(r"F\.cross_entropy|torch\.compile", r"`\g<0>`", words)


def draw(folder: Path) -> None:
    """Draw what the README shows; each plot says from which figures."""
    speed = [record for name in SPEED for record in read(folder / name)]
    steps, points = read(folder / "overhead.jsonl"), read(folder / "sweep.jsonl")
    figures = {
        "speed": plots.draw_speed(results_of(speed), machine_of(speed)),
        "overhead": plots.draw_overhead(overhead.subjects_of(steps), machine_of(steps)),
        "sweep": plots.draw_sweeps(sweep.points_of(points), machine_of(points)),
    }
    for name, figure in figures.items():
        plots.save(figure, folder / name, fingerprint(folder, SOURCES[name]))


SOURCES = {"speed": SPEED, "overhead": ("overhead.jsonl",), "sweep": ("sweep.jsonl",)}


def fingerprint(folder: Path, names: Iterable[str]) -> str:
    """What tells whether a plot was drawn from these files."""
    content = b"".join((folder / name).read_bytes() for name in names)
    return f"drawn from {', '.join(names)} ({hashlib.sha256(content).hexdigest()[:16]})"


if __name__ == "__main__":
    main()
