"""Softmax cross-entropy with the PowerGrad Transform (arXiv 2111.12495), compiled.

The value is ordinary cross-entropy; in backward the predicted probabilities are raised to the power
alpha and renormalised before the target is subtracted: ``dz = softmax(alpha * z) - y``.
"""

from powergrad_ext import _native as _native  # first: it says what is missing
from powergrad_ext import calibration, distributed, reference

# Functions take the names of the modules that define them. Within the package these are imported
# by their full path, `from powergrad_ext.cross_entropy import cross_entropy`.
from powergrad_ext.cross_entropy import PowerGradCrossEntropyLoss, cross_entropy
from powergrad_ext.ctc_loss import ctc_loss
from powergrad_ext.linear_cross_entropy import (
    PowerGradLinearCrossEntropyLoss,
    linear_cross_entropy,
)
from powergrad_ext.log_softmax import PowerGradLogSoftmax, log_softmax
from powergrad_ext.metrics import RowMetrics
from powergrad_ext.schedule import AlphaSchedule

__version__ = "0.1.0"

__all__ = [
    "AlphaSchedule",
    "PowerGradCrossEntropyLoss",
    "PowerGradLinearCrossEntropyLoss",
    "PowerGradLogSoftmax",
    "RowMetrics",
    "calibration",
    "cross_entropy",
    "ctc_loss",
    "distributed",
    "linear_cross_entropy",
    "log_softmax",
    "reference",
]
