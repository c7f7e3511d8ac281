"""The benchmark's script, very small: what it prints and what it writes."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bench import run
from bench.cases import CASES, COMPILED_ON_GPU, FRESH, IN_PLACE, MODES, OF_LOG_SOFTMAX, SMOOTHING
from bench.peers import ALPHAS, name_of_ours
from bench.requirements import CPU_REQUIREMENTS
from bench.result import machine_of, read, results_of
from powergrad_ext._build import source_folder

REPOSITORY = Path(__file__).resolve().parents[2]
TINY = ["--case", "tiny", "--peer", "eager", "--budget", "0"]
OURS = [name_of_ours(alpha) for alpha in ALPHAS]


def test_script_prints_tables_and_writes_samples(tmp_path: Path) -> None:
    lines = tmp_path / "new folder" / "results.jsonl"
    options = [*TINY, "--dtype", "bfloat16", "--threads", "1", "--output", lines]
    result = subprocess.run(
        [sys.executable, "bench/run.py", *options],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    )
    records = read(lines)
    machine = machine_of(records)
    assert machine["threads"] == 1
    assert machine["versions"]["torch"] == torch.__version__
    fresh, in_place = results_of(records)
    assert (fresh.group.mode, in_place.group.mode) == (FRESH, IN_PLACE)
    for measured in (fresh, in_place):
        assert set(measured.seconds) == {"copy", "eager", *OURS}
        assert all(seconds.min() > 0.0 for seconds in measured.seconds.values())
    assert "Forward + backward, in place, bfloat16: milliseconds" in result.stdout
    verdicts = result.stdout.partition("What this project promises")[2]
    for requirement in CPU_REQUIREMENTS:  # the table may break lines between words
        assert all(word in verdicts for word in requirement.where.split())
    assert "open: without" in " ".join(verdicts.split())
    assert "promise kept" not in verdicts, "of a single case"


@pytest.mark.parametrize("mode", MODES)
def test_each_mode_times_whoever_has_it(
    mode: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = tmp_path / "results.jsonl"
    peers = ["--peer", "eager", "eager-log-softmax", "hook", "scaled", "reference"]
    run.main([*TINY, *peers, "--mode", mode, "--dtype", "float32", "--output", str(lines)])
    (result,) = results_of(read(lines))
    eager = "eager-log-softmax" if mode in OF_LOG_SOFTMAX else "eager"
    assert {"copy", eager, *OURS} <= set(result.seconds)
    assert not result.skipped
    assert "GB/s" in capsys.readouterr().out


def test_alpha_is_that_of_all_who_know_it(tmp_path: Path) -> None:
    lines = tmp_path / "results.jsonl"
    options = ["--peer", "scaled", "--alpha", "0.7", "0.5", "--dtype", "float32", "--mode", FRESH]
    run.main([*TINY, *options, "--output", str(lines)])
    (result,) = results_of(read(lines))
    assert set(result.seconds) == {"copy", "scaled", "powergrad-0.7", "powergrad-0.5"}


def test_ratios_are_to_the_first_alpha_where_the_default_is_not_measured(
    capsys: pytest.CaptureFixture[str],
) -> None:
    run.main([*TINY, "--alpha", "0.7", "--dtype", "float32", "--mode", FRESH])
    ratios = capsys.readouterr().out.partition("ratios of times")[2]
    assert "α=0.7" in ratios
    row = next(line for line in ratios.splitlines() if line.split()[:1] == ["tiny"])
    assert "-" not in row.split()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_missing_gpu_is_told() -> None:
    with pytest.raises(SystemExit, match="needs a GPU"):
        run.main([*TINY, "--device", "cuda"])


def test_quick_is_a_subset() -> None:
    options = run.parse(["--quick"])
    assert {group.mode for group in run.groups(options)} == {FRESH}
    assert 2 <= len(run.groups(options)) <= 4


def test_on_a_gpu_whoever_compiles_is_met_where_that_is_worth_its_time() -> None:
    options = run.parse(["--gpu"])
    groups = run.groups(options)
    assert len(groups) < 80
    assert {group.device for group in groups} == {"cuda"}
    compiling = {"compile", "liger", "quack", "quack-dx"}
    for group in groups:
        names = {peer.name for peer in run.peers(options, group)}
        is_met = group.mode == FRESH and group.case.name in COMPILED_ON_GPU
        assert names & compiling == (compiling if is_met else set())
        assert {"copy", "powergrad-0.3", "powergrad-1"} <= names
        assert names & {"eager", "eager-log-softmax"}


def test_a_gpu_run_measures_time_and_memory(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In small, and on a CPU."""
    monkeypatch.setattr("bench.cases.GPU_CASES", {FRESH: ("tiny",), SMOOTHING: ("tiny",)})
    asked = run.parse(["--gpu", "--dtype", "float32"])
    asked.device, asked.budget, asked.output = "cpu", 0.0, tmp_path / "run.jsonl"
    monkeypatch.setattr(run, "parse", lambda arguments: asked)
    run.main([])
    records = read(asked.output)
    assert {result.group.mode for result in results_of(records)} == {FRESH, SMOOTHING}
    peaks = [record for record in records if record["kind"] == "memory"]
    assert {(peak["mode"], peak["peer"]) for peak in peaks} == {
        (FRESH, "eager"),
        (FRESH, "powergrad-0.3"),
    }
    assert "Peak memory" in capsys.readouterr().out


