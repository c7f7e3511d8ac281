"""What is computed: shapes by name, types, modes, and the random data of one group."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Case:
    """Logits of (rows, classes), as a task of that name would have them."""

    name: str
    rows: int
    classes: int

    @property
    def shape(self) -> str:
        return f"{self.rows}x{self.classes}"


CASES = {
    case.name: case
    for case in (
        Case("tiny", 8, 10),
        Case("cifar10", 128, 10),
        Case("cifar100", 128, 100),
        Case("imagenet", 256, 1000),
        Case("imagenet-large", 4096, 1000),
        Case("imagenet21k", 1024, 21841),
        Case("vocabulary", 1024, 32000),
        Case("gpt2", 512, 50257),
        Case("llama", 256, 128256),
    )
}
DEFAULT_CASES = ("tiny", "cifar10", "imagenet", "imagenet-large", "vocabulary", "llama")

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float64": torch.float64,
}
DEFAULT_DTYPES = ("float32", "bfloat16")

FRESH = "fresh"
"""Forward and backward, the gradient in new memory: its page faults are part of the price."""
IN_PLACE = "in-place"
"""Forward and backward, the gradient over the logits where an implementation can do that."""
MODES = (FRESH, IN_PLACE)


@dataclass(frozen=True)
class Group:
    """Measurements that can be compared with one another: taken together, on the same data."""

    case: Case
    dtype: str
    mode: str

    def __str__(self) -> str:
        return f"{self.case.name} {self.case.shape} {self.dtype} {self.mode}"

    def as_json(self) -> dict[str, Any]:
        return {
            "case": self.case.name,
            "rows": self.case.rows,
            "classes": self.case.classes,
            "dtype": self.dtype,
            "mode": self.mode,
        }


class Problem:
    """The data of a group.

    Attributes:
        pristine: (rows, classes), never written.
        target: (rows), int64.
        logits: a copy of pristine that requires a gradient and may be overwritten.
    """

    def __init__(self, group: Group) -> None:
        generator = torch.Generator().manual_seed(0)
        shape = (group.case.rows, group.case.classes)
        self.in_place = group.mode == IN_PLACE
        self.pristine = torch.randn(shape, generator=generator).to(DTYPES[group.dtype])
        self.target = torch.randint(group.case.classes, shape[:1], generator=generator)
        self._storage = torch.empty_like(self.pristine)
        self.logits: Tensor
        self.restore()

    def restore(self) -> None:
        """Write the logits anew, as a model's last layer would have done just before the loss."""
        self.logits = self._storage.copy_(self.pristine).detach().requires_grad_()
