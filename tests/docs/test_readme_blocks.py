"""The README's blocks of code, one after another in one namespace, as they stand."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from frameworks import framework

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
PLAIN = [block for block in BLOCKS if "language_model" not in block and "group=" not in block]


def execute(block: str, names: dict) -> dict:
    exec(compile(block, "README.md", "exec"), names)
    return names


@pytest.fixture(scope="module")
def names() -> dict:
    """What the first block leaves behind, which trains."""
    torch.manual_seed(0)
    return execute(BLOCKS[0], {})


def test_the_first_block_trains(names: dict) -> None:
    predicted = names["model"](names["features"]).argmax(1)
    assert (predicted == names["target"]).float().mean() > 0.9


def test_the_first_block_is_the_quickstart() -> None:
    lines = iter((ROOT / "examples" / "quickstart.py").read_text().splitlines())
    for line in BLOCKS[0].splitlines():
        assert line in lines, line  # which looks from there on


@pytest.mark.parametrize("block", PLAIN[1:], ids=lambda block: block.split("\n")[0])
def test_a_block(block: str, names: dict) -> None:
    left = execute(block, dict(names))
    if "loss" in block:
        left["loss"].backward()


def test_the_block_for_language_models() -> None:
    transformers = framework("transformers")
    (block,) = (block for block in BLOCKS if "language_model" in block)
    config = transformers.LlamaConfig(
        vocab_size=50,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
    )
    model = transformers.LlamaForCausalLM(config)
    execute(block, {"language_model": model})
    tokens = torch.randint(50, (2, 8))
    output = model(tokens, labels=tokens)
    assert output.logits is None
    output.loss.backward()


def test_the_block_for_sharded_vocabularies(names: dict, tmp_path: Path) -> None:
    (block,) = (block for block in BLOCKS if "group=" in block)
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        logits = torch.randn(2000, 10, requires_grad=True)
        left = execute(block, names | {"local_logits": logits, "group": dist.group.WORLD})
        left["loss"].backward()
    finally:
        dist.destroy_process_group()
    assert logits.grad is not None


def test_links_lead_somewhere() -> None:
    for words in re.findall(r"\]\((?!http)([^)]+)\)|src(?:set)?=\"([^\"]+)\"", README):
        path, _, anchor = "".join(words).partition("#")
        assert (ROOT / path).exists(), path
        if anchor:
            text = (ROOT / path).read_text() if path else README
            headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
            assert anchor in {heading.lower().replace(" ", "-") for heading in headings}, anchor
