"""Fine-tune a small Llama with transformers' Trainer, without making its logits."""

import tempfile

import torch
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

from powergrad_ext.integrations.transformers import fuse_last_layer

torch.manual_seed(0)
config = LlamaConfig(
    vocab_size=1000,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
)
model = LlamaForCausalLM(config)
fuse_last_layer(model, alpha=0.8)

tokens = torch.randint(1000, (64, 32))
data = [{"input_ids": row, "labels": row} for row in tokens]
with tempfile.TemporaryDirectory() as folder:
    arguments = TrainingArguments(
        folder, max_steps=10, per_device_train_batch_size=8, report_to=[], use_cpu=True
    )
    result = Trainer(model, arguments, train_dataset=data).train()
print(f"training loss {result.training_loss:.3f}")

model.eval()  # evaluation and generation are as before
prompt = tokens[:1, :4]
print(model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=4).tolist())
