"""How alpha changes in training."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

SHAPES = ("linear", "cosine")


class AlphaSchedule:
    """A value of alpha for every step, in a tensor that is changed in place.

    Give :attr:`alpha` to a loss in place of a number and call :meth:`step` after each step of the
    optimizer. Compiled code sees the change without compiling again; CUDA graphs do if the tensor
    lies on their device.

    Args:
        start: alpha at step 0, finite and > 0.
        end: alpha from step `steps` on; None: constant.
        steps: how many steps there are, at least 1; None: not known yet. Set ``steps`` before
            the first step then; the callbacks in :mod:`powergrad_ext.integrations` do.
        shape: how alpha changes from start to end, "linear" or "cosine" (half a period).
        hold: the share of the steps, in [0, 1), for which alpha stays at start.
        device: where the tensor lies.

    Attributes:
        alpha: float64, of shape (). The modules and functions read it whenever they are called.

    Raises:
        ValueError: an argument that is out of its range.
    """

    def __init__(
        self,
        start: float,
        end: float | None = None,
        steps: int | None = None,
        *,
        shape: str = "linear",
        hold: float = 0.0,
        device: torch.device | str | None = None,
    ) -> None:
        for name, value in (("start", start), ("end", end)):
            if value is not None and not 0.0 < value < math.inf:
                raise ValueError(f"{name} must be finite and greater than 0, got {value}")
        if shape not in SHAPES:
            raise ValueError(f"shape must be one of {', '.join(SHAPES)}, got {shape!r}")
        if not 0.0 <= hold < 1.0:
            raise ValueError(f"hold must be at least 0 and less than 1, got {hold}")
        self.start, self.end = start, start if end is None else end
        self.shape, self.hold = shape, hold
        self.steps_taken = 0
        with torch.inference_mode(False):  # a tensor made there could not be changed elsewhere
            self.alpha: Tensor = torch.tensor(start, dtype=torch.float64, device=device)
        self.steps = steps

    @property
    def steps(self) -> int | None:
        """How many steps there are; setting it sets alpha for the steps already taken."""
        return self._steps

    @steps.setter
    def steps(self, steps: int | None) -> None:
        if steps is not None and steps < 1:
            raise ValueError(f"steps must be at least 1, got {steps}")
        self._steps = steps
        if steps is not None:
            self.alpha.fill_(self.value(self.steps_taken))

    def value(self, step: int) -> float:
        """Alpha at a step, counted from 0.

        Raises:
            ValueError: alpha changes, and nobody has said over how many steps.
        """
        if self.start == self.end:
            return self.start
        if self.steps is None:
            raise ValueError("steps must be known before alpha can change, got None")
        progress = (step / self.steps - self.hold) / (1.0 - self.hold)
        progress = min(max(progress, 0.0), 1.0)
        if self.shape == "cosine":
            progress = 0.5 - 0.5 * math.cos(math.pi * progress)
        return (1.0 - progress) * self.start + progress * self.end

    def step(self, steps_taken: int | None = None) -> None:
        """Set alpha for the next step, or for the one after `steps_taken` steps."""
        self.steps_taken = self.steps_taken + 1 if steps_taken is None else steps_taken
        self.alpha.fill_(self.value(self.steps_taken))

    def state_dict(self) -> dict[str, Any]:
        """The number of steps taken; everything else is an argument of the constructor."""
        return {"steps_taken": self.steps_taken}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Set alpha to what it was when the state was saved, now or once :attr:`steps` is known."""
        if self.steps is None:
            self.steps_taken = state_dict["steps_taken"]
        else:
            self.step(state_dict["steps_taken"])

    def __repr__(self) -> str:
        return (
            f"AlphaSchedule({self.start:g}, {self.end:g}, {self.steps}, shape={self.shape!r}, "
            f"hold={self.hold:g})"
        )
