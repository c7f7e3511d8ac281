"""return_metrics of a fused model: what its logits would have said, from the pass of its loss."""

from __future__ import annotations

import pickle

import pytest
import torch
from frameworks import framework

framework("transformers")

from test_fused_families import batch_of, family  # noqa: E402

from powergrad_ext.integrations.transformers import (  # noqa: E402
    fuse_last_layer,
    labels_are_shifted,
    unfuse_last_layer,
)

NAMES = ["LlamaForCausalLM", "Gemma2ForCausalLM", "BartForConditionalGeneration"]


def right(model, batch):
    """From the logits of the model as it was."""
    labels = batch["labels"]
    with torch.no_grad():
        logits = model(**batch).logits.double()
    if labels_are_shifted(model):
        labels = torch.nn.functional.pad(labels, (0, 1), value=-100)[:, 1:]
    log_p = logits.log_softmax(-1)
    counts = labels != -100
    index = labels.where(counts, 0).unsqueeze(-1)
    log_prob = log_p.gather(-1, index).squeeze(-1)
    entropy = -(log_p.exp() * log_p).sum(-1)
    correct = logits.gather(-1, index).squeeze(-1) == logits.amax(-1)
    return labels, [each.where(counts, 0) for each in (log_prob, entropy)], correct & counts


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_metrics(name, training):
    model, batch = family(name), batch_of()
    labels, numbers, correct = right(model.eval(), batch)
    fuse_last_layer(model, alpha=0.4)
    model.train(training)
    with torch.set_grad_enabled(training):
        output = model(**batch, return_metrics=True)
        plain = model(**batch)
    torch.testing.assert_close(output.loss, plain.loss)
    assert output.logits is None
    assert torch.equal(output.aligned_labels, labels)
    found = output.row_metrics
    torch.testing.assert_close(found.log_prob.double(), numbers[0], rtol=2e-5, atol=1e-6)
    torch.testing.assert_close(found.entropy.double(), numbers[1], rtol=2e-5, atol=1e-6)
    assert torch.equal(found.correct, correct)
    torch.testing.assert_close(output.loss_sum.detach().double(), -numbers[0].sum())
    assert not found.log_prob.requires_grad
    assert not found.entropy.requires_grad


def test_compiled_and_pickled():
    model, batch = family("LlamaForCausalLM").train(), batch_of()
    fuse_last_layer(model, alpha=0.4)
    eager = model(**batch, return_metrics=True)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    found = compiled(**batch, return_metrics=True)
    torch.testing.assert_close((found.loss, *found.row_metrics), (eager.loss, *eager.row_metrics))
    with torch.no_grad():
        saved = model(**batch, return_metrics=True)
    again = pickle.loads(pickle.dumps(saved))
    assert type(again) is type(saved)
    assert torch.equal(again.loss_sum, saved.loss_sum)
    assert torch.equal(again.row_metrics.entropy, saved.row_metrics.entropy)


def test_compiled_one_after_the_other():
    """The compiler makes a number that differs an input of its graph."""
    torch.compiler.reset()
    batch = batch_of()
    for scale in (0.25, 0.5, 0.75):
        model = family("CohereForCausalLM", {"logit_scale": scale}).train()
        expected = model(**batch).loss
        fuse_last_layer(model, alpha=1.0)
        found = torch.compile(model, backend="aot_eager", fullgraph=True)(**batch).loss
        torch.testing.assert_close(found, expected)


def test_what_metrics_need():
    model, batch = family("LlamaForCausalLM").train(), batch_of()
    fuse_last_layer(model)
    with pytest.raises(ValueError, match="labels must be given where return_metrics is True"):
        model(**batch | {"labels": None}, return_metrics=True)
    with pytest.raises(ValueError, match="return_dict must be True where return_metrics is"):
        model(**batch, return_metrics=True, return_dict=False)
    unfuse_last_layer(model)
    assert "row_metrics" not in model(**batch)
