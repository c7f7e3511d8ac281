"""A fused last layer under what trains models: PEFT, accelerate, FSDP, DeepSpeed's hooks, compile.

causal_lm_loss on the same model, without any of them, is the truth.
"""

from __future__ import annotations

import copy
import gc
import pickle
import warnings
import weakref

import pytest
import torch
from frameworks import framework
from ranks import on_ranks

transformers = framework("transformers")

from test_transformers import (  # noqa: E402
    VOCABULARY,
    assert_same,
    batch,
    fused_model,
    language_model,
    sequences,
    with_loss_function,
)
from test_transformers import gradients as gradients_of  # noqa: E402

import powergrad_ext as pg  # noqa: E402
from powergrad_ext.integrations.transformers import (  # noqa: E402
    causal_lm_loss,
    fuse_last_layer,
    unfuse_last_layer,
)


def gradients(model, is_fused=True, **more):
    return gradients_of(model, is_fused, **batch(), **more)


@pytest.fixture(scope="module")
def right():
    return gradients(with_loss_function(0.3).train(), is_fused=False)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies(copied, right):
    model = fused_model()
    other = copied(model)
    with torch.no_grad():
        model.lm_head.weight.zero_()
    assert_same(gradients(other), right)
    assert type(other) is type(model)


def test_nothing_is_left_of_a_model():
    gc.collect()
    gc.disable()
    try:
        model = fused_model()
        gradients(model)
        model.zero_grad()
        seen = [weakref.ref(each) for each in (model, model.lm_head, model.lm_head.weight)]
        del model
        assert [each() for each in seen] == [None, None, None]
    finally:
        gc.enable()


def test_saved_and_loaded(tmp_path, right):
    fused_model().save_pretrained(tmp_path)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).train()
    assert type(loaded) is transformers.LlamaForCausalLM
    assert loaded.config.architectures == ["LlamaForCausalLM"]
    fuse_last_layer(loaded, 0.3)
    assert_same(gradients(loaded), right)


def test_twice_and_undone(right):
    model = fused_model(alpha=0.9)
    fuse_last_layer(model, 0.3)
    assert_same(gradients(model), right)
    unfuse_last_layer(model)
    unfuse_last_layer(model)
    assert type(model) is transformers.LlamaForCausalLM
    assert type(model.lm_head) is torch.nn.Linear
    plain = language_model()
    assert vars(model).keys() == vars(plain).keys()
    assert model(**batch()).logits.shape == (4, 11, VOCABULARY)


def test_a_compiled_model(right):
    schedule = pg.AlphaSchedule(0.3, 1.0, steps=1)
    model, eager = fused_model(schedule.alpha), fused_model(schedule.alpha)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for step in range(2):
        with torch._dynamo.config.patch(error_on_recompile=step > 0):
            assert_same(gradients(compiled), gradients(eager))
        if step == 0:
            assert_same(gradients(eager), right)
        schedule.step()


def test_no_value_is_read_from_a_device():
    """Reading one makes the host wait for a GPU; on the meta device there is none to be read."""
    model = fused_model().to("meta")
    on_device = {name: tensor.to("meta") for name, tensor in batch().items()}
    model(**on_device).loss.backward()
    assert model.lm_head.weight.grad.shape == (VOCABULARY, 16)


def test_gradient_checkpointing(right):
    model = fused_model()
    model.gradient_checkpointing_enable()
    assert_same(gradients(model), right)


def test_logits_to_keep():
    tokens, labels = sequences()
    kept = {"input_ids": tokens, "labels": labels[:, -6:], "logits_to_keep": 6}
    expected = with_loss_function(0.3).train()(**kept).loss
    torch.testing.assert_close(fused_model()(**kept).loss, expected)
    with pytest.raises(ValueError, match=r"labels must be as many as the rows .* 24, got 44"):
        fused_model()(**kept | {"labels": labels})


def test_a_tuple():
    loss, logits, *_ = fused_model()(**batch(), return_dict=False)
    torch.testing.assert_close(loss, fused_model()(**batch()).loss)
    assert logits is None


def test_nothing_is_kept_after_an_error():
    """Whether it comes up in the layer, before it or after it."""
    model = fused_model()
    tokens, labels = sequences()
    plain = model(input_ids=tokens)["logits"]

    def raising(*_):
        raise KeyError("here")

    for module, register in (
        (model.model, "register_forward_hook"),
        (model.lm_head, "register_forward_hook"),
        (model.lm_head, "register_forward_pre_hook"),
    ):
        hook = getattr(module, register)(raising)
        with pytest.raises(KeyError, match="here"):
            model(input_ids=tokens, labels=labels)
        hook.remove()
        hidden = model.model(tokens).last_hidden_state
        torch.testing.assert_close(model.lm_head(hidden), plain)


def test_embeddings_of_another_size():
    model = fused_model()
    model.resize_token_embeddings(60, mean_resizing=False)
    with pytest.raises(RuntimeError, match=r"replaced after fuse_last_layer.*call .* again"):
        model(**batch())
    fuse_last_layer(model, 0.3)
    gradients(model)


def test_layers_that_are_not_a_plain_linear():
    class Scaled(torch.nn.Linear):
        def forward(self, input):
            return 2 * super().forward(input)

    model = language_model()
    model.lm_head = Scaled(16, VOCABULARY, bias=False)
    with pytest.raises(TypeError, match=r"must have the forward of torch\.nn\.Linear, got Scaled"):
        fuse_last_layer(model)

    model = language_model()
    model.lm_head.weight = torch.nn.Parameter(
        torch.zeros(VOCABULARY, 16, dtype=torch.int8), requires_grad=False
    )
    with pytest.raises(TypeError, match="must not be quantised"):
        fuse_last_layer(model)

    model = language_model()
    model.lm_head.forward = lambda input: input
    with pytest.raises(TypeError, match="the forward of Linear was replaced"):
        fuse_last_layer(model)
    with pytest.raises(TypeError, match=r"must be a transformers\.PreTrainedModel, not wrapped"):
        fuse_last_layer(torch.nn.Sequential(model))


