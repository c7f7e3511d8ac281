"""A mark for functions that compilers call while they trace."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

Function = TypeVar("Function", bound=Callable[..., Any])


def assume_constant_result(function: Function) -> Function:
    """As torch.compiler.assume_constant_result, which imports torch._dynamo: that takes seconds.

    torch's decorator sets this attribute and does nothing else; a test compares the two.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function
