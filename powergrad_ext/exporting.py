"""How the rules for ONNX are registered.

torch.onnx.export(dynamo=True) meets the raw operators of forward and traces them again. A rule
gives their values in operators of torch's; what only backward reads is left empty. Rules are not in
torch's table of decompositions: that is global, and Inductor refuses an operator that it finds
there where the environment has CI.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch.fx.experimental.proxy_tensor import ProxyTorchDispatchMode


def register_onnx(operator: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Registers a rule, which returns NotImplemented where the operator has to stay.

    Imports torch.onnx only where an export asks: it takes longer than the rest of the package.
    """

    def register(rule: Callable[..., Any]) -> Callable[..., Any]:
        def trace(mode: Any, op: Any, types: Any, args: Any, kwargs: Any) -> Any:
            if "torch.onnx" in sys.modules and torch.onnx.is_in_onnx_export():
                with mode:
                    outputs = rule(*args, **kwargs)
                if outputs is not NotImplemented:
                    return outputs
            return mode.__torch_dispatch__(op, types, args, kwargs)

        torch.library.register_torch_dispatch(operator, ProxyTorchDispatchMode, trace)
        return rule

    return register
