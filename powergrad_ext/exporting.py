"""How the rules for ONNX are registered.

torch.onnx.export(dynamo=True) meets the raw operators of forward and traces them again. A rule
gives their values in operators of torch's; what only backward reads is left empty. Rules are not in
torch's table of decompositions: that is global, and Inductor refuses an operator that it finds
there where the environment has CI.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch.fx.experimental.proxy_tensor import ProxyTorchDispatchMode


def is_exporting() -> bool:
    """Whether torch.onnx.export is running.

    Where it traces for TorchScript (dynamo=False), which torch._C._is_tracing() tells, losses are
    traced as torch's operators.
    """
    return "torch.onnx" in sys.modules and torch.onnx.is_in_onnx_export()


def register_onnx(operator: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Registers a rule, which returns NotImplemented where the operator has to stay.

    Imports torch.onnx only where an export asks: it takes longer than the rest of the package.
    """

    def register(rule: Callable[..., Any]) -> Callable[..., Any]:
        def trace(mode: Any, op: Any, types: Any, args: Any, kwargs: Any) -> Any:
            if is_exporting():
                with mode:
                    outputs = rule(*args, **kwargs)
                if outputs is not NotImplemented:
                    return outputs
            return mode.__torch_dispatch__(op, types, args, kwargs)

        torch.library.register_torch_dispatch(operator, ProxyTorchDispatchMode, trace)
        return rule

    return register


@functools.cache
def refuse_scripts(operator: str) -> None:
    """Makes torch.onnx.export(dynamo=False) refuse scripts that call an operator.

    Called where a module of ours is scripted: exporting the script later calls no Python of ours.
    """
    import torch.onnx

    def refuse(*arguments: Any) -> Any:
        raise RuntimeError(
            f"torch.onnx.export(dynamo=False) of a script that calls {operator}() is not supported,"
            " whatever its options: export the module itself, not torch.jit.script() of it, or use"
            " dynamo=True"
        )

    torch.onnx.register_custom_op_symbolic(  # type: ignore[attr-defined]
        f"powergrad::{operator}", refuse, 1
    )


def refuse_metrics(module: Any) -> None:
    """Of a module that is being scripted: its forward returns a tensor."""
    if module.return_metrics:
        raise RuntimeError(
            f"{type(module).__name__}: return_metrics must be False under torch.jit.script, got "
            "True"
        )
