"""PGT and the fused last layer for TRL."""

from powergrad_ext.integrations.trl.log_probs import selective_log_softmax

__all__ = ["selective_log_softmax"]
