"""fuse_last_layer at alpha 1: the loss and every gradient of the library's own, family by family.

The model as it was is the truth, whether it shifts its labels or not, calls loss_function or its
own cross-entropy, scales its logits or adds a bias to them. What does not fit is refused by name.
"""

from __future__ import annotations

import contextlib

import pytest
import torch
from frameworks import framework

transformers = framework("transformers")

from powergrad_ext.integrations.transformers import (  # noqa: E402
    fuse_last_layer,
    labels_are_shifted,
    trainer_loss,
)

CLASSES, LENGTH = 48, 9
SIZES = {
    "vocab_size": CLASSES,
    "decoder_vocab_size": CLASSES,
    "hidden_size": 16,
    "d_model": 16,
    "n_embd": 16,
    "word_embed_proj_dim": 16,
    "intermediate_size": 24,
    "ffn_dim": 24,
    "d_ff": 24,
    "d_inner": 24,
    "encoder_ffn_dim": 24,
    "decoder_ffn_dim": 24,
    "num_hidden_layers": 1,
    "num_layers": 1,
    "num_decoder_layers": 1,
    "n_layer": 1,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "num_attention_heads": 2,
    "num_heads": 2,
    "n_head": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "d_head": 8,
    "d_kv": 8,
    "num_local_experts": 2,
    "max_position_embeddings": 16,
    "n_positions": 16,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
    "image_token_id": 45,
}
NO_DROPOUT = (
    "dropout",
    "dropout_rate",
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "resid_pdrop",
    "embd_pdrop",
    "attn_pdrop",
)
FITS = {
    "LlamaForCausalLM": {},
    "LlamaForCausalLM, tied": {"tie_word_embeddings": True},
    "Qwen2ForCausalLM": {},
    "GPT2LMHeadModel": {},
    "OPTForCausalLM": {},
    "PhiForCausalLM": {},  # a bias
    "MixtralForCausalLM": {"output_router_logits": True},
    "CohereForCausalLM": {"logit_scale": 0.25},
    "GraniteForCausalLM": {"logits_scaling": 3.0},
    "Cohere2ForCausalLM": {"logit_scale": 0.25},
    "GraniteForCausalLM, one": {"logits_scaling": 1.0},
    "HyperCLOVAXForCausalLM": {"logits_scaling": 3.0},
    "MiniCPM3ForCausalLM": {
        "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 4,
        "num_key_value_heads": 2,
        "dim_model_base": 8,
    },
    "Gemma2ForCausalLM": {"final_logit_softcapping": 0.6},
    "Gemma2ForCausalLM, not capped": {"final_logit_softcapping": None},
    "Gemma3ForCausalLM": {"final_logit_softcapping": 0.6},
    "RecurrentGemmaForCausalLM": {"logits_soft_cap": 0.6, "use_cache": False},
    "PaliGemmaForConditionalGeneration": {},
    "Gemma3ForConditionalGeneration": {},
    "MambaForCausalLM": {},
    "XLNetLMHeadModel": {},
    "BartForCausalLM": {},
    "TrOCRForCausalLM": {},
    "T5ForConditionalGeneration": {"scale_decoder_outputs": True},
    "T5ForConditionalGeneration, not scaled": {"scale_decoder_outputs": False},
    "BartForConditionalGeneration": {},
    "MarianMTModel": {},
    "BertForMaskedLM": {},
    "LlavaForConditionalGeneration": {},
}
# The classes of their configurations of text and of images, and options of the former.
MULTIMODAL = {
    "LlavaForConditionalGeneration": ("LlamaConfig", "CLIPVisionConfig", {}),
    "PaliGemmaForConditionalGeneration": (
        "Gemma2Config",
        "SiglipVisionConfig",
        {"final_logit_softcapping": 0.6},
    ),
    "Gemma3ForConditionalGeneration": ("Gemma3TextConfig", "SiglipVisionConfig", {}),
}


def shrunk(config, options):
    for name, value in SIZES.items() | dict.fromkeys(NO_DROPOUT, 0.0).items():
        if hasattr(config, name) or name == "decoder_start_token_id":
            with contextlib.suppress(NotImplementedError):  # XLNet has no longest sequence
                setattr(config, name, value)
    if isinstance(vars(config).get("layer_types"), list):
        config.layer_types = config.layer_types[:1]
    for name, value in options.items():
        setattr(config, name, value)
    return config


