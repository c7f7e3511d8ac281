"""Whether labels are shifted: what an output's class says to trainer_loss, and what a model says.

The truth is the source of each head of the library: what its forward does to labels or logits.
"""

from __future__ import annotations

import re
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from frameworks import framework

transformers = framework("transformers")

from test_fused_families import batch_of, family  # noqa: E402
from test_transformers import VOCABULARY, language_model, sequences  # noqa: E402
from transformers import modeling_outputs  # noqa: E402
from transformers.loss.loss_utils import LOSS_MAPPING, ForCausalLMLoss  # noqa: E402

import powergrad_ext as pg  # noqa: E402
from powergrad_ext.integrations.transformers import (  # noqa: E402
    AlphaCallback,
    causal_lm_loss,
    fuse_last_layer,
    labels_are_shifted,
    set_loss_function,
    trainer_loss,
)

MODELS = Path(transformers.__file__).parent / "models"
HEADS = re.compile(
    r"For(CausalLM|MaskedLM|TokenClassification|ConditionalGeneration|AudioFrameClassification)"
    r"|LMHead|EncoderDecoderModel|MTModel"
)
SLICES = re.compile(r"(labels|logits|scores)\[(\.\.\., |:, )?:?-?1:?")


def heads():
    """Name, file, source of forward and output class of each head that has labels."""
    for file in sorted(MODELS.glob("*/modeling_*.py")):
        for block in re.split(r"^(?=class )", file.read_text(), flags=re.MULTILINE):
            name = re.match(r"class (\w+)", block)
            forward = re.search(
                r"^    def forward\((.*?)\) -> (.*?):\n(.*?)(?=^    def |\Z)", block, re.S | re.M
            )
            if name and forward and "labels:" in forward[1] and HEADS.search(name[1]):
                for output in re.findall(r"\w*Output\w*", forward[2]):
                    yield name[1], output, re.sub(r'""".*?"""', "", forward[3], flags=re.S)


def shifts(output):
    """What trainer_loss does, None where it asks."""
    logits, labels = torch.tensor([[[0.0, 8.0], [8.0, 0.0]]]), torch.tensor([[0, 1]])
    outputs = type(output, (dict,), {})(logits=logits)
    try:
        loss = trainer_loss(1.0)(outputs, labels)
    except ValueError:  # it asks
        return None
    return bool(loss < 1.0)


IN_A_PROCESS = """
import sys, torch, transformers
from powergrad_ext.integrations.transformers import labels_are_shifted, trainer_loss
name, output = sys.argv[1:]
outputs = type(output, (dict,), {})(logits=torch.randn(1, 3, 4))
labels = torch.tensor([[0, 1, 2]])
trainer_loss()(outputs, labels)
made = getattr(transformers, name)
with torch.device("meta"):
    shifts = labels_are_shifted(made(made.config_class()))
try:
    trainer_loss()(outputs, labels)
except ValueError as error:
    print(shifts, error)
"""


def test_every_head_of_the_library():
    """Where an output's class says the wrong thing, it is asked about once its model is there."""
    said, wrong = set(), {}
    found = list(heads())
    for name, output, source in found:
        group = re.findall("|".join(LOSS_MAPPING), name)
        loss = LOSS_MAPPING[group[0] if group else "ForCausalLM"]
        if "loss_function(" not in source:
            truth = bool(SLICES.search(source)) and "entropy" in source.lower()
        elif loss is not ForCausalLMLoss or "Seq2Seq" in output:
            truth = False
        else:
            truth = True
        decided = shifts(output)
        if decided is not None:
            said.add(name)
            if decided != truth:
                wrong[name] = output, truth
    for name, (output, truth) in wrong.items():
        command = [sys.executable, "-c", IN_A_PROCESS, name, output]
        told = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        assert told.startswith(f"{truth} trainer_loss(): shift_labels must be given")
        assert output in told
    assert len(wrong) < 3
    assert len(found) > 300
    assert len(said) > 0.7 * len(found), "most need not be asked about"


@pytest.mark.parametrize(
    ("name", "asked"),
    [
        ("LlamaForCausalLM", False),
        ("GPT2LMHeadModel", True),
        ("BartForCausalLM", True),
        ("XLNetLMHeadModel", True),
        ("T5ForConditionalGeneration", False),
        ("BertForMaskedLM", False),
        ("LongformerForMaskedLM", False),
        ("LongformerForTokenClassification", False),
        ("LukeForMaskedLM", False),
        ("LukeForTokenClassification", False),
        ("LlavaForConditionalGeneration", False),
    ],
)
def test_a_models_own_loss(name, asked):
    options = {"attention_window": 4} if name.startswith("Longformer") else {}
    options |= {"entity_vocab_size": 5, "entity_emb_size": 16} if name.startswith("Luke") else {}
    model, batch = family(name, options), batch_of()
    if name.endswith("TokenClassification"):
        batch["labels"] = batch["labels"].where(batch["labels"] < 0, batch["labels"] % 2)
    with torch.no_grad():
        outputs = model(**batch)
    told = trainer_loss(1.0, shift_labels=labels_are_shifted(model))
    torch.testing.assert_close(told(outputs, batch["labels"]), outputs.loss)
    if asked:
        message = f"shift_labels must be given.*{type(outputs).__name__}"
        with pytest.raises(ValueError, match=message):
            trainer_loss(1.0)(outputs, batch["labels"])
    else:
        torch.testing.assert_close(trainer_loss(1.0)(outputs, batch["labels"]), outputs.loss)


