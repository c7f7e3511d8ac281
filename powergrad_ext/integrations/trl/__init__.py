"""PGT and the fused last layer for TRL.

============================================ ===========================================
what is trained                              class or function
============================================ ===========================================
supervised fine-tuning                       PowerGradSFTTrainer
losses of log-probabilities (DPO, GRPO, ...) selective_log_softmax, in a trainer's own loss
============================================ ===========================================
"""

from powergrad_ext.integrations.trl.log_probs import selective_log_softmax
from powergrad_ext.integrations.trl.sft import PowerGradSFTTrainer

__all__ = ["PowerGradSFTTrainer", "selective_log_softmax"]