def family(name, options=None):
    """A model of random weights, none of them 0 or 1."""
    name = name.split(",")[0]
    made = getattr(transformers, name)
    if name in MULTIMODAL:
        text, vision, options = MULTIMODAL[name]
        sizes = {"hidden_size": 8, "intermediate_size": 8, "image_size": 4, "patch_size": 2}
        layers = {"num_hidden_layers": 1, "num_attention_heads": 1}
        config = made.config_class(
            vision_config=getattr(transformers, vision)(**sizes, **layers),
            text_config=shrunk(getattr(transformers, text)(), options),
            image_token_id=45,
        )
    else:
        config = shrunk(made.config_class(), FITS.get(name, {}) if options is None else options)
    torch.manual_seed(0)
    model = made(config)
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.dim() == 1 and tensor.is_floating_point():
                tensor.uniform_(0.5, 1.5)
        if hasattr(model, "final_logits_bias"):
            model.final_logits_bias.uniform_(-1.0, 1.0)
    return model.train()


def batch_of(seed=1):
    """Labels that are not the tokens; some rows are ignored, the first and the last among them."""
    random = torch.Generator().manual_seed(seed)
    tokens = torch.randint(3, 44, (3, LENGTH), generator=random)
    labels = torch.randint(CLASSES, (3, LENGTH), generator=random)
    labels[0, 0] = labels[0, 3] = labels[1, -1] = -100
    labels[2, 4:] = -100
    return {"input_ids": tokens, "labels": labels}


def gradients(model, **batch):
    model.zero_grad()
    output = model(**batch)
    output.loss.backward()
    return output, {
        name: parameter.grad.clone()
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }


@pytest.mark.parametrize("name", FITS)
def test_a_family(name):
    options = FITS[name]
    model, batch = family(name, options), batch_of()
    right, expected = gradients(model, **batch)
    fuse_last_layer(model, alpha=1.0, chunk_rows=7)
    found, ours = gradients(model, **batch)
    assert found.logits is None
    assert right.logits.shape == (3, LENGTH, CLASSES)
    torch.testing.assert_close(found.loss, right.loss, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(ours, expected, rtol=1e-3, atol=1e-5)

    loss = trainer_loss(1.0, shift_labels=labels_are_shifted(model))(right, batch["labels"])
    if name.startswith("Mixtral"):  # trainer_loss has not the router's
        loss = loss + model.router_aux_loss_coef * right.aux_loss
    torch.testing.assert_close(loss, right.loss, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["Gemma2ForCausalLM", "GraniteForCausalLM"])
def test_scaled_and_capped_logits_compiled(name):
    model = family(name, FITS[name])
    fuse_last_layer(model, alpha=0.3)
    expected = gradients(model, **batch_of())
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    found = gradients(compiled, **batch_of())
    torch.testing.assert_close(found[0].loss, expected[0].loss)
    found = {name.removeprefix("_orig_mod."): each for name, each in found[1].items()}
    torch.testing.assert_close(found, expected[1], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "name", ["Gemma2ForCausalLM", "T5ForConditionalGeneration", "BartForConditionalGeneration"]
)
def test_generation_afterwards(name):
    model = family(name, FITS[name]).eval()
    tokens, options = batch_of()["input_ids"], {"max_new_tokens": 4, "do_sample": False}
    expected = model.generate(tokens, **options)
    fuse_last_layer(model)
    model.train()(**batch_of()).loss.backward()
    assert torch.equal(model.eval().generate(tokens, **options), expected)


def test_a_count_that_the_models_loss_leaves_out():
    """A model whose own cross-entropy is the mean, although it is told a count."""

    class Mean(transformers.LlamaForCausalLM):
        def forward(self, labels=None, num_items_in_batch=None, **batch):
            logits = self.lm_head(self.model(**batch).last_hidden_state)
            loss = self.loss_function(logits, labels, self.vocab_size)
            return transformers.modeling_outputs.CausalLMOutput(loss, logits)

    model = Mean(family("LlamaForCausalLM").config)
    right, expected = gradients(model, **batch_of())
    fuse_last_layer(model, alpha=1.0)
    found, ours = gradients(model, **batch_of(), num_items_in_batch=17)
    torch.testing.assert_close(found.loss, right.loss)
    torch.testing.assert_close(ours, expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "options", "why"),
    [
        ("LlamaModel", {}, "takes no labels"),
        ("BertForTokenClassification", {}, "must be a torch.nn.Linear, got None"),
        ("FSMTForConditionalGeneration", {}, "must be a torch.nn.Linear, got Embedding"),
    ],
)
def test_refused_before_anything_is_changed(name, options, why):
    made = getattr(transformers, name)
    if name == "FSMTForConditionalGeneration":
        config = transformers.FSMTConfig(
            langs=["de", "en"], src_vocab_size=CLASSES, tgt_vocab_size=CLASSES
        )
        model = made(shrunk(config, options))
    else:
        model = made(shrunk(made.config_class(), options))
    with pytest.raises((TypeError, ValueError), match=why):
        fuse_last_layer(model)
    assert type(model) is made