def test_all_cases_are_those_of_a_cpu() -> None:
    options = run.parse(["--full"])
    assert {"tiny", "gemma", "few-classes", "mask"} <= {*options.case} < {*CASES}


def test_memory_of_a_fresh_gradient_is_that_of_the_logits(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = tmp_path / "memory.jsonl"
    options = ["--memory", "--case", "imagenet-large", "--peer", "--alpha", "0.3"]
    run.main([*options, "--dtype", "float32", "--mode", FRESH, "--output", str(lines)])
    peaks = {record["peer"]: record for record in read(lines) if record["kind"] == "memory"}
    logits_bytes = 4096 * 1000 * 4
    assert peaks["copy"]["bytes"] < 0.1 * logits_bytes
    assert 0.9 * logits_bytes < peaks["powergrad-0.3"]["bytes"] < 1.2 * logits_bytes
    assert "4096 x 1000" in capsys.readouterr().out


def test_profile_names_peers_and_operators(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--profile", str(tmp_path), "--alpha", "0.3", "--mode", FRESH]
    run.main([*TINY, *options, "--dtype", "float32"])
    trace = json.loads((tmp_path / "tiny-float32-forward+backward.json").read_text())
    names = {event.get("name") for event in trace["traceEvents"]}
    assert {"eager", "powergrad-0.3", "powergrad::cross_entropy"} <= names
    assert "powergrad::cross_entropy" in capsys.readouterr().out


@pytest.mark.parametrize(("device", "profiler"), [("cpu", "perf record"), ("cuda", "ncu --set")])
def test_explain_prints_commands(
    device: str, profiler: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run.main(["--explain", "--case", "llama3", "--device", device])
    printed = capsys.readouterr().out
    assert profiler in printed
    assert "python bench/run.py --case llama3 --mode backward --dtype float32" in printed


@pytest.mark.parametrize(
    ("device", "sources", "mark", "named", "asked"),
    [
        ("cpu", "cpu/kernels.h", "Kernel<", r"Kernel<\w+> (\w+);", r": (?:.*, )?{}\b"),
        ("cuda", "cuda/*.cu*", "__global__", r"__global__[^;{]*?(\w+)_kernel\(", r"'regex:{}'"),
    ],
    ids=["cpu", "cuda"],
)
def test_explain_names_every_kernel(
    device: str,
    sources: str,
    mark: str,
    named: str,
    asked: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run.main(["--explain", "--case", "llama3", "--device", device])
    printed = capsys.readouterr().out
    text = "".join(path.read_text() for path in source_folder().glob(sources))
    kernels = re.findall(named, text)
    assert 0 < len(kernels) == text.count(mark)
    for kernel in {*kernels} - {"merge_shards"}:  # which several processes have a use for
        assert re.search(asked.format(kernel), printed), kernel
