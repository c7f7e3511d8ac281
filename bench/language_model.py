"""Tokens a second and peak memory of a small Llama's training step, by who computes its loss."""

from __future__ import annotations

import argparse
import multiprocessing
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

# As `python bench/language_model.py`, from a source tree in which nothing needs to be installed.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench import packages

if __name__ == "__main__":
    packages.require("transformers")

import torch
from rich.table import Table
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from bench import command_line
from bench.clock import clock_of
from bench.estimates import Samples, estimate
from bench.measure import play, warm_up
from bench.memory import cuda_peak, resident_peak
from bench.recording import recording
from bench.report import empty_table
from bench.result import Record, rounded
from bench.step import Step
from powergrad_ext.integrations.transformers import fuse_last_layer, unfuse_last_layer

ROUNDS = 7


@dataclass(frozen=True)
class Sizes:
    """Of the model and of its batch."""

    vocabulary: int = 128256
    width: int = 512
    layers: int = 4
    sequences: int = 4
    length: int = 512

    @property
    def tokens(self) -> int:
        return self.sequences * self.length

    def __str__(self) -> str:
        return (
            f"{self.layers} layers of {self.width} features, a vocabulary of {self.vocabulary}, "
            f"{self.sequences} x {self.length} tokens"
        )


LIBRARY, FUSED, WITH_METRICS = "the library's loss", "fused", "fused, with metrics"
OPTIONS: dict[str, dict[str, bool]] = {
    LIBRARY: {},
    FUSED: {},
    WITH_METRICS: {"return_metrics": True},
}


def steps(sizes: Sizes, device: str) -> dict[str, Step]:
    """Forward and backward of one model, which is fused and undone between them, in float32."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=sizes.vocabulary,
        hidden_size=sizes.width,
        intermediate_size=3 * sizes.width,
        num_hidden_layers=sizes.layers,
        num_attention_heads=8,
        max_position_embeddings=sizes.length,
    )
    model = LlamaForCausalLM(config).to(device).train()
    tokens = torch.randint(sizes.vocabulary, (sizes.sequences, sizes.length), device=device)

    def step_of(name: str) -> Step:
        def prepare() -> None:
            model.zero_grad()
            if name == LIBRARY:
                unfuse_last_layer(model)
            else:
                fuse_last_layer(model, alpha=0.3)

        def run() -> Tensor:
            loss = model(input_ids=tokens, labels=tokens, **OPTIONS[name]).loss
            loss.backward()
            return loss.detach()

        return Step(run, prepare)

    return {name: step_of(name) for name in OPTIONS}


@dataclass(frozen=True)
class Measurement:
    """Seconds of every round, and the peak of memory in bytes, besides the model."""

    sizes: Sizes
    seconds: dict[str, Samples]
    bytes: dict[str, int]

    def as_json(self) -> list[Record]:
        about = {"kind": "language model", **vars(self.sizes)}
        return [
            {**about, "peer": name, "seconds": rounded(seconds), "bytes": self.bytes[name]}
            for name, seconds in self.seconds.items()
        ]


def measure(sizes: Sizes, device: str, threads: int, budget: float) -> Measurement:
    """Times all losses in interleaved rounds, and each loss's peak memory in its own process."""
    peaks = {}
    for name in OPTIONS:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            peaks[name] = pool.apply(peak_here, (sizes, device, threads, name))
    clock, ready = clock_of(device), []
    for name, step in steps(sizes, device).items():
        ready.append(warm_up(name, step, clock, uncounted_calls=0))
    return Measurement(sizes, play(ready, clock, budget, ROUNDS), peaks)


def peak_here(sizes: Sizes, device: str, threads: int, name: str) -> int:
    """Bytes; a small step first, for what loads with it."""
    torch.set_num_threads(threads)
    tiny = steps(Sizes(100, 16, 1, 1, 8), device)[name]
    tiny.prepare()
    tiny.run()
    step = steps(sizes, device)[name]
    return cuda_peak(step) if device == "cuda" else resident_peak(step)


def table(measured: Measurement) -> Table:
    sizes = measured.sizes
    headings = ["", "tokens a second", "time / library's", "peak memory, MiB"]
    result = empty_table(f"Forward and backward of a Llama: {sizes}", headings)
    for name, seconds in measured.seconds.items():
        result.add_row(
            name,
            f"{sizes.tokens / float(estimate(seconds).median):.0f}",
            str(estimate(seconds / measured.seconds[LIBRARY])),
            f"{measured.bytes[name] / 2**20:.0f}",
        )
    return result


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    options = parse(arguments)
    sizes = Sizes(*(getattr(options, name) for name in Sizes.__dataclass_fields__))
    with recording(options) as record:
        task = {str(sizes): lambda: measure(sizes, options.device, options.threads, options.budget)}
        (found,) = record.collect(task)
        record.console.print(table(found))


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = command_line.parser(__doc__)
    for name, field in Sizes.__dataclass_fields__.items():
        parser.add_argument(f"--{name}", type=int, default=field.default, help="of the model")
    command_line.add_measuring_options(parser, budget=60.0, per="run")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