def unfit(change):
    """A Llama that does something to its logits before the library's loss."""

    class Unfit(transformers.LlamaForCausalLM):
        def forward(self, labels=None, **batch):
            logits = change(self.lm_head, self.model(**batch).last_hidden_state)
            return self.loss_function(logits, labels, self.vocab_size)

    return Unfit(family("LlamaForCausalLM").config).train()


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (
            lambda head, hidden: 30 * torch.tanh(head(hidden) / 30),
            r"makes 30 \* tanh\(0.0333333 \* z\) of its logits z, and not z,",
        ),
        (lambda head, hidden: head(hidden).tanh(), r"makes 1 \* tanh\(z\) of"),
        (lambda head, hidden: head(hidden).tanh().tanh(), "caps its logits twice"),
        (lambda head, hidden: head(hidden) * 0.5, r"makes 0.5 \* z of"),
        (lambda head, hidden: head(hidden).mul_(0.5), "calls torch.Tensor.mul_"),
        (lambda head, hidden: head(hidden) * torch.tensor(0.5), r"by a tensor \(\)"),
        (lambda head, hidden: head(hidden) / 0, "divides its logits by 0"),
        (lambda head, hidden: head(hidden) + torch.ones(CLASSES), r"adds a tensor \(48,\) to"),
        (lambda head, hidden: head(hidden)[:, :, :], "getitem"),
        (lambda head, hidden: head(hidden).transpose(0, 1), "transpose"),
        (lambda head, hidden: head(hidden).view(-1, 2 * CLASSES), "views its logits"),
        (lambda head, hidden: torch.relu(head(hidden)), "relu"),
        (lambda head, hidden: (head(hidden), head(hidden))[1], "more than once"),
        (
            lambda head, hidden: torch.nn.functional.linear(hidden, head.weight),
            "not called as a module",
        ),
        (
            lambda head, hidden: (
                head(hidden),
                torch.nn.functional.linear(hidden, head.weight),
            )[1],
            "loss is not made from its last layer's output",
        ),
    ],
)
def test_refused_when_it_is_called(change, why):
    model, batch = unfit(change), batch_of()
    fuse_last_layer(model)
    with pytest.raises(RuntimeError, match=f"does not fit Unfit: .*{why}"):
        model(**batch)
    assert model.lm_head(torch.ones(1, 16)).shape == (1, CLASSES), "nothing of the call is left"


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({}, "labels are not those"),
        ({"weight": torch.ones(CLASSES)}, "weights"),
        ({"label_smoothing": 0.1}, "smooths"),
        ({"ignore_index": 3}, "labels are not those"),
        ({"reduction": "none"}, "reduction 'none'"),
    ],
)
def test_losses_of_another_kind_are_refused(options, why):
    def loss(logits, labels, vocab_size, **_):
        rows = logits.view(-1, CLASSES)
        return torch.nn.functional.cross_entropy(rows, labels.view(-1), **options)

    model = family("LlamaForCausalLM")
    model.loss_function = loss
    fuse_last_layer(model)
    with pytest.raises(RuntimeError, match=why):
        model(**batch_of())


@pytest.mark.parametrize("mask", [torch.Tensor.masked_fill, torch.Tensor.masked_fill_])
def test_a_model_that_masks_its_labels_is_refused(mask):
    """Also in place."""

    class Masking(transformers.BartForCausalLM):
        def forward(self, labels=None, **batch):
            return super().forward(labels=mask(labels, labels == 5, -100), **batch)

    model = Masking(family("BartForCausalLM").config).train()
    fuse_last_layer(model)
    batch = batch_of()
    with pytest.raises(RuntimeError, match="labels are not those of the call"):
        model(**batch | {"labels": batch["labels"].clamp(min=5, max=6)})
    assert model(**batch | {"labels": batch["labels"].clamp(min=6)}).loss.isfinite()