IN_A_PROCESS_WITH_A_MODEL_OF_ONES_OWN = """
import torch
from transformers import LlamaForCausalLM, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast, MaskedLMOutput
from powergrad_ext.integrations.transformers import trainer_loss
outputs = CausalLMOutputWithPast(logits=torch.randn(1, 3, 4))
labels = torch.tensor([[0, 1, 2]])
class Other(PreTrainedModel):
    def forward(self, input_ids, labels=None) -> MaskedLMOutput:
        return torch.nn.functional.cross_entropy(input_ids, labels)
class Inherited(LlamaForCausalLM):
    def forward(self, input_ids, labels=None, **others):
        return super().forward(input_ids, labels=labels, **others)
trainer_loss()(outputs, labels)
class Aligned(PreTrainedModel):
    def forward(self, input_ids, labels=None):
        return torch.nn.functional.cross_entropy(input_ids, labels)
try:
    trainer_loss()(outputs, labels)
except ValueError as error:
    print(error)
"""


def test_a_model_of_ones_own_may_return_any_outputs():
    """Where its forward does not say which, and does not shift its labels."""
    command = [sys.executable, "-c", IN_A_PROCESS_WITH_A_MODEL_OF_ONES_OWN]
    told = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert told.startswith("trainer_loss(): shift_labels must be given")


def test_shift_labels_can_be_said():
    logits, (_, labels) = torch.randn(4, 11, VOCABULARY), sequences()
    outputs = modeling_outputs.CausalLMOutputWithPast(logits=logits)
    expected = F.cross_entropy(logits.flatten(0, 1), labels.flatten())
    torch.testing.assert_close(trainer_loss(shift_labels=False)(outputs, labels), expected)
    torch.testing.assert_close(trainer_loss(shift_labels=False)((logits,), labels), expected)
    shifted = trainer_loss(shift_labels=True)(outputs, labels)
    torch.testing.assert_close(shifted, ForCausalLMLoss(logits, labels, VOCABULARY))


def test_a_fused_model_shifts_as_before():
    model = language_model()
    assert labels_are_shifted(model)
    fuse_last_layer(model)
    assert labels_are_shifted(model)


def test_label_smoothing():
    """The library's own smoother at alpha 1."""
    from transformers.trainer_pt_utils import LabelSmoother

    logits, (_, labels) = torch.randn(4, 11, VOCABULARY), sequences()
    outputs = modeling_outputs.CausalLMOutputWithPast(logits=logits)
    expected = LabelSmoother(epsilon=0.1)(outputs, labels, shift_labels=True)
    found = trainer_loss(1.0, label_smoothing=0.1)(outputs, labels)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(
        causal_lm_loss(1.0, label_smoothing=0.1)(logits, labels, VOCABULARY), expected
    )
    for make in (trainer_loss, causal_lm_loss):
        with pytest.raises(ValueError, match=r"label_smoothing must be in \[0, 1\], got 2"):
            make(label_smoothing=2.0)


@pytest.mark.parametrize("name", ["LlamaForCausalLM", "GPT2LMHeadModel", "GraniteForCausalLM"])
def test_set_loss_function(name):
    peft = framework("peft")
    model = family(name)
    expected = model(**batch_of()).loss
    linears = [
        each for each, module in model.named_modules() if each.endswith(("q_proj", "c_attn"))
    ]
    wrapped = peft.get_peft_model(model, peft.LoraConfig(target_modules=linears))
    calls = []

    def loss(*args, **kwargs):
        calls.append(kwargs)
        return causal_lm_loss(1.0)(*args, **kwargs)

    set_loss_function(wrapped, loss)
    torch.testing.assert_close(wrapped(**batch_of()).loss, expected)
    assert len(calls) == 1


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("BartForCausalLM", "never calls its loss_function"),
        ("T5ForConditionalGeneration", "never calls its loss_function"),
        ("XLNetLMHeadModel", "never calls its loss_function"),
        ("ModernBertForMaskedLM", "must have the loss of next tokens, got loss_type 'ForMaskedLM'"),
    ],
)
def test_models_whose_loss_is_another(name, why):
    made = getattr(transformers, name)
    with torch.device("meta"):
        model = made(made.config_class())
    with pytest.raises(TypeError, match=f"{name} {why}"):
        set_loss_function(model, causal_lm_loss())
    with pytest.raises(TypeError, match=r"must be a transformers\.PreTrainedModel, not wrapped"):
        set_loss_function(torch.nn.Sequential(model), causal_lm_loss())


def test_warnings_where_the_trainer_takes_the_labels_away():
    """As label_smoothing_factor and compute_loss_func do; a loss function is not told."""
    model = language_model().train()
    tokens, labels = sequences()
    for _ in range(2):  # the second time changes the loss alone
        set_loss_function(model, causal_lm_loss())
    with pytest.warns(UserWarning, match="after set_loss_function.* without labels") as caught:
        model(input_ids=tokens)
    assert len(caught) == 1
    arguments = transformers.TrainingArguments(label_smoothing_factor=0.25, report_to=[])
    schedule = pg.AlphaSchedule(0.2, 1.0, 4)
    with pytest.warns(UserWarning, match=r"label_smoothing_factor=0\.25\) is not for the losses"):
        AlphaCallback(schedule).on_train_begin(arguments, SimpleNamespace(max_steps=4), None)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        model(input_ids=tokens, labels=labels)
        model(tokens, None, None, None, None, labels)
        with torch.no_grad():
            model(input_ids=tokens)
        model.eval()(input_ids=tokens)
        arguments.label_smoothing_factor = 0.0
        AlphaCallback(schedule).on_train_begin(arguments, SimpleNamespace(max_steps=4), None)
