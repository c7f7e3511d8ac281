"""transformers: the library's own loss at alpha 1, the identity in float64 at any other alpha."""

from __future__ import annotations

import pickle

import pytest
import torch
import torch.nn.functional as F
from frameworks import framework
from torch.utils._python_dispatch import TorchDispatchMode

transformers = framework("transformers")

from transformers import Trainer, TrainingArguments  # noqa: E402
from transformers.loss.loss_utils import ForCausalLMLoss  # noqa: E402

import powergrad_ext as pg  # noqa: E402
from powergrad_ext.integrations.transformers import (  # noqa: E402
    AlphaCallback,
    causal_lm_loss,
    fuse_last_layer,
    trainer_loss,
)

VOCABULARY = 50
TOLERANCES = {
    torch.float32: {"rtol": 1e-5, "atol": 1e-7},
    torch.bfloat16: {"rtol": 2**-7, "atol": 1e-6},
    torch.float16: {"rtol": 2**-10, "atol": 1e-6},
}


def language_model(seed=0):
    torch.manual_seed(seed)
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=32,
    )
    return transformers.LlamaForCausalLM(config)


def sequences(count=4, length=11, seed=1):
    """Tokens and labels; rows are padded to different lengths, whose labels are ignored."""
    random = torch.Generator().manual_seed(seed)
    tokens = torch.randint(VOCABULARY, (count, length), generator=random)
    labels = tokens.clone()
    for row in range(count):
        labels[row, length - 2 * row :] = -100
    labels[0, 3] = -100
    return tokens, labels


def batch():
    tokens, labels = sequences()
    return {"input_ids": tokens, "labels": labels}


def fused_model(alpha=0.3):
    model = language_model().train()
    fuse_last_layer(model, alpha=alpha, chunk_rows=7)
    return model


def gradients(model, is_fused=None, **given):
    """The loss and all gradients; a fused model returns no logits."""
    model.zero_grad()
    output = model(**given)
    assert is_fused is None or (output.logits is None) is is_fused
    output.loss.backward()
    return output.loss.detach(), [each.grad for each in model.parameters() if each.requires_grad]


def next_token_identity(logits, labels, count=None, alpha=0.3, ignore_index=-100):
    """What PGT differentiates, in float64: ordinary cross-entropy of alpha z, over alpha."""
    z = alpha * logits.double()[..., :-1, :].flatten(0, -2)
    reduction = "mean" if count is None else "sum"
    aligned = labels[..., 1:].flatten()
    loss = F.cross_entropy(z, aligned, ignore_index=ignore_index, reduction=reduction) / alpha
    return loss if count is None else loss / count


def gradient(function, logits, grad_output=-1.7):
    logits = logits.detach().requires_grad_()
    return torch.autograd.grad(grad_output * function(logits), logits)[0]


@pytest.fixture(params=TOLERANCES, ids=lambda dtype: str(dtype).removeprefix("torch."))
def logits(request):
    random = torch.Generator().manual_seed(2)
    return (3 * torch.randn(4, 11, VOCABULARY, generator=random)).to(request.param)


counts = pytest.mark.parametrize(
    "count", [None, 37, torch.tensor(37)], ids=["mean", "int", "tensor"]
)


@counts
def test_causal_lm_loss_is_the_librarys(logits, count):
    _, labels = sequences()
    ours = causal_lm_loss(alpha=1.0)
    torch.testing.assert_close(
        ours(logits, labels, VOCABULARY, count), ForCausalLMLoss(logits, labels, VOCABULARY, count)
    )
    shifted, elsewhere = labels.roll(-1, 1), labels.where(labels != -100, 7)
    for options in (
        {"labels": labels, "ignore_index": 3},
        {"labels": None, "shift_labels": shifted},
        {"labels": elsewhere, "ignore_index": 7, "something_else": 1},
    ):
        options |= {"num_items_in_batch": count, "vocab_size": VOCABULARY}
        if options.get("ignore_index") == 3:
            options["labels"] = labels.where(labels != -100, 3)
        torch.testing.assert_close(
            ours(logits=logits, **options), ForCausalLMLoss(logits=logits, **options)
        )


