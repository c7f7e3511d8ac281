"""A small Llama's step: each loss is measured, its memory in a process of its own."""

from __future__ import annotations

from pathlib import Path

import pytest
from frameworks import framework

framework("transformers")

from bench import language_model  # noqa: E402
from bench.result import read  # noqa: E402

SIZES = {"vocabulary": 100, "width": 16, "layers": 1, "sequences": 2, "length": 8}


def test_main(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "language-model.jsonl"
    sizes = [f"--{name}={value}" for name, value in SIZES.items()]
    language_model.main([*sizes, "--budget", "0.01", "--output", str(output)])
    printed = capsys.readouterr().out
    records = [each for each in read(output) if each.get("kind") == "language model"]
    assert [each["peer"] for each in records] == list(language_model.OPTIONS)
    assert all(each["vocabulary"] == 100 and each["bytes"] >= 0 for each in records)
    assert all(len(each["seconds"]) >= language_model.ROUNDS for each in records)
    assert "2 x 8 tokens" in printed


def test_every_loss_is_that_of_its_model() -> None:
    """Between them the model is fused and undone."""
    made = language_model.steps(language_model.Sizes(**SIZES), "cpu")
    losses = []
    for _ in range(2):
        for step in made.values():
            step.prepare()
            losses.append(float(step.run()))
    assert losses == pytest.approx([losses[0]] * 6, rel=1e-5)
