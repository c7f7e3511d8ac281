"""Softmax cross-entropy with the PowerGrad Transform (arXiv 2111.12495), compiled.

The value is ordinary cross-entropy; in backward the predicted probabilities are raised to the power
alpha and renormalised before the target is subtracted: ``dz = softmax(alpha * z) - y``.
"""

from powergrad_ext import _native as _native  # first: it says what is missing
from powergrad_ext import calibration, distributed, reference
from powergrad_ext import flops as flops  # registers what FlopCounterMode counts
from powergrad_ext import onnx as onnx  # registers what exporters make of the operators
from powergrad_ext import vmap as vmap  # registers what happens under torch.vmap
from powergrad_ext.ctc import ctc_loss
from powergrad_ext.functional import cross_entropy, log_softmax
from powergrad_ext.linear import PowerGradLinearCrossEntropyLoss, linear_cross_entropy
from powergrad_ext.modules import PowerGradCrossEntropyLoss, PowerGradLogSoftmax
from powergrad_ext.schedule import AlphaSchedule

__version__ = "0.1.0"

__all__ = [
    "AlphaSchedule",
    "PowerGradCrossEntropyLoss",
    "PowerGradLinearCrossEntropyLoss",
    "PowerGradLogSoftmax",
    "calibration",
    "cross_entropy",
    "ctc_loss",
    "distributed",
    "linear_cross_entropy",
    "log_softmax",
    "reference",
]
