"""What is computed: shapes by name, types and modes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Case:
    """Logits of (rows, classes, *inner), as a task of that name would have them."""

    name: str
    rows: int
    classes: int
    inner: tuple[int, ...] = ()
    gpu_rows: int | None = None
    """On a GPU, where a step has more rows; None for as many."""


FEW_CLASSES = (2, 3, 5, 10, 20, 50, 100, 200)
SHORT_BATCHES = (8, 32, 256)

CASES = {
    case.name: case
    for case in (
        Case("tiny", 8, 10),
        Case("cifar10", 128, 10),
        Case("cifar100", 128, 100),
        Case("cifar100-large", 4096, 100),
        Case("imagenet", 256, 1000),
        Case("imagenet-large", 4096, 1000, gpu_rows=262144),
        Case("codebook", 2048, 4096, gpu_rows=65536),
        Case("imagenet21k", 1024, 21841, gpu_rows=12288),
        Case("llama2", 1024, 32000, gpu_rows=8192),
        Case("gpt2", 512, 50257, gpu_rows=5376),
        Case("llama3", 256, 128256, gpu_rows=2048),
        Case("qwen", 256, 151936, gpu_rows=2048),
        Case("gemma", 128, 262144, gpu_rows=1024),
        Case("binary", 65536, 2, gpu_rows=2**24),
        Case("few-classes", 65536, 10, gpu_rows=2**24),
        Case("vq-vae", 65536, 512, gpu_rows=2**19),
        Case("mask", 8, 2, (512, 512), gpu_rows=64),
        Case("cityscapes", 8, 19, (512, 512), gpu_rows=16),
        Case("pascal-voc", 8, 21, (513, 513), gpu_rows=16),
        Case("ade20k", 4, 150, (256, 256), gpu_rows=16),
        *(
            Case(f"{classes}-classes", 65536, classes)
            for classes in FEW_CLASSES
            if classes not in (2, 10)  # binary and few-classes
        ),
        *(
            Case(f"{rows}-rows-of-{classes}", rows, classes)
            for rows in SHORT_BATCHES
            for classes in FEW_CLASSES
            if (rows, classes) != (8, 10)  # tiny
        ),
    )
}
MANY_ROWS_OF_FEW = tuple(
    case.name for case in CASES.values() if case.rows == 65536 and case.classes in FEW_CLASSES
)
SHORT_BATCHES_OF_FEW = tuple(
    case.name
    for case in CASES.values()
    if case.rows in SHORT_BATCHES and case.classes in FEW_CLASSES and not case.inner
)
GPU_ONLY = ("vq-vae", "pascal-voc")
"""What is shared out in another way than its neighbours there, and on a CPU as they are."""
CPU_CASES = tuple(name for name in CASES if name not in GPU_ONLY)
DEFAULT_CASES = ("tiny", "cifar10", "imagenet", "imagenet-large", "llama2", "llama3")
QUICK_CASES = ("tiny", "imagenet", "llama2")

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float64": torch.float64,
}
DEFAULT_DTYPES = ("float32", "bfloat16")

FORWARD = "forward"
"""The loss alone, of logits that need no gradient: evaluation."""
BACKWARD = "backward"
"""The gradient alone, from a graph that has given it once before: nothing is left over from forward
that would make it free, so whoever computes it there shows its price here as well."""
FRESH = "forward+backward"
"""A training step's loss, the gradient in new memory: its page faults are part of the price."""
IN_PLACE = "in-place"
"""The same, the gradient over the logits where an implementation can do that."""
UNREDUCED = "none"
"""Forward and backward with reduction="none" and another grad_output for every row."""
PROBABILITIES = "probabilities"
"""Forward and backward with a probability for every class as the target."""
SMOOTHING = "smoothing"
"""Forward and backward with label smoothing."""
WEIGHTS = "weights"
"""Forward and backward with a weight for every class."""
LOG_SOFTMAX_FORWARD = "log-softmax-forward"
"""Log-softmax over the classes instead of a loss, of logits that need no gradient."""
LOG_SOFTMAX_BACKWARD = "log-softmax-backward"
"""Its gradient alone, with another grad_output for every log-probability."""
LOG_SOFTMAX = "log-softmax"
"""Both of it."""

