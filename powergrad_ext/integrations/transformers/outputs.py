"""What a fused model returns: its own output, without logits."""

from __future__ import annotations

from typing import Any

from powergrad_ext.integrations.transformers.logits import FusedLogits


def without_logits(output: Any) -> Any:
    if isinstance(output, tuple):
        return tuple(None if isinstance(each, FusedLogits) else each for each in output)
    for name, value in list(output.items()):
        if isinstance(value, FusedLogits):
            output[name] = None
    return output
