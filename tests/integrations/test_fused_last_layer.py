"""fuse_last_layer: what causal_lm_loss gives, and logits only where somebody looks at them."""

from __future__ import annotations

import pytest
import torch
from frameworks import framework

transformers = framework("transformers")

from test_transformers import (  # noqa: E402
    VOCABULARY,
    assert_same,
    batch,
    fused_model,
    gradients,
    language_model,
    sequences,
    weights_after_training,
    with_loss_function,
)

from powergrad_ext.integrations.transformers import fuse_last_layer  # noqa: E402


@pytest.mark.parametrize("count", [None, 17], ids=["mean", "num_items_in_batch"])
@pytest.mark.parametrize("shifted", [False, True])
def test_loss_and_gradients(shifted, count):
    given = batch()
    if count is not None:
        given["num_items_in_batch"] = torch.tensor(count)
    if shifted:
        given["shift_labels"] = torch.roll(given["labels"], -1, 1)
    model, plain = fused_model(), with_loss_function(0.3).train()
    assert_same(gradients(model, **given), gradients(plain, **given))


def test_evaluation_and_generation_have_their_logits():
    tokens, labels = sequences()
    model, plain = fused_model(), with_loss_function(0.3)
    assert model(input_ids=tokens, labels=labels).logits is None
    with torch.no_grad():
        torch.testing.assert_close(model(input_ids=tokens).logits, plain(input_ids=tokens).logits)
        model.eval()
        found, right = (each(input_ids=tokens, labels=labels) for each in (model, plain))
    torch.testing.assert_close((found.loss, found.logits), (right.loss, right.logits))
    assert model.generate(tokens[:1, :4], max_new_tokens=3).shape == (1, 7)


def test_a_model_that_is_trained_in_evaluation_mode():
    """For its dropout's sake: the gradient is PGT's there too."""
    found, right = (
        gradients(model.eval(), **batch()) for model in (fused_model(), with_loss_function(0.3))
    )
    assert_same(found, right)


def test_no_logits_are_made():
    """Of more than seven rows, that is, by the model's own operators."""
    tokens, labels = sequences()
    model = fused_model()
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
    assert fused_model().state_dict().keys() == language_model().state_dict().keys()


def test_bad_arguments():
    model = language_model()
    for options in ({"alpha": 0.0}, {"label_smoothing": 1.5}, {"label_smoothing": -0.1}):
        (name,) = options
        with pytest.raises(ValueError, match=name):
            fuse_last_layer(model, **options)
    assert type(model) is transformers.LlamaForCausalLM
