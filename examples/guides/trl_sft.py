"""Supervised fine-tuning with TRL: its trainer asks the model for the loss."""

import tempfile

import torch
from datasets import Dataset
from tokenizers import Tokenizer, models
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, Trainer
from trl import SFTConfig, SFTTrainer

from powergrad_ext.integrations.transformers import causal_lm_loss, set_loss_function


class PlainSFTTrainer(SFTTrainer):
    """TRL's trainer with the loss of the model in place of TRL's own."""

    compute_loss = Trainer.compute_loss


torch.manual_seed(0)
config = LlamaConfig(
    vocab_size=1000,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=1,
    num_attention_heads=4,
)
model = LlamaForCausalLM(config)
set_loss_function(model, causal_lm_loss(alpha=0.8))

tokens = torch.randint(2, 1000, (16, 24)).tolist()
words = Tokenizer(models.WordLevel({"<pad>": 0, "<eos>": 1}, unk_token="<pad>"))
tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<eos>")
with tempfile.TemporaryDirectory() as folder:
    arguments = SFTConfig(
        folder,
        max_steps=5,
        per_device_train_batch_size=4,
        bf16=False,
        dataset_kwargs={"skip_prepare_dataset": True},
        report_to=[],
        use_cpu=True,
    )
    trainer = PlainSFTTrainer(
        model,
        arguments,
        train_dataset=Dataset.from_dict({"input_ids": tokens, "labels": tokens}),
        processing_class=tokenizer,
    )
    result = trainer.train()
print(f"training loss {result.training_loss:.3f}")
