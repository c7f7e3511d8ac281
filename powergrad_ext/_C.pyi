from torch import Tensor

def cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    ignore_index: int,
    reduction: str,
    label_smoothing: float,
    alpha: float | Tensor,
    inplace_backward: bool,
) -> Tensor: ...
def log_softmax(input: Tensor, dim: int, alpha: float | Tensor) -> Tensor: ...
def check_cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    ignore_index: int,
    reduction: str,
    label_smoothing: float,
    alpha: Tensor,
    classes_before: int = 0,
    classes_after: int = 0,
) -> None: ...
def check_linear_cross_entropy(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    linear_bias: Tensor | None,
    weight: Tensor | None,
    reduction: str,
    ignore_index: int,
    label_smoothing: float,
    alpha: Tensor,
    chunk_rows: int,
) -> None: ...
def check_log_softmax(input: Tensor, dim: int, alpha: Tensor) -> None: ...
def isa() -> str: ...
def set_isa(name: str) -> None: ...
def available_isas() -> list[str]: ...
def cuda_architectures() -> list[str]: ...
