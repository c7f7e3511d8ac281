"""The loss for Hugging Face transformers, as its models and its Trainer call one.

===================================== ==================== ======================================
what is trained                        function             what it replaces
===================================== ==================== ======================================
a causal language model                set_loss_function    model.loss_function, logits as before
a language model, causal, masked or    fuse_last_layer      the last layer and the loss: no logits
encoder-decoder
anything with class labels             trainer_loss         Trainer(compute_loss_func=...)
===================================== ==================== ======================================

Label smoothing is an argument of each. ``TrainingArguments(label_smoothing_factor=...)`` takes the
labels away from the model, so that the first two are not asked for their loss, and warn.
``compute_loss_func`` takes precedence over it: AlphaCallback warns, as a loss function does not see
the Trainer's arguments.

Models whose forward never calls ``loss_function`` (BartForCausalLM, T5, XLNet, all masked language
models that make their own CrossEntropyLoss) are refused by ``set_loss_function``. Models whose
logits ``fuse_last_layer`` cannot make are refused when it is called, or at the first call with
labels: masks and slices of the logits. The guide has tables of what works with which model and with
which option of the Trainer.

TRL's SFTTrainer computes a loss of its own, and asks neither of the first two:
:class:`powergrad_ext.integrations.trl.PowerGradSFTTrainer` takes its place.
"""

from powergrad_ext.integrations.transformers.fused import fuse_last_layer, unfuse_last_layer
from powergrad_ext.integrations.transformers.labels import labels_are_shifted
from powergrad_ext.integrations.transformers.losses import (
    causal_lm_loss,
    set_loss_function,
    trainer_loss,
)
from powergrad_ext.integrations.transformers.schedule import AlphaCallback

__all__ = [
    "AlphaCallback",
    "causal_lm_loss",
    "fuse_last_layer",
    "labels_are_shifted",
    "set_loss_function",
    "trainer_loss",
    "unfuse_last_layer",
]
