"""PGT and the fused last layer for TRL.

============================================ ===========================================
what is trained                              class or function
============================================ ===========================================
supervised fine-tuning                       PowerGradSFTTrainer
losses of log-probabilities (DPO, GRPO, ...) selective_log_softmax, in a trainer's own loss
============================================ ===========================================
"""

from typing import TYPE_CHECKING, Any

from powergrad_ext.integrations.trl.log_probs import selective_log_softmax

if TYPE_CHECKING:
    from powergrad_ext.integrations.trl.sft import PowerGradSFTTrainer

__all__ = ["PowerGradSFTTrainer", "selective_log_softmax"]


def __getattr__(name: str) -> Any:
    """Only the trainer needs TRL."""
    if name != "PowerGradSFTTrainer":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from powergrad_ext.integrations.trl.sft import PowerGradSFTTrainer

    return PowerGradSFTTrainer