@counts
def test_the_gradient_is_the_transforms(logits, count):
    _, labels = sequences()
    ours = gradient(
        lambda z: causal_lm_loss(alpha=0.3)(z, labels, VOCABULARY, num_items_in_batch=count), logits
    )
    expected = gradient(lambda z: next_token_identity(z, labels, count), logits.double())
    assert ours.dtype == logits.dtype
    torch.testing.assert_close(ours, expected.to(logits.dtype), **TOLERANCES[logits.dtype])
    assert not ours[:, -1].any(), "nothing comes after the last token"


class LargeFloats(TorchDispatchMode):
    """Collects the sizes of float32 tensors that operators return."""

    def __init__(self):
        super().__init__()
        self.largest = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, torch.Tensor) and tensor.dtype == torch.float32:
                self.largest = max(self.largest, tensor.numel())
        return result


@pytest.mark.parametrize("ours", [True, False])
def test_half_precision_logits_are_not_copied_to_float32(ours):
    _, labels = sequences()
    logits = torch.randn(4, 11, VOCABULARY, dtype=torch.bfloat16)
    loss = causal_lm_loss() if ours else ForCausalLMLoss
    with LargeFloats() as seen:
        gradient(lambda z: loss(z, labels, VOCABULARY), logits)
    assert (seen.largest < logits.numel()) == ours


@pytest.mark.parametrize("alpha", [1.0, 0.3])
@pytest.mark.parametrize("padding_side", ["left", "right"])
def test_a_model_with_our_loss(alpha, padding_side):
    """Value by the library's own loss; gradients of all weights by the identity."""
    tokens, labels = sequences()
    if padding_side == "left":
        labels = labels.flip(1)
    batch = {"input_ids": tokens, "attention_mask": (labels != -100).long(), "labels": labels}
    ours, librarys = language_model(), language_model()
    ours.loss_function = causal_lm_loss(alpha=alpha)
    found, expected = ours(**batch), librarys(**batch)
    torch.testing.assert_close(found.loss, expected.loss)

    found.loss.backward()
    next_token_identity(expected.logits, labels, alpha=alpha).backward()
    for mine, wanted in zip(ours.parameters(), librarys.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, wanted.grad, rtol=1e-4, atol=1e-6)


def test_a_compiled_loss():
    """With a schedule, whose alpha changes without another compilation."""
    _, labels = sequences()
    logits = torch.randn(4, 11, VOCABULARY)
    schedule = pg.AlphaSchedule(0.3, 1.0, steps=1)
    eager = causal_lm_loss(alpha=schedule.alpha)
    torch._dynamo.reset()
    compiled = torch.compile(eager, fullgraph=True, backend="aot_eager")
    for step in range(2):
        with torch._dynamo.config.patch(error_on_recompile=step > 0):
            found = gradient(lambda z: compiled(z, labels, VOCABULARY), logits)
        expected = gradient(lambda z: eager(z, labels, VOCABULARY), logits)
        torch.testing.assert_close(found, expected)
        schedule.step()


@pytest.mark.parametrize("make", [causal_lm_loss, trainer_loss])
def test_losses_can_be_pickled(make):
    assert pickle.loads(pickle.dumps(make(alpha=0.4))).keywords["options"]["alpha"] == 0.4


def weights_after_training(tmp_path, model, *, loss=None, batch_size=4, data=None, **options):
    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        max_steps=options.pop("max_steps", 2),
        per_device_train_batch_size=batch_size,
        learning_rate=0.5,
        optim="sgd",
        lr_scheduler_type="constant",
        max_grad_norm=0.0,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        save_strategy=options.pop("save_strategy", "no"),
        train_sampling_strategy="sequential",
        **options.pop("arguments", {}),
    )
    if data is None:
        tokens, labels = sequences(count=8)
        labels = torch.where(
            torch.arange(11) < torch.tensor([[10, 3]]).T.repeat(4, 1), labels, -100
        )
        data = [{"input_ids": t, "labels": y} for t, y in zip(tokens, labels, strict=True)]
    trainer = Trainer(
        model=model, args=arguments, train_dataset=data, compute_loss_func=loss, **options
    )
    trainer.train()
    return [parameter.detach() for parameter in trainer.model.parameters()]


