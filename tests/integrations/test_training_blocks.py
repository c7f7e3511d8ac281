"""The README's blocks under "Use it in your training", run as they stand on the real packages."""

from __future__ import annotations

import re
import sys
import types
from pathlib import Path

import pytest
import torch
from frameworks import framework

import powergrad_ext as pg

README = Path(__file__).parents[2] / "README.md"
TEXT = README.read_text()
SECTION = TEXT.split("## Use it in your training\n")[1].split("\n## ")[0]
CODE = "".join(re.findall(r"```python\n(.*?)```", SECTION, re.DOTALL))
PARTS = re.split(r"^# (?:A )?(?=\w+(?:,|:| loop))", CODE, flags=re.MULTILINE)[1:]
BLOCKS = {re.match(r"\w+", part)[0].lower(): "# " + part for part in PARTS}


def nothing():
    return {}


def names_of_transformers():
    from test_transformers import language_model, sequences
    from transformers import Trainer, TrainingArguments

    options = {"max_steps": 1, "use_cpu": True, "report_to": [], "save_strategy": "no"}
    tokens, labels = sequences()
    data = [{"input_ids": t, "labels": y} for t, y in zip(tokens, labels, strict=True)]
    arguments = TrainingArguments("output", **options)
    return {"model": language_model(), "arguments": arguments, "data": data, "Trainer": Trainer}


def names_of_trl():
    from test_trl import sft_parts
    from transformers import Trainer
    from trl import SFTTrainer

    return sft_parts("output") | {"SFTTrainer": SFTTrainer, "Trainer": Trainer}


def names_of_lightning():
    from lightning.pytorch import LightningModule, Trainer

    class Classifier(LightningModule):
        def __init__(self, criterion):
            super().__init__()
            self.network, self.criterion = torch.nn.Linear(4, 3), criterion

        def training_step(self, batch, index):
            inputs, target = batch
            return self.criterion(self.network(inputs), target)

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.1)

    data = [(torch.randn(6, 4), torch.arange(6) % 3) for _ in range(2)]
    loader = torch.utils.data.DataLoader(data, batch_size=None)
    return {"Classifier": Classifier, "Trainer": Trainer, "batches": loader, "pg": pg}


def names_of_timm():
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 3))
    images, mixed = torch.randn(6, 3, 2, 2), torch.rand(6, 3).softmax(1)
    return {"model": model, "images": images, "target": torch.arange(6) % 3, "mixed_target": mixed}


def names_of_torchtitan():
    from torchtitan.components.loss import ChunkedLossWrapper

    return {"ChunkedLossWrapper": ChunkedLossWrapper}


def names_of_fastai():
    from fastai.data.core import DataLoaders
    from fastai.learner import Learner

    data = [(torch.randn(4), torch.tensor(number % 3)) for number in range(12)]
    loaders = DataLoaders.from_dsets(data, data, bs=6, device="cpu", num_workers=0)
    return {"Learner": Learner, "loaders": loaders, "model": torch.nn.Linear(4, 3)}


NAMES = {
    "plain": nothing,
    "transformers": names_of_transformers,
    "trl": names_of_trl,
    "lightning": names_of_lightning,
    "timm": names_of_timm,
    "torchtitan": names_of_torchtitan,
    "fastai": names_of_fastai,
}


def test_the_first_block():
    """The one under "Use", by itself."""
    code = TEXT.split("```python\n")[1].split("```")[0]
    names = {}
    exec(compile(code, "README.md, first block", "exec"), names)
    names["loss"].backward()
    assert names["logits"].grad.shape == (8, 10)


def test_every_block_has_a_test():
    assert BLOCKS.keys() == NAMES.keys()


@pytest.mark.parametrize("name", NAMES)
def test_block(name, tmp_path, monkeypatch):
    if name != "plain":
        framework(name)
    monkeypatch.chdir(tmp_path)
    module = types.ModuleType("readme")  # compilers may import what a name is global to
    monkeypatch.setitem(sys.modules, module.__name__, module)
    vars(module).update(NAMES[name]())
    exec(compile(BLOCKS[name], f"README.md, {name}", "exec"), vars(module))
