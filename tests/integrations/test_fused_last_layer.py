"""fuse_last_layer: what causal_lm_loss gives, and logits only where somebody looks at them."""

from __future__ import annotations

import copy

import pytest
import torch
from frameworks import framework

transformers = framework("transformers")

from test_transformers import (  # noqa: E402
    VOCABULARY,
    assert_same,
    language_model,
    sequences,
    weights_after_training,
    with_loss_function,
)

from powergrad_ext.integrations.transformers import (  # noqa: E402
    causal_lm_loss,
    fuse_last_layer,
)


def fused_model(**options):
    model = language_model()
    fuse_last_layer(model, alpha=0.3, chunk_rows=7, **options)
    return model


def gradients(model, **batch):
    model.zero_grad()
    loss = model(**batch).loss
    loss.backward()
    return loss.detach(), [parameter.grad.clone() for parameter in model.parameters()]


@pytest.mark.parametrize("count", [None, 17], ids=["mean", "num_items_in_batch"])
@pytest.mark.parametrize("shifted", [False, True])
def test_loss_and_gradients(shifted, count):
    tokens, labels = sequences()
    batch = {"input_ids": tokens, "labels": labels}
    if count is not None:
        batch["num_items_in_batch"] = torch.tensor(count)
    if shifted:
        batch["shift_labels"] = torch.roll(labels, -1, 1)
    model, plain = fused_model().train(), with_loss_function(0.3).train()
    assert_same(gradients(model, **batch), gradients(plain, **batch))


def test_only_training_with_labels_goes_without_logits():
    tokens, labels = sequences()
    model, plain = fused_model(), with_loss_function(0.3)
    model.train()
    assert model(input_ids=tokens, labels=labels).logits is None
    torch.testing.assert_close(model(input_ids=tokens).logits, plain(input_ids=tokens).logits)
    model.eval()
    found, right = (each(input_ids=tokens, labels=labels) for each in (model, plain))
    torch.testing.assert_close((found.loss, found.logits), (right.loss, right.logits))
    assert model.generate(tokens[:1, :4], max_new_tokens=3).shape == (1, 7)


def test_no_logits_are_made():
    """Of more than seven rows, that is, by the model's own operators."""
    tokens, labels = sequences()
    model = fused_model().train()
    with torch.profiler.profile(record_shapes=True) as profile:
        model(input_ids=tokens, labels=labels).loss.backward()
    shapes = [shape for event in profile.events() for shape in event.input_shapes or []]
    assert [7, VOCABULARY] in shapes
    assert [tokens.numel(), VOCABULARY] not in shapes


def test_trainer(tmp_path):
    """Also accumulating: micro-batches of unequally many labels train as the whole batch does."""
    accumulate = {"batch_size": 1, "arguments": {"gradient_accumulation_steps": 4}}
    expected = weights_after_training(tmp_path, with_loss_function(0.3))
    assert_same(weights_after_training(tmp_path, fused_model()), expected)
    assert_same(weights_after_training(tmp_path, fused_model(), **accumulate), expected)


def test_state_dicts_are_the_models_own():
    model = fused_model()
    assert model.state_dict().keys() == language_model().state_dict().keys()


def test_a_model_that_changes_its_logits_is_refused():
    class Capped(transformers.LlamaForCausalLM):
        def forward(self, labels=None, **batch):
            hidden = self.model(**batch).last_hidden_state
            logits = 30.0 * torch.tanh(self.lm_head(hidden) / 30.0)
            return self.loss_function(logits, labels, self.vocab_size)

    model = Capped(language_model().config).train()
    fuse_last_layer(model)
    tokens, labels = sequences()
    with pytest.raises(RuntimeError, match="does not fit this model"):
        model(input_ids=tokens, labels=labels)
    plain = Capped(model.config).train()
    plain.load_state_dict(model.state_dict())
    plain.loss_function = causal_lm_loss()
    assert plain(input_ids=tokens, labels=labels).isfinite()


def test_errors():
    with pytest.raises(ValueError, match="alpha"):
        fuse_last_layer(language_model(), alpha=0.0)
    encoder = transformers.BertModel(
        transformers.BertConfig(
            vocab_size=9,
            hidden_size=8,
            num_hidden_layers=1,
            num_attention_heads=1,
            intermediate_size=8,
        )
    )
    with pytest.raises(TypeError, match=r"last layer must be a torch\.nn\.Linear, got None"):
        fuse_last_layer(encoder)


def test_a_copy_is_a_model_of_its_own():
    tokens, labels = sequences()
    model = fused_model().train()
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(2.0)
    right = with_loss_function(0.3).train()
    with torch.no_grad():
        for parameter in right.parameters():
            parameter.mul_(2.0)
    batch = {"input_ids": tokens, "labels": labels}
    assert_same(gradients(other, **batch), gradients(right, **batch))