def assert_same(ours, expected):
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-6)


def with_loss_function(alpha):
    model = language_model()
    model.loss_function = causal_lm_loss(alpha=alpha)
    return model


def test_gradient_accumulation(tmp_path):
    """Micro-batches of unequally many labels train as the whole batch does."""
    accumulate = {"batch_size": 1, "arguments": {"gradient_accumulation_steps": 4}}
    librarys = weights_after_training(tmp_path, language_model())
    assert_same(
        weights_after_training(tmp_path, language_model(), loss=trainer_loss(1.0)), librarys
    )
    whole = weights_after_training(tmp_path, language_model(), loss=trainer_loss(0.3))
    assert_same(
        weights_after_training(tmp_path, language_model(), loss=trainer_loss(0.3), **accumulate),
        whole,
    )
    assert_same(weights_after_training(tmp_path, with_loss_function(0.3), **accumulate), whole)
    assert any(not torch.allclose(a, b, rtol=1e-3) for a, b in zip(whole, librarys, strict=True))


def classifier(kind):
    torch.manual_seed(0)
    sizes = {
        "vocab_size": VOCABULARY,
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 24,
        "num_labels": 5,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }
    return getattr(transformers, f"BertFor{kind}")(transformers.BertConfig(**sizes))


@pytest.mark.parametrize("kind", ["SequenceClassification", "TokenClassification", "MaskedLM"])
def test_classifiers(tmp_path, kind):
    """Labels that stand where the logits stand; the model's own loss is the truth."""
    tokens, labels = sequences()
    if kind != "MaskedLM":
        labels = labels.where(labels == -100, labels % 5)
    labels = labels[:, 0] if kind == "SequenceClassification" else labels
    model = classifier(kind)
    outputs = model(input_ids=tokens, labels=labels)
    ours = trainer_loss(alpha=1.0)(outputs, labels, num_items_in_batch=None)
    torch.testing.assert_close(ours, outputs.loss)
    data = [{"input_ids": t, "labels": y} for t, y in zip(tokens, labels, strict=True)]
    assert_same(
        weights_after_training(tmp_path, classifier(kind), loss=trainer_loss(1.0), data=data),
        weights_after_training(tmp_path, classifier(kind), data=data),
    )


@pytest.mark.parametrize(
    "labels", [None, torch.rand(4), torch.rand(4, 5), torch.zeros(4, 2).long()]
)
def test_labels_that_are_no_class_indices_are_refused(labels):
    with pytest.raises(ValueError, match=r"labels must be class indices of shape \(4,\).*got"):
        trainer_loss()({"logits": torch.randn(4, 5)}, labels)


class Seen(transformers.TrainerCallback):
    """Writes down alpha at every step's end, and ends the training early."""

    def __init__(self, schedule, stop_after=None):
        self.schedule, self.stop_after, self.alphas = schedule, stop_after, []

    def on_step_end(self, args, state, control, **kwargs):
        self.alphas.append(self.schedule.alpha.item())
        control.should_training_stop = state.global_step == self.stop_after


def test_a_schedule_that_resumes(tmp_path):
    """Four steps that nobody interrupts, and two and two of another process's schedule."""

    def train(stop_after=None, resume=None):
        schedule = pg.AlphaSchedule(0.2, 1.0, shape="cosine")
        seen = Seen(schedule, stop_after)
        model = with_loss_function(schedule.alpha)
        trainer_options = {"callbacks": [AlphaCallback(schedule), seen], "save_strategy": "steps"}
        arguments = {"save_steps": 2}
        with pytest.MonkeyPatch.context() as patch:
            original = Trainer.train
            patch.setattr(Trainer, "train", lambda self: original(self, resume))
            weights = weights_after_training(
                tmp_path, model, max_steps=4, arguments=arguments, **trainer_options
            )
        return weights, seen.alphas

    whole, alphas = train()
    schedule = pg.AlphaSchedule(0.2, 1.0, 4, shape="cosine")
    assert alphas == [schedule.value(step) for step in range(4)]
    _, first = train(stop_after=2)
    weights, second = train(resume=str(tmp_path / "checkpoint-2"))
    assert first + second == alphas
    assert_same(weights, whole)
