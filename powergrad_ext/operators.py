"""The sizes and types of what the raw operators return (csrc/powergrad.h, csrc/shards.h)."""

from __future__ import annotations

import torch
from torch import Tensor

HALF_DTYPES = (torch.float16, torch.bfloat16)

#: Rows of the statistics tensor: maximum, alpha sum, target weight.
CROSS_ENTROPY_STATISTICS = 3
#: Shard statistics of a row, which a shard of the classes sends to the others.
SHARD_STATISTICS = 5
#: And where metrics are asked for.
SHARD_STATISTICS_WITH_METRICS = 7


def accumulate_dtype(input: Tensor) -> torch.dtype:
    """Of losses and statistics."""
    return torch.float64 if input.dtype == torch.float64 else torch.float32
