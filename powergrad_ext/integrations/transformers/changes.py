"""What a model does to its logits before their loss: an offset, a scale, a cap."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from transformers import PreTrainedModel

from powergrad_ext.integrations.transformers.labels import forward_code

# Attributes of configurations by which models scale and cap their logits, and the power of the
# scale. They apply only where the model's forward names them: a multimodal model may omit what its
# language model does.
SCALES = {"logit_scale": 1, "lm_head_multiplier": 1, "output_multiplier": 1, "logits_scaling": -1}
CAPS = ("final_logit_softcapping", "logits_soft_cap")
# HyperCLOVA X multiplies where Granite divides; MiniCPM3 divides the layer's input.
POWERS = {("hyperclovax", "logits_scaling"): 1, ("minicpm3", "logits_scaling"): 0}


@dataclass(frozen=True)
class Changes:
    """``softcap * tanh(scale * (z + offset) / softcap)`` of the layer's output z.

    Operations are recorded in order: those before tanh change `scale`; tanh sets `softcap` to 1,
    and those after it multiply `softcap`.
    """

    has_offset: bool = False
    scale: float = 1.0
    """Before tanh if there is one: scale / softcap as linear_cross_entropy has it."""
    softcap: float | None = None

    def times(self, factor: float) -> Changes:
        if self.softcap is None:
            return replace(self, scale=self.scale * factor)
        return replace(self, softcap=self.softcap * factor)

    def capped(self) -> Changes | None:
        return replace(self, softcap=1.0) if self.softcap is None else None

    def offset(self) -> Changes | None:
        return replace(self, has_offset=True) if self == Changes() else None

    def are_close_to(self, other: Changes) -> bool:
        """But for the rounding of a few Python floats."""
        return (
            self.has_offset == other.has_offset
            and _are_close(self.scale, other.scale)
            and (self.softcap is None) == (other.softcap is None)
            and _are_close(self.softcap or 1.0, other.softcap or 1.0)
        )

    def options(self) -> dict[str, Any]:
        """Of linear_cross_entropy, except the offset."""
        if self.softcap is None:
            return {"logit_scale": self.scale}
        return {"logit_scale": self.scale * self.softcap, "softcap": self.softcap}

    def __str__(self) -> str:
        z = "(z + offset)" if self.has_offset else "z"
        z = z if self.scale == 1.0 else f"{self.scale:g} * {z}"
        return z if self.softcap is None else f"{self.softcap:g} * tanh({z})"


def _are_close(one: float, other: float) -> bool:
    """As math.isclose, which compilers do not trace of inputs of their graphs."""
    return abs(one - other) <= 1e-9 * abs(other)


def planned_changes(model: PreTrainedModel) -> Changes:
    """The changes that the configuration asks for, if the model's forward reads them from it."""
    code = forward_code(type(model))
    strings = tuple(each for each in code.co_consts if isinstance(each, str))
    named = {*code.co_names, *strings}  # PaliGemma's is an argument of getattr
    config = model.config.get_text_config(decoder=True)
    changes = Changes()
    for name, power in SCALES.items():
        scale = getattr(config, name, None) if name in named else None
        if scale is not None:
            changes = changes.times(scale ** POWERS.get((config.model_type, name), power))
    for name in CAPS:
        cap = getattr(config, name, None) if name in named else None
        if cap is not None:
            changes = replace(changes, scale=changes.scale / cap, softcap=float(cap))
    return changes
