"""What a fused model returns: its own output, without logits, with metrics where asked for."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

from transformers.utils import ModelOutput

from powergrad_ext._constant import assume_constant_result
from powergrad_ext.integrations.transformers.call import FusedCall
from powergrad_ext.integrations.transformers.logits import FusedLogits


def without_logits(output: Any) -> Any:
    if isinstance(output, tuple):
        return tuple(None if isinstance(each, FusedLogits) else each for each in output)
    for name, value in list(output.items()):
        if isinstance(value, FusedLogits):
            output[name] = None
    return output


def with_metrics(output: ModelOutput, call: FusedCall) -> ModelOutput:
    """The output with the call's sum of losses, its labels and its rows' metrics."""
    return _class_with_metrics(type(output))(**output, **call.metrics())


@assume_constant_result  # compilers do not trace the making of a class
def _class_with_metrics(base: Any) -> type[ModelOutput]:
    return _made_class(base)


@functools.cache
def _made_class(base: type[ModelOutput]) -> type[ModelOutput]:
    """A subclass with fields for the metrics: FSDP rebuilds an output from its fields alone."""

    def reduce(self: ModelOutput) -> tuple[Any, ...]:
        return _with_fields, (base, dict(self))

    fields = [(name, Any, None) for name in ("loss_sum", "aligned_labels", "row_metrics")]
    return dataclasses.make_dataclass(
        base.__name__, fields, bases=(base,), namespace={"__reduce__": reduce}
    )


def _with_fields(base: type[ModelOutput], fields: dict[str, Any]) -> ModelOutput:
    return _class_with_metrics(base)(**fields)
