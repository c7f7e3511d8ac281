"""TRL's SFTTrainer, which computes its own loss unless it is told not to."""

from __future__ import annotations

import pytest
from frameworks import framework

framework("trl")

from datasets import Dataset  # noqa: E402
from test_transformers import assert_same, language_model, sequences  # noqa: E402
from tokenizers import Tokenizer, models  # noqa: E402
from transformers import PreTrainedTokenizerFast, Trainer  # noqa: E402
from trl import SFTConfig, SFTTrainer  # noqa: E402

from powergrad_ext.integrations.transformers import (  # noqa: E402
    causal_lm_loss,
    fuse_last_layer,
    set_loss_function,
    trainer_loss,
)


class PlainSFTTrainer(SFTTrainer):
    """Asks the model for its loss."""

    compute_loss = Trainer.compute_loss


def sft_parts(folder):
    """A model, its data, made up and tokenised, and all else that an SFTTrainer asks for."""
    words = Tokenizer(models.WordLevel({"<pad>": 0, "<eos>": 1}, unk_token="<pad>"))
    tokens, labels = sequences()
    arguments = SFTConfig(
        output_dir=str(folder),
        max_steps=2,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        learning_rate=0.5,
        optim="sgd",
        max_grad_norm=0.0,
        bf16=False,
        dataset_kwargs={"skip_prepare_dataset": True},
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        save_strategy="no",
    )
    return {
        "model": language_model(),
        "arguments": arguments,
        "data": Dataset.from_dict({"input_ids": tokens.tolist(), "labels": labels.tolist()}),
        "tokenizer": PreTrainedTokenizerFast(
            tokenizer_object=words, pad_token="<pad>", eos_token="<eos>"
        ),
    }


def weights_after_sft(folder, trainer=SFTTrainer, prepare=None, **options):
    parts = sft_parts(folder)
    model = parts["model"]
    if prepare is not None:
        prepare(model)
    trainer(
        model,
        parts["arguments"],
        train_dataset=parts["data"],
        processing_class=parts["tokenizer"],
        **options,
    ).train()
    return [parameter.detach() for parameter in model.parameters()]


@pytest.mark.filterwarnings("ignore:`compute_loss_func` is deprecated")
def test_three_ways_to_our_loss(tmp_path):
    librarys = weights_after_sft(tmp_path)
    assert_same(weights_after_sft(tmp_path, compute_loss_func=trainer_loss(1.0)), librarys)
    ours = weights_after_sft(tmp_path, compute_loss_func=trainer_loss(0.3))
    for prepare in (
        lambda model: set_loss_function(model, causal_lm_loss(0.3)),
        lambda model: fuse_last_layer(model, 0.3),
    ):
        assert_same(weights_after_sft(tmp_path, PlainSFTTrainer, prepare), ours)
    with pytest.raises(AssertionError):
        assert_same(ours, librarys)