LEAST_TRAFFIC = {
    FORWARD: 1,
    BACKWARD: 2,
    FRESH: 2,
    IN_PLACE: 3,
    UNREDUCED: 3,
    PROBABILITIES: 3,
    SMOOTHING: 2,
    WEIGHTS: 2,
    LOG_SOFTMAX_FORWARD: 2,
    LOG_SOFTMAX_BACKWARD: 3,
    LOG_SOFTMAX: 5,
}
"""What a mode has to move through memory, in units of the logits' size.

A step reads logits (and probabilities) once and writes a gradient once. Where forward must not
write the gradient yet, backward reads the logits again. Log-softmax also writes its output in
forward, and backward reads as large a grad_output: for PGT 2 and then 3, the logits once
more among them (the ordinary one can read its output instead, which is as large).
"""
MODES = tuple(LEAST_TRAFFIC)
OF_LOG_SOFTMAX = (LOG_SOFTMAX_FORWARD, LOG_SOFTMAX_BACKWARD, LOG_SOFTMAX)
OF_A_LOSS = tuple(mode for mode in MODES if mode not in OF_LOG_SOFTMAX)
FORWARD_ALONE = (FORWARD, LOG_SOFTMAX_FORWARD)
BACKWARD_ALONE = (BACKWARD, LOG_SOFTMAX_BACKWARD)
DEFAULT_MODES = (FRESH, IN_PLACE)

SMALL_ON_GPU = ("tiny", "imagenet")
"""What does not fill the device."""
ROWS_ON_GPU = ("imagenet-large", "codebook", "llama2", "gpt2", "llama3", "gemma")
FEW_ON_GPU = ("binary", "few-classes", "vq-vae", "mask", "cityscapes", "pascal-voc", "ade20k")
"""Few classes, or a stride between them."""
OPTIONS_ON_GPU = ("imagenet-large", "llama2")
"""Rows that several of a block share, and one to a block: enough to tell what an option costs."""
GPU_CASES = {
    FRESH: (*SMALL_ON_GPU, *ROWS_ON_GPU, *FEW_ON_GPU),
    FORWARD: ROWS_ON_GPU,
    BACKWARD: ROWS_ON_GPU,
    PROBABILITIES: OPTIONS_ON_GPU,
    SMOOTHING: OPTIONS_ON_GPU,
    WEIGHTS: OPTIONS_ON_GPU,
    LOG_SOFTMAX_FORWARD: OPTIONS_ON_GPU,
    LOG_SOFTMAX_BACKWARD: OPTIONS_ON_GPU,
}
"""What GPU requirements speak of and `--gpu` measures: each mode where it has something to show."""
COMPILED_ON_GPU = ("imagenet-large", "llama2", "gpt2", "llama3")
"""Where steps are compared also with those that compile for each shape and type, for seconds."""


@dataclass(frozen=True)
class Group:
    """Measurements that can be compared with one another: taken together, on the same data."""

    case: Case
    dtype: str
    mode: str
    device: str = "cpu"

    def __str__(self) -> str:
        return f"{self.case.name} {self.size} {self.dtype} {self.mode}"

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the logits: (rows, classes, *inner)."""
        gpu_rows = self.case.gpu_rows if self.device == "cuda" else None
        return (gpu_rows or self.case.rows, self.case.classes, *self.case.inner)

    @property
    def size(self) -> str:
        """The shape, to be read."""
        return " x ".join(map(str, self.shape))

    @property
    def logits_bytes(self) -> int:
        return torch.Size(self.shape).numel() * DTYPES[self.dtype].itemsize

    @property
    def least_bytes(self) -> int:
        """What has to be moved through memory, whoever computes it."""
        return LEAST_TRAFFIC[self.mode] * self.logits_bytes

    def as_json(self) -> dict[str, Any]:
        return {
            "case": self.case.name,
            "rows": self.shape[0],
            "classes": self.case.classes,
            "inner": self.case.inner,
            "dtype": self.dtype,
            "mode": self.mode,
            "device": self.device,
        }

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> Group:
        """The group that a record of a results file is about, also of a case not known here."""
        case = CASES.get(record["case"]) or Case(
            record["case"], record["rows"], record["classes"], tuple(record["inner"])
        )
        return cls(case, record["dtype"], record["mode"], record["device"])
