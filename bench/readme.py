"""Write the README's figures and draw its plots, both from the results in bench/results."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

# As `python bench/readme.py`, from a source tree in which nothing needs to be installed.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench import overhead, plots, sweep
from bench.cases import FRESH, IN_PLACE
from bench.memory import Peak
from bench.peers import COPY, DEFAULT_ALPHA, name_of_ours, registry
from bench.report import in_milliseconds
from bench.requirements import COMPILERS, DEFAULT, LARGE, ORDINARY, judge
from bench.result import Record, Result, machine_of, read, results_of

REPOSITORY = Path(__file__).resolve().parents[1]
README = REPOSITORY / "README.md"
RESULTS = REPOSITORY / "bench" / "results" / "cpu-zen4"
SPEED = ("float32.jsonl", "bfloat16.jsonl")
FILES = (*SPEED, "modes.jsonl", "memory.jsonl", "overhead.jsonl", "sweep.jsonl")
BEGIN = "<!-- From here on written by `python bench/readme.py`. -->\n"
END = "<!-- So far. -->\n"


def main() -> None:
    """Draw the plots, and put the text between its two marks."""
    draw(RESULTS)
    before, after = README.read_text().split(BEGIN)[0], README.read_text().split(END)[1]
    README.write_text(before + BEGIN + text(RESULTS) + END + after)


def text(folder: Path) -> str:
    """All that the README says in figures."""
    speed = [record for name in SPEED for record in read(folder / name)]
    results = results_of(speed)
    sections = (
        machine_sentence(machine_of(speed), commits_of(folder)),
        speed_table(results),
        picture("Time of the others as a multiple of ours", folder / "speed.png"),
        in_place_table(results),
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
        "**Peak memory** besides the logits, in units of their size:",
        memory_table(
            [
                Peak.from_json(record)
                for record in read(folder / "memory.jsonl")
                if record["kind"] == "memory"
            ]
        ),
    )
    return "\n" + "\n\n".join(sections) + "\n\n"


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
        f"Milliseconds of a step of the loss, forward and backward, and how many times our time at "
        f"`alpha=0.3` the others take (median of interleaved rounds ± half its 95 % interval). "
        f"{facts['cpu']}, {facts['cores']} cores, {facts['threads']} threads, "
        f"{facts['isa'].upper()}; {versions}; {commits}; the gradient in fresh memory:"
    )


def speed_table(results: Sequence[Result]) -> str:
    columns = {
        "copy": COPY.name,
        "`F.cross_entropy`": "eager",
        "`torch.compile`": "compile",
        "jitted JAX": "jax",
        "ours, α = 1": ORDINARY,
        "0.3": DEFAULT,
        "0.25": name_of_ours(0.25),
    }
    rows = []
    for result in results:
        if result.group.mode != FRESH:
            continue
        times = [
            in_milliseconds(result.time(peer).median) if peer in result.seconds else "-"
            for peer in columns.values()
        ]
        compiler = result.fastest(COMPILERS)
        ratios = [str(result.ratio(over, DEFAULT)) for over in ("eager", compiler) if over]
        rows.append([f"{spaced(result)}, {result.group.dtype}", *times, *ratios])
    return markdown_table(
        ["logits", *columns, "eager / ours", "best compiler / ours"],
        rows,
    )


def in_place_table(results: Sequence[Result]) -> str:
    rows = [
        [
            f"{spaced(result)}, {result.group.dtype}",
            in_milliseconds(result.time(DEFAULT).median),
            str(result.ratio("eager", DEFAULT)),
            str(result.ratio(DEFAULT, COPY.name)),
        ]
        for result in results
        if result.group.mode == IN_PLACE and result.group.case.name in LARGE
    ]
    return "With `inplace_backward=True`:\n\n" + markdown_table(
        ["logits", "ours, α = 0.3", "eager / ours", "ours / copy"], rows
    )


def requirements_table(results: Sequence[Result]) -> str:
    rows = []
    for verdict in judge(results):
        requirement = verdict.requirement
        sign = "≥" if requirement.faster else "≤"
        aim = "" if requirement.aim is None else f"{sign} {requirement.aim:g}"
        ratio = "" if verdict.ratio is None else str(verdict.ratio)
        state = verdict.state + (", within the noise" if verdict.unsure else "")
        cells = (requirement.text, f"{sign} {requirement.must:g}", aim, ratio, verdict.where, state)
        rows.append(list(cells))
    return "What has to hold, what we aim at, and the case that fares worst:\n\n" + markdown_table(
        ["ratio of times", "must", "aim", "worst", "in", ""], rows
    )


def overhead_table(subjects: Sequence[overhead.Subject]) -> str:
    rows = []
    for subject in subjects:
        to_ordinary, to_one = (subject.ratio(*overhead.COMPARISONS[k]) for k in (0, 2))
        rows.append(
            [
                subject.name,
                subject.logits.replace("x", " x "),
                to_ordinary.with_interval,
                plain(overhead.verdict(to_ordinary)),
                to_one.with_interval,
                plain(overhead.verdict(to_one)),
            ]
        )
    return markdown_table(
        ["", "logits", "ours, α = 0.3 / `F.cross_entropy`", "", "α = 0.3 / α = 1", ""], rows
    )


def other_ways_sentence(results: Sequence[Result]) -> str:
    """What PGT costs as plain PyTorch."""
    (result,) = (r for r in results if r.group.mode == FRESH and "hook" in r.seconds)
    parts = [
        f"{words} {result.ratio(peer, DEFAULT).median:.1f} times"
        for peer, words in (
            ("hook", "as a corrected hook on the gradient"),
            ("scaled", "as `F.cross_entropy(alpha * z) / alpha` (another loss's value)"),
            ("reference", "as `powergrad_ext.reference`"),
        )
    ]
    return f"**PGT in plain PyTorch** takes, at {spaced(result)}: {', '.join(parts)} our time."


def memory_table(peaks: Sequence[Peak]) -> str:
    known = {
        (peak.group, peak.peer): f"{peak.of_logits:.2f}" for peak in peaks if peak.bytes is not None
    }
    peers = [
        peer
        for peer in registry((DEFAULT_ALPHA,))
        if peer != COPY and any(peer.name == name for _, name in known)
    ]
    groups = dict.fromkeys(peak.group for peak in peaks)
    rows = [
        [
            f"{group.size.replace('x', ' x ')}, {group.mode}",
            *(known.get((group, peer.name), "-") for peer in peers),
        ]
        for group in groups
    ]
    return markdown_table(["logits, mode", *(peer.heading for peer in peers)], rows)


def spaced(result: Result) -> str:
    return result.group.size.replace("x", " x ")


def plain(marked: str) -> str:
    """A verdict without its colour."""
    return marked.partition("]")[2].replace("[/]", "")


def picture(title: str, path: Path) -> str:
    return f"![{title}]({path.relative_to(REPOSITORY)})"


def markdown_table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


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