def test_a_warning_where_the_loss_is_not_asked_for():
    """As under Trainer(label_smoothing_factor=...), which takes the labels away."""
    model = fused_model()
    tokens, _ = sequences()
    with pytest.warns(UserWarning, match="trained without labels"):
        model(input_ids=tokens)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.generate(tokens[:1, :4], max_new_tokens=2)
        model.eval()(input_ids=tokens)


def test_label_smoothing():
    model, plain = language_model().train(), language_model().train()
    fuse_last_layer(model, 0.3, label_smoothing=0.2)
    plain.loss_function = causal_lm_loss(0.3, label_smoothing=0.2)
    found = gradients(model)
    assert_same(found, gradients(plain, is_fused=False))
    assert not torch.isclose(found[0], fused_model()(**batch()).loss)


@pytest.mark.parametrize("saved", [None, ["lm_head"]])
@pytest.mark.parametrize("first", ["fused", "peft"])
def test_peft(first, saved):
    peft = framework("peft")

    def adapted(fused):
        model = language_model()
        if not fused:
            model.loss_function = causal_lm_loss(0.3)
        elif first == "fused":
            fuse_last_layer(model, 0.3)
        options = {"target_modules": ["q_proj"], "init_lora_weights": False}
        torch.manual_seed(0)
        wrapped = peft.get_peft_model(model, peft.LoraConfig(modules_to_save=saved, **options))
        if fused and first == "peft":
            fuse_last_layer(wrapped, 0.3)
        return wrapped.train()

    model = adapted(fused=True)
    assert_same(gradients(model), gradients(adapted(fused=False), is_fused=False))
    with model.disable_adapter():
        torch.testing.assert_close(model(**batch()).loss, fused_model()(**batch()).loss)
    unfuse_last_layer(model)
    assert model(**batch()).logits is not None


def test_lora_on_the_last_layer_is_refused():
    peft = framework("peft")
    config = peft.LoraConfig(target_modules=["q_proj", "lm_head"])
    with pytest.raises(TypeError, match=r"has an adapter of PEFT.*keep it out of target_modules"):
        fuse_last_layer(peft.get_peft_model(language_model(), config))
    with pytest.raises(RuntimeError, match="does not fit Llama"):
        peft.get_peft_model(fused_model(), config).train()(**batch())


@pytest.mark.parametrize("first", ["fused", "hooks"])
def test_hooks_of_accelerate(first, right):
    hooks = framework("accelerate").hooks
    model = fused_model() if first == "fused" else language_model().train()
    seen = []

    class Seen(hooks.AlignDevicesHook):
        def pre_forward(self, module, *args, **kwargs):
            seen.append(type(module).__name__)
            return super().pre_forward(module, *args, **kwargs)

    for module in (model, model.lm_head):
        hooks.add_hook_to_module(module, Seen("cpu", io_same_device=True))
    if first == "hooks":
        fuse_last_layer(model, 0.3)
    assert_same(gradients(model), right)
    assert len(seen) == 2
    hooks.remove_hook_from_module(model, recurse=True)
    assert_same(gradients(model), right)
    unfuse_last_layer(model)
    assert model(**batch()).logits is not None


class BeforeBackward(torch.autograd.Function):
    """As DeepSpeed's, around a module's output."""

    @staticmethod
    def forward(ctx, gather, output):
        ctx.gather = gather
        return output.detach()

    @staticmethod
    def backward(ctx, grad_output):
        ctx.gather()
        return None, grad_output


def test_a_weight_that_is_there_in_its_layers_hooks_alone(right):
    """As under DeepSpeed's ZeRO-3: empty but in the layer's forward and from its backward on."""
    model = fused_model()
    weight = model.lm_head.weight
    whole = weight.data

    def gather(*_):
        weight.data = whole

    def release(module, args, output):
        output = BeforeBackward.apply(gather, output)
        weight.data = torch.empty(0)
        return output

    weight.data = torch.empty(0)
    model.lm_head.register_forward_pre_hook(gather)
    model.lm_head.register_forward_hook(release)
    assert_same(gradients(model), right)


def train_sharded(right):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard

    mesh = init_device_mesh("cpu", (2,))
    for late in (False, True):
        model = language_model().train()
        if not late:
            fuse_last_layer(model, 0.3)
        fully_shard(model.lm_head, mesh=mesh)
        fully_shard(model, mesh=mesh)
        if late:
            fuse_last_layer(model, 0.3)
        loss, found = gradients(model)
        assert_same((loss, [each.full_tensor() for each in found]), right)

    model = fused_model()
    options = {"device_id": torch.device("cpu"), "use_orig_params": True}
    model.lm_head = FullyShardedDataParallel(model.lm_head, **options)
    whole = FullyShardedDataParallel(model, **options)
    output = whole(**batch())
    output.loss.backward()
    torch.testing.assert_close(output.loss.detach(), right[0])
    squares = sum(each.grad.square().sum() for each in whole.parameters() if each.grad is not None)
    torch.distributed.all_reduce(squares)
    torch.testing.assert_close(squares, sum(each.square().sum() for each in right[1]))


def test_fsdp_with_the_layer_in_a_group_of_its_own(right):
    """FSDP2, fused before and after; FSDP1."""
    on_ranks(2, train_sharded, right)
