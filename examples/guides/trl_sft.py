"""Supervised fine-tuning with TRL: PGT, a fused last layer and TRL's metrics."""

import tempfile

import torch
from datasets import Dataset
from tokenizers import Tokenizer, models
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl import SFTConfig

from powergrad_ext.integrations.trl import PowerGradSFTTrainer

torch.manual_seed(0)
config = LlamaConfig(
    vocab_size=1000,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=1,
    num_attention_heads=4,
)
model = LlamaForCausalLM(config)

tokens = torch.randint(2, 1000, (16, 24)).tolist()
words = Tokenizer(models.WordLevel({"<pad>": 0, "<eos>": 1}, unk_token="<pad>"))
tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<eos>")
with tempfile.TemporaryDirectory() as folder:
    arguments = SFTConfig(
        folder,
        max_steps=5,
        logging_steps=5,
        per_device_train_batch_size=4,
        bf16=False,
        dataset_kwargs={"skip_prepare_dataset": True},
        report_to=[],
        use_cpu=True,
    )
    trainer = PowerGradSFTTrainer(
        model,
        arguments,
        train_dataset=Dataset.from_dict({"input_ids": tokens, "labels": tokens}),
        processing_class=tokenizer,
        alpha=0.8,
    )
    trainer.train()
logged = trainer.state.log_history[0]
print(f"loss {logged['loss']:.3f}, entropy {logged['entropy']:.3f}")
