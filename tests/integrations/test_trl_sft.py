"""PowerGradSFTTrainer: at alpha 1 what trl.SFTTrainer trains and logs; PGT at any other alpha."""

from __future__ import annotations

import pytest
import torch
from frameworks import framework

framework("trl")
peft = framework("peft")

import transformers  # noqa: E402
from datasets import Dataset  # noqa: E402
from test_transformers import VOCABULARY, language_model, next_token_identity  # noqa: E402
from tokenizers import Tokenizer, models, pre_tokenizers  # noqa: E402
from trl import SFTConfig, SFTTrainer  # noqa: E402

from powergrad_ext.integrations.transformers import (  # noqa: E402
    causal_lm_loss,
    fuse_last_layer,
    set_loss_function,
    trainer_loss,
)
from powergrad_ext.integrations.trl import PowerGradSFTTrainer  # noqa: E402

WORDS = [f"w{number}" for number in range(VOCABULARY - 4)]
TEMPLATE = (
    "{% for message in messages %}<{{ message['role'] }}> {% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] }} <eos>{% endgeneration %}{% else %}"
    "{{ message['content'] }}{% endif %} {% endfor %}"
)


def tokenizer():
    specials = ["<pad>", "<eos>", "<user>", "<assistant>"]
    numbers = {word: number for number, word in enumerate([*specials, *WORDS])}
    words = Tokenizer(models.WordLevel(numbers, unk_token="<pad>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made = transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", eos_token="<eos>"
    )
    made.chat_template = TEMPLATE
    return made


def text(row, length):
    return " ".join(WORDS[(7 * row + 3 * place) % len(WORDS)] for place in range(length))


def texts():
    return [{"text": text(row, 4 + 2 * row)} for row in range(5)]


def completions():
    return [{"prompt": text(row, 5), "completion": " " + text(row, 3 + row)} for row in range(5)]


def conversations():
    return [
        {
            "messages": [
                {"role": role, "content": text(row + turn, 2 + row)}
                for turn, role in enumerate(["user", "assistant"] * 2)
            ]
        }
        for row in range(4)
    ]


LORA = peft.LoraConfig(target_modules=["q_proj"], init_lora_weights=False)
WHOLE_HEAD = peft.LoraConfig(
    target_modules=["q_proj"], init_lora_weights=False, modules_to_save=["lm_head"]
)
PROMPT = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
# Rows of data, options of SFTConfig, options of the trainer.
SCENARIOS = {
    "language modelling": (texts, {}, {}),
    "completion-only": (completions, {}, {}),
    "whole completions": (completions, {"completion_only_loss": False}, {}),
    "assistant-only": (conversations, {"assistant_only_loss": True}, {}),
    "packed": (texts, {"packing": True, "max_length": 12}, {}),
    "wrapped": (texts, {"packing": True, "packing_strategy": "wrapped", "max_length": 12}, {}),
    "padding-free": (texts, {"padding_free": True, "max_length": None}, {}),
    "LoRA": (completions, {}, {"peft_config": LORA}),
    "LoRA and the whole head": (completions, {}, {"peft_config": WHOLE_HEAD}),
    "prompt tuning": (texts, {}, {"peft_config": PROMPT}),
}


def made(kind, scenario, folder, model=None, settings=None, **options):
    rows, config, more = SCENARIOS[scenario]
    torch.manual_seed(0)
    common = {
        "max_steps": 2,
        "per_device_train_batch_size": 3,
        "learning_rate": 0.5,
        "optim": "sgd",
        "max_grad_norm": 0.0,
        "logging_steps": 1,
        "bf16": False,
        "gradient_checkpointing": False,
        "report_to": [],
        "use_cpu": True,
        "disable_tqdm": True,
        "save_strategy": "no",
        "train_sampling_strategy": "sequential",
    }
    return kind(
        language_model() if model is None else model,
        SFTConfig(str(folder), **(common | config | (settings or {}))),
        train_dataset=Dataset.from_list(rows()),
        processing_class=tokenizer(),
        **more,
        **options,
    )


def batch_of(trainer):
    return next(iter(trainer.get_train_dataloader()))


def step(trainer, count):
    """Loss, gradients and TRL's metrics of the first batch."""
    trainer.model.train().zero_grad()
    loss = trainer.compute_loss(trainer.model, dict(batch_of(trainer)), num_items_in_batch=count)
    loss.backward()
    named = trainer.model.named_parameters()
    gradients = {name: each.grad for name, each in named if each.grad is not None}
    assert gradients
    return loss.detach(), gradients, dict(trainer._metrics["train"])


def assert_same(ours, right):
    torch.testing.assert_close(ours, right, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_at_alpha_1_it_is_trls(scenario, tmp_path):
    right = step(made(SFTTrainer, scenario, tmp_path), torch.tensor(17))
    ours = made(PowerGradSFTTrainer, scenario, tmp_path, alpha=1.0, chunk_rows=5)
    assert_same(step(ours, torch.tensor(17)), right)
    _, _, metrics = right
    assert metrics.keys() == {"entropy", "mean_token_accuracy", "num_tokens"}
    assert metrics["entropy"][0] > 1.0


@pytest.mark.parametrize("count", [None, 17])
@pytest.mark.parametrize("scenario", ["completion-only", "assistant-only", "packed", "LoRA"])
def test_another_alpha(scenario, count, tmp_path):
    """The gradient is the identity's, of the unfused model's logits; value and metrics stay."""
    plain = made(SFTTrainer, scenario, tmp_path)
    loss, _, metrics = step(plain, count)
    batch = dict(batch_of(plain))
    labels = batch.pop("labels")
    assert 0 < (labels[:, 1:] != -100).sum() < labels.numel()
    plain.model.zero_grad()
    next_token_identity(plain.model(**batch).logits, labels, count).backward()
    expected = {n: p.grad for n, p in plain.model.named_parameters() if p.grad is not None}

    ours = step(made(PowerGradSFTTrainer, scenario, tmp_path, alpha=0.3), count)
    assert_same(ours, (loss, expected, metrics))


def test_label_smoothing(tmp_path):
    """At alpha 1 the loss and gradients of TRL's label_smoothing_factor."""
    right = made(SFTTrainer, "completion-only", tmp_path, settings={"label_smoothing_factor": 0.1})
    options = {"alpha": 1.0, "label_smoothing": 0.1}
    ours = made(PowerGradSFTTrainer, "completion-only", tmp_path, **options)
    assert_same(step(ours, None)[:2], step(right, None)[:2])


def test_gradient_checkpointing(tmp_path):
    settings = {"gradient_checkpointing": True}
    right = step(made(SFTTrainer, "completion-only", tmp_path, settings=settings), None)
    options = {"alpha": 1.0, "settings": settings}
    assert_same(
        step(made(PowerGradSFTTrainer, "completion-only", tmp_path, **options), None), right
    )


class PlainSFTTrainer(SFTTrainer):
    """Asks the model for its loss."""

    compute_loss = transformers.Trainer.compute_loss


@pytest.mark.filterwarnings("ignore:`compute_loss_func` is deprecated")
def test_other_ways_to_our_loss(tmp_path):
    """SFTTrainer computes its own unless it is told not to."""

    def weights(kind=SFTTrainer, prepare=lambda model: None, **options):
        model = language_model()
        prepare(model)
        settings = {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 1}
        made(kind, "completion-only", tmp_path, model, settings, **options).train()
        return [parameter.detach() for parameter in model.parameters()]

    right = weights()
    assert_same(weights(compute_loss_func=trainer_loss(1.0)), right)
    ours = weights(compute_loss_func=trainer_loss(0.3))
    assert_same(weights(PowerGradSFTTrainer, alpha=0.3), ours)
    for prepare in (
        lambda model: set_loss_function(model, causal_lm_loss(0.3)),
        lambda model: fuse_last_layer(model, 0.3),
    ):
        assert_same(weights(PlainSFTTrainer, prepare), ours)
    with pytest.raises(AssertionError):
        assert_same(ours, right)


def test_lora_on_the_last_layer_is_refused(tmp_path):
    lora = peft.LoraConfig(target_modules=["lm_head"])
    with pytest.raises((TypeError, ValueError), match=r"lm_head|last layer|LoRA|adapter"):
        made(PowerGradSFTTrainer, "language modelling", tmp_path, peft_config=lora)


def test_what_is_logged(tmp_path):
    """By whole trainings, which accumulate gradients and evaluate."""
    logs, weights = [], []
    for kind, options in ((SFTTrainer, {}), (PowerGradSFTTrainer, {"alpha": 1.0})):
        trainer = made(
            kind,
            "completion-only",
            tmp_path,
            settings={"gradient_accumulation_steps": 2, "per_device_train_batch_size": 1},
            eval_dataset=Dataset.from_list(completions()[:3]),
            **options,
        )
        trainer.train()
        logs += [trainer.state.log_history[:2], trainer.evaluate()]
        weights.append([each.detach() for each in trainer.model.parameters()])
    assert_same(weights[1], weights[0])
    timed = ("runtime", "per_second")
    for ours, right in ((logs[2], logs[0]), ([logs[3]], [logs[1]])):
        for mine, trls in zip(ours, right, strict=True):
            assert mine.keys() == trls.keys()
            assert_same(
                *({k: v for k, v in each.items() if not k.endswith(timed)} for each in (mine, trls))
            )
    assert {"loss", "entropy", "mean_token_accuracy", "num_tokens"} < logs[2][0].keys()
    assert {"eval_loss", "eval_entropy", "eval_mean_token_accuracy"} < logs[3].keys()


def test_one_forward_and_no_logits(tmp_path):
    trainer = made(PowerGradSFTTrainer, "language modelling", tmp_path, chunk_rows=5)
    forwards = []
    trainer.model.model.register_forward_hook(lambda *_: forwards.append(1))
    with torch.profiler.profile(record_shapes=True) as profile:
        step(trainer, None)
    rows = batch_of(trainer)["labels"].numel()
    shapes = [shape for event in profile.events() for shape in event.input_shapes or []]
    assert len(forwards) == 1
    assert [5, VOCABULARY] in shapes
    assert [rows, VOCABULARY] not in shapes


def test_a_mixture_of_experts(tmp_path):
    """TRL's weight of the router's loss, over the steps that are accumulated."""
    steps = []
    for kind, options in ((SFTTrainer, {}), (PowerGradSFTTrainer, {"alpha": 1.0})):
        torch.manual_seed(0)
        config = transformers.MixtralConfig(
            **language_model().config.to_dict() | {"model_type": "mixtral", "num_local_experts": 2}
        )
        model = transformers.MixtralForCausalLM(config)
        trainer = made(kind, "completion-only", tmp_path, model=model, **options)
        trainer.current_gradient_accumulation_steps = 2
        steps.append(step(trainer, 17))
    assert_same(steps[1], steps[0])
    assert steps[0][2]["aux_loss"][0] > 0.0


def test_a_batch_without_labels_that_count(tmp_path):
    """A loss of 0, as TRL has it."""
    trainer = made(PowerGradSFTTrainer, "completion-only", tmp_path)
    batch = dict(batch_of(trainer))
    batch["labels"] = torch.full_like(batch["labels"], -100)
    loss = trainer.compute_loss(trainer.model, batch)
    loss.backward()
    assert loss == 0.0
    assert all(not each.grad.any() for each in trainer.model.parameters())
    assert trainer._metrics["train"]["entropy"] == [0.0]


def test_a_model_under_accelerates_hooks(tmp_path):
    """As one that is split over devices: TRL's head has hidden its forward."""
    hooks = framework("accelerate").hooks
    seen = []

    class Seen(hooks.AlignDevicesHook):
        def pre_forward(self, module, *args, **kwargs):
            seen.append(type(module).__name__)
            return super().pre_forward(module, *args, **kwargs)

    right = step(made(SFTTrainer, "completion-only", tmp_path), 17)
    model = language_model()
    hooks.add_hook_to_module(model, Seen("cpu", io_same_device=True))
    trainer = made(PowerGradSFTTrainer, "completion-only", tmp_path, model=model, alpha=1.0)
    assert_same(step(trainer, 17), right)
    assert seen == ["LlamaForCausalLM"]


def test_saved_and_generating(tmp_path):
    trainer = made(PowerGradSFTTrainer, "completion-only", tmp_path)
    trainer.train()
    trainer.save_model(str(tmp_path / "saved"))
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    tokens = torch.arange(4, 9)[None]
    options = {"max_new_tokens": 3, "do_sample": False}
    torch.testing.assert_close(
        trainer.model.generate(tokens, **options), loaded.generate(tokens, **options)
    )


@pytest.mark.parametrize(
    ("settings", "options", "why"),
    [
        ({"loss_type": "dft"}, {}, "loss_type must be 'nll', got 'dft'"),
        ({"label_smoothing_factor": 0.1}, {}, r"label_smoothing_factor must be 0, .* got 0\.1"),
        ({}, {"compute_loss_func": print}, "compute_loss_func must be None, .* got <built-in"),
        ({}, {"alpha": 0.0}, "alpha must be .* got 0"),
        ({}, {"label_smoothing": 1.5}, r"label_smoothing must be in \[0, 1\], got 1\.5"),
    ],
)
def test_refused(settings, options, why, tmp_path):
    model = language_model()
    with pytest.raises(ValueError, match=why):
        made(PowerGradSFTTrainer, "language modelling", tmp_path, model, settings, **options)
    assert type(model) is transformers.LlamaForCausalLM
    assert "forward" not in vars(model)
