"""Write the pages of bench/results and the README's table, and draw the plots, from the results."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

# As `python bench/readme.py`, from a source tree in which nothing needs to be installed.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench import packages

if __name__ == "__main__":
    packages.require("matplotlib")

from matplotlib.figure import Figure

from bench import headline, linear, markdown, overhead, plots, sweep
from bench.cases import FRESH
from bench.memory import peaks_of
from bench.requirements import DEFAULT
from bench.result import Record, Result, machine_of, read, results_of
from bench.verdicts import judge

REPOSITORY = Path(__file__).resolve().parents[1]
README = REPOSITORY / "README.md"
LAST_LAYER = REPOSITORY / "docs" / "last_layer.md"
RESULTS = REPOSITORY / "bench" / "results"
SHOWN = RESULTS / "cpu-emerald-rapids"
"""The machine whose figures the README shows."""
WITH_LAST_LAYER = RESULTS / "cpu-rocket-lake"
"""The machine that the last layer was measured on."""
SPEED = ("float32.jsonl", "bfloat16.jsonl")
KEPT = ("float32-kept.jsonl", "bfloat16-kept.jsonl")
LINEAR = ("linear-float32.jsonl", "linear-bfloat16.jsonl")
FILES = (*SPEED, *KEPT, *LINEAR, "modes.jsonl", "memory.jsonl", "overhead.jsonl", "sweep.jsonl")
GPU = RESULTS / "gpu-h100"
LANGUAGE_MODEL = RESULTS / "language-model.jsonl"
BEGIN = "<!-- From here on written by `python bench/readme.py`. -->\n"
END = "<!-- Up to here written by `python bench/readme.py`. -->\n"


def main() -> None:
    """Draw the plots, write the pages, and put each text between its two marks."""
    for folder in cpu_folders():
        draw(folder)
        (folder / "README.md").write_text(page(folder))
    write_between(GPU / "README.md", gpu_text(GPU / "run.jsonl"))
    write_between(README, text(SHOWN))
    write_between(LAST_LAYER, linear_text(WITH_LAST_LAYER))


def cpu_folders() -> list[Path]:
    """A folder for each machine."""
    return sorted(path for path in RESULTS.glob("cpu-*") if path.is_dir())


def write_between(path: Path, words: str) -> None:
    before, after = path.read_text().split(BEGIN)[0], path.read_text().split(END)[1]
    path.write_text(before + BEGIN + words + END + after)


def written(path: Path) -> str:
    """What stands between the marks."""
    return path.read_text().split(BEGIN)[1].split(END)[0]


def text(folder: Path) -> str:
    """All that the README says in figures."""
    fresh, kept = records_of(folder, SPEED), records_of(folder, KEPT)
    table = markdown.table_in_short(results_of(fresh), results_of(kept))
    return f"\n{table}\n\n{_measured_on(machine_of(fresh))}\n\n"


def linear_text(folder: Path) -> str:
    """The figures of the page on the last layer."""
    records = records_of(folder, LINEAR)
    table = markdown.linear_table_in_short(linear.measurements_of(records))
    parts = [table, _measured_on(machine_of(records)), *language_model_parts(LANGUAGE_MODEL)]
    return "\n" + "\n\n".join(parts) + "\n\n"


def language_model_parts(path: Path) -> list[str]:
    """A sentence on the model, the table of its losses, and where they were measured."""
    records = read(path)
    losses = [record for record in records if record["kind"] == "language model"]
    sizes = losses[0]
    return [
        f"Whole training steps of a small Llama ({sizes['layers']} layers of {sizes['width']} "
        f"features, a vocabulary of {sizes['vocabulary']}, {sizes['sequences']} x "
        f"{sizes['length']} tokens, float32; memory besides the model):",
        markdown.language_model_table(losses),
        _measured_on(machine_of(records)),
    ]


def _measured_on(facts: Record) -> str:
    return (
        f"Medians on {facts['cpu']}, {facts['threads']} threads; "
        f"torch {facts['versions']['torch']}, ours at α = 0.3."
    )


def page(folder: Path) -> str:
    """All figures of a machine."""
    fresh, kept = records_of(folder, SPEED), records_of(folder, KEPT)
    results, kept_results = results_of(fresh), results_of(kept)
    facts = machine_of(fresh)
    sections = [
        "<!-- Written by `python bench/readme.py`. -->",
        f"# {facts['cpu']}",
        machine_sentence(facts, commits_of(folder)),
        "Medians of each round's ratio (not ratios of medians), ± half their 95 % interval; `ours` "
        "is this package. A step is the loss, forward and backward, with the gradient in a tensor "
        "of its own.",
        "## First-touch memory",
        "As glibc hands it out by default: what is freed goes back to the system, and large "
        "tensors are made of pages that the system has to clear first. `F.cross_entropy` makes "
        "several, this package the gradient.",
        markdown.speed_table(results),
        picture("Time of the others as a multiple of ours", "speed.png"),
        "**In place** (`inplace_backward=True`), the gradient written over the logits:",
        markdown.in_place_table(results),
    ]
    if kept:
        sections += [
            "## Reused memory",
            "Freed memory is reused for the next tensor, as by jemalloc and tcmalloc "
            f"(here: `--allocator {machine_of(kept)['allocator']}`).",
            markdown.speed_table(kept_results),
        ]
    sections += [
        "## What is promised",
        "Each promise is judged by the case that fares worst. A verdict needs all cases and peers "
        "that it speaks of, and intervals that lie on one side of its bound; else it is open.",
        markdown.verdict_table(judge(results)),
    ]
    if kept:
        sections += [
            "With reused memory:",
            markdown.verdict_table(judge(kept_results, "cpu", True)),
        ]
    if layers := records_of(folder, LINEAR):
        sections += [
            "## The last layer and the loss",
            "Forward and backward of rows of features through a layer to so many classes: time in "
            "units of the matrix products alone (which keep the logits), and the peak of memory "
            "besides inputs and gradients in units of the logits. In half precision the sum of the "
            "weight's gradient, which is in float32, is most of what ours takes.",
            markdown.linear_table(linear.measurements_of(layers)),
        ]
    if steps := records_of(folder, SOURCES["overhead"]):
        sections += [
            "## Does PGT cost anything?",
            "A step of the loss alone, and whole training steps around it (a ResNet-8 at CIFAR's "
            "size, a small transformer with a vocabulary of 50257): the median ratio of times with "
            "its 95 % interval. Below 1, PGT is faster.",
            markdown.overhead_table(overhead.subjects_of(steps)),
            picture("Ratios of times with their intervals", "overhead.png"),
        ]
    if records_of(folder, SOURCES["sweep"]):
        sections += [
            "## How it grows",
            "A slope of 1 is proportional growth; it is fitted to the larger half of the points.",
            picture("Time over rows, classes, α, threads and type", "sweep.png"),
        ]
    if modes := records_of(folder, ["modes.jsonl"]):
        sections += ["## PGT in plain PyTorch", other_ways_sentence(results_of(modes))]
    if peaks := records_of(folder, ["memory.jsonl"]):
        sections += [
            "## Peak memory",
            "Of a step besides the logits, in units of their size:",
            markdown.memory_table(peaks_of(peaks)),
        ]
    return "\n\n".join(sections) + "\n"


def gpu_text(path: Path) -> str:
    """The figures of a GPU."""
    records = read(path)
    results = results_of(records)
    facts = machine_of(records)
    peaks = peaks_of(records)
    sections = [
        "**Copies of the logits** that a step of the loss takes, and its parts (medians of "
        "interleaved rounds, the cache cold; a copy reads and writes the logits once):",
        markdown.copies_table(results),
        markdown.options_table(results),
        f"Measured on one {facts['gpu']}; torch {facts['versions']['torch']}, "
        f"python {facts['versions']['python']}; commit {facts['commit']}.",
        "**What is wanted there**, each judged by the case that fares worst:",
        markdown.verdict_table(judge(results, "cuda", peaks=peaks)),
    ]
    if peaks:
        sections += ["**Peak memory** of a step besides the logits, in units of their size:"]
        sections += [markdown.memory_table(peaks)]
    return "\n" + "\n\n".join(filter(None, sections)) + "\n\n"


def records_of(folder: Path, names: Iterable[str]) -> list[Record]:
    """The records of those files that there are."""
    paths = [folder / name for name in names if (folder / name).exists()]
    return [record for path in paths for record in read(path)]


def commits_of(folder: Path) -> str:
    """What the results were measured on, as recorded: a plus says that code had been changed."""
    files: dict[str, list[str]] = {}
    for name in FILES:
        if records := records_of(folder, [name]):
            files.setdefault(machine_of(records)["commit"], []).append(Path(name).stem)
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
        f"{facts['cores']} cores, {facts['threads']} threads, {facts['isa'].upper()}; {versions}; "
        f"{commits}."
    )


def other_ways_sentence(results: Sequence[Result]) -> str:
    """What PGT costs as plain PyTorch."""
    (result,) = (r for r in results if r.group.mode == FRESH and "hook" in r.seconds)
    parts = [
        f"{result.ratio(peer, DEFAULT).median:.1f} times our time {words}"
        for peer, words in (
            ("hook", "as a corrected hook on the gradient"),
            ("scaled", "as `F.cross_entropy(alpha * z) / alpha`, another loss's value"),
            ("reference", "as `powergrad_ext.reference`"),
        )
    ]
    return f"It takes, at {result.group.size}, {'; '.join(parts)}."


def picture(title: str, name: str) -> str:
    return f"![{title}]({name})"


def draw(folder: Path) -> None:
    """Draw what the page shows; each plot says from which figures."""
    for name, sources in SOURCES.items():
        if records := records_of(folder, sources):
            figure = DRAWN_BY[name](records)
            plots.save(figure, folder / name, fingerprint(folder, sources))


def draw_headline(theme: str) -> Callable[[Sequence[Record]], Figure]:
    """How the README's picture is drawn for a page in this theme."""
    return lambda records: headline.draw_headline(results_of(records), machine_of(records), theme)


DRAWN_BY = {
    "speed": lambda records: plots.draw_speed(results_of(records), machine_of(records)),
    "overhead": lambda records: plots.draw_overhead(
        overhead.subjects_of(records), machine_of(records)
    ),
    "sweep": lambda records: plots.draw_sweeps(sweep.points_of(records), machine_of(records)),
} | {f"headline-{theme}": draw_headline(theme) for theme in headline.THEMES}
SOURCES: dict[str, tuple[str, ...]] = {
    "speed": SPEED,
    "overhead": ("overhead.jsonl",),
    "sweep": ("sweep.jsonl",),
} | {f"headline-{theme}": KEPT for theme in headline.THEMES}


def fingerprint(folder: Path, names: Iterable[str]) -> str:
    """What tells whether a plot was drawn from these files."""
    content = b"".join((folder / name).read_bytes() for name in names)
    return f"drawn from {', '.join(names)} ({hashlib.sha256(content).hexdigest()[:16]})"


if __name__ == "__main__":
    main()
