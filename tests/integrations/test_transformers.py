"""Patched language models give the loss and the gradients that they gave before, and logits are never formed."""

from __future__ import annotations

import copy
import inspect
import pickle
import warnings
from types import SimpleNamespace

import pytest
import torch
import transformers
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.functional import cross_entropy, linear

from steepest.integrations import _lazy_logits
from steepest.integrations._lazy_logits import LazyLogits, Use
from steepest.integrations.transformers import _classes, patch, patched, unpatch
from steepest.kernels import _engine
from steepest.optim.schedules import WSD

V, T = 50, 7
BIAS = torch.linspace(-1, 2, 5, dtype=torch.float64)
LLAMA = {
    "vocab_size": V, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 8, "initializer_range": 0.5, "pad_token_id": 0, "eos_token_id": 1,
    "bos_token_id": 1, "max_position_embeddings": 32, "attn_implementation": "eager",
}  # fmt: skip
SHORT = {"vocab_size": V, "initializer_range": 0.5, "attn_implementation": "eager"}
EXPERTS = {
    "num_local_experts": 3, "output_router_logits": True, "router_aux_loss_coef": 0.5, "experts_implementation": "eager"
}  # fmt: skip
NO_DROPOUT = {"gpt2": {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}}
FAMILIES = {
    "gpt2": ("GPT2", {**SHORT, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 16}),
    "gpt2 untied": ("GPT2", {**SHORT, "n_embd": 16, "n_layer": 1, "n_head": 2, "tie_word_embeddings": False}),
    "llama": ("Llama", {**LLAMA, "tie_word_embeddings": False}),
    "llama tied": ("Llama", {**LLAMA, "tie_word_embeddings": True}),
    "qwen2": ("Qwen2", {**LLAMA, "tie_word_embeddings": True}),
    "gemma2 softcap": ("Gemma2", {**LLAMA, "final_logit_softcapping": 3.0}),
    "gemma3": ("Gemma3", {**LLAMA, "final_logit_softcapping": None}),
    "mistral": ("Mistral", LLAMA),
    "phi": ("Phi", {**LLAMA, "num_key_value_heads": 2}),
    "granite scaled": ("Granite", {**LLAMA, "logits_scaling": 3.0}),
    "cohere scaled": ("Cohere", {**LLAMA, "logit_scale": 0.25}),
    "mixtral": ("Mixtral", {**LLAMA, **EXPERTS}),
}  # fmt: skip


def make(family="llama tied", dtype=torch.float64, **more):
    name, options = FAMILIES[family]
    config = {"Gemma3": "Gemma3TextConfig"}.get(name, f"{name}Config")
    kind = {"GPT2": "GPT2LMHeadModel"}.get(name, f"{name}ForCausalLM")
    torch.manual_seed(1)
    return getattr(transformers, kind)(getattr(transformers, config)(**{**options, **more})).to(dtype).eval()


def batch(seed=3):
    tokens = torch.randint(2, V, (3, T), generator=torch.Generator().manual_seed(seed))
    labels = tokens.clone()
    labels[0, :4] = -100
    labels[2, -2:] = -100
    return {"input_ids": tokens, "labels": labels}


def train(model, exact=False, **inputs):
    """Loss and gradients of a training step without dropout; ``exact``: by sums over classes in the model's type."""
    model.train()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    model.zero_grad()
    if exact:
        model.loss_function = naive
    loss = model(**(inputs or batch())).loss
    loss.backward()
    if exact:
        del model._loss_function
    return loss.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def naive(logits, labels, vocab_size, num_items_in_batch=None, shift_labels=None, **_):
    """The mean over targets of log sum exp z - z_y, target by target."""
    targets = labels[:, 1:] if shift_labels is None else shift_labels
    losses = [
        logits[b, t].exp().sum().log() - logits[b, t, y]
        for b, row in enumerate(targets.tolist())
        for t, y in enumerate(row)
        if y != -100
    ]
    return sum(losses) / (len(losses) if num_items_in_batch is None else num_items_in_batch)


def agree(found, wanted, tolerance):
    (loss, gradients), (expected, references) = found, wanted
    torch.testing.assert_close(loss.double(), expected.double(), rtol=tolerance, atol=0)
    assert gradients.keys() == references.keys()
    scale = max(float(each.norm()) for each in references.values())
    for name, reference in references.items():
        error = float((gradients[name].double() - reference.double()).norm())
        assert error <= tolerance * max(float(reference.norm()), 1e-3 * scale), name


@pytest.fixture(autouse=True)
def fresh_state():
    """accelerate keeps one state a process: that of whatever ran before, a guide's Trainer among it, is dropped."""
    state = pytest.importorskip("accelerate.state").AcceleratorState
    state._reset_state(reset_partial_state=True)
    yield
    state._reset_state(reset_partial_state=True)


@pytest.fixture
def never_formed(monkeypatch):
    """Fails where logits are formed, or a warning says that they are."""

    def formed(self, why):
        raise AssertionError(f"logits are formed for {why}")

    monkeypatch.setattr(LazyLogits, "formed", formed)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        yield


@pytest.mark.parametrize("family", FAMILIES)
def test_families(family, never_formed):
    model = make(family)
    exact, before = train(model, exact=True), train(model)
    found = train(patch(model))
    agree(found, exact, 1e-10)
    agree(found, before, 1e-5)  # they compute the loss in float32
    agree(train(unpatch(model)), before, 0)


def test_softcap_and_auxiliary_loss_matter():
    """The models above are such that what they do to logits shows."""
    for family, change in (
        ("gemma2 softcap", {"final_logit_softcapping": None}),
        ("granite scaled", {"logits_scaling": 1.0}),
        ("mixtral", {"output_router_logits": False}),
    ):
        with torch.no_grad():
            one, other = (make(family, **more)(**batch()).loss for more in ({}, change))
        assert abs(float(one - other)) > 0.05, family


def test_float32(never_formed):
    model = make(dtype=torch.float32)
    agree(train(patch(model)), train(unpatch(model)), 2e-6)


@pytest.mark.parametrize("name", ["masked", "encoder-decoder", "two heads"])
def test_losses_of_other_kinds(name, never_formed):
    """What takes its cross-entropy itself, unshifted or shifted by slices, needs no family of its own."""
    torch.manual_seed(1)
    inputs = batch()
    if name == "masked":
        sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
        model = transformers.BertForMaskedLM(transformers.BertConfig(vocab_size=V, **sizes))
    elif name == "encoder-decoder":
        sizes = {"d_model": 16, "d_ff": 24, "num_layers": 1, "num_heads": 2, "d_kv": 8, "decoder_start_token_id": 0}
        model = transformers.T5ForConditionalGeneration(transformers.T5Config(vocab_size=V, dropout_rate=0.0, **sizes))
    else:
        config = transformers.GPT2Config(vocab_size=V, n_embd=16, n_layer=1, n_head=2, num_labels=1)
        model = transformers.GPT2DoubleHeadsModel(config)
        inputs = {key: value.unsqueeze(1) for key, value in inputs.items()} | {
            "mc_token_ids": torch.full((3, 1), T - 1)
        }
    before = train(model, **inputs)
    agree(train(patch(model), **inputs), before, 1e-5)


BART = {
    "vocab_size": V, "d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2,
    "decoder_attention_heads": 2, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24, "max_position_embeddings": 32,
    "pad_token_id": 0, "decoder_start_token_id": 1, "dropout": 0.0, "attention_dropout": 0.0, "init_std": 0.5,
}  # fmt: skip
BIASED = {
    "Bart": {}, "MBart": {}, "PLBart": {}, "Mvp": {}, "Marian": {}, "Pegasus": {}, "Blenderbot": {},
    "BlenderbotSmall": {}, "BigBirdPegasus": {"attention_type": "original_full"},
    "LED": {"attention_window": 4, "max_encoder_position_embeddings": 32, "max_decoder_position_embeddings": 32},
}  # fmt: skip


def biased(name):
    torch.manual_seed(1)
    config = getattr(transformers, f"{name}Config")(**{**BART, **BIASED[name]})
    kind = {"Marian": "MarianMTModel"}.get(name, f"{name}ForConditionalGeneration")
    model = getattr(transformers, kind)(config).double()
    model.final_logits_bias = torch.randn(1, V, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    return model


@pytest.mark.parametrize("name", BIASED)
def test_a_constant_bias_after_the_output_layer(name, never_formed):
    """BART's relatives add one; it is folded into the layer's own."""
    model = biased(name)
    before = train(model)
    agree(train(patch(model)), before, 1e-10)
    assert model(**batch()).logits is None
    model.final_logits_bias = torch.zeros(1, V, dtype=torch.float64)
    assert abs(train(model)[0] - before[0]) > 0.01


BLIP = {
    "text_config": {
        "vocab_size": V, "hidden_size": 16, "encoder_hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1,
        "num_attention_heads": 2, "bos_token_id": 1, "pad_token_id": 0, "sep_token_id": 1, "eos_token_id": 1,
        "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "initializer_range": 0.5,
    },
    "vision_config": {
        "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 8,
        "patch_size": 4,
    },
}  # fmt: skip


class TestComposites:
    """Models whose output layer belongs to a part."""

    @pytest.fixture
    def blip(self):
        torch.manual_seed(1)
        return transformers.BlipForConditionalGeneration(transformers.BlipConfig(**BLIP))

    @pytest.fixture
    def images(self):
        return {**batch(), "pixel_values": torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(3))}

    def test_the_layer_of_the_one_part_that_has_one(self, blip, images, never_formed):
        before = train(blip, **images)
        agree(train(patch(blip), **images), before, 1e-5)
        outputs = blip(**images)
        assert type(outputs).__name__ == "BlipForConditionalGenerationModelOutput"
        assert outputs.logits is None
        weighed = patch(blip, z_loss=0.5)(**images).loss
        assert weighed > outputs.loss + 0.1
        agree(train(unpatch(blip), **images), before, 0)

    def test_the_part_itself(self, blip, images, never_formed):
        before = train(blip, **images)
        patch(blip.text_decoder)
        agree(train(blip, **images), before, 1e-5)

    def test_a_decoder_beside_an_encoder(self, never_formed):
        torch.manual_seed(1)
        options = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
        vision = transformers.ViTConfig(image_size=8, patch_size=4, **options)
        text = transformers.BertConfig(vocab_size=V, is_decoder=True, add_cross_attention=True, **options)
        config = transformers.VisionEncoderDecoderConfig.from_encoder_decoder_configs(vision, text)
        config.decoder_start_token_id, config.pad_token_id = 1, 0
        model = transformers.VisionEncoderDecoderModel(config)
        inputs = {"labels": batch()["labels"], "pixel_values": torch.randn(3, 3, 8, 8)}
        before = train(model, **inputs)
        agree(train(patch(model), **inputs), before, 1e-5)

    def test_an_error_names_the_parts(self):
        class Wrapper(nn.Module):
            def __init__(self, **parts):
                super().__init__()
                for name, part in parts.items():
                    self.add_module(name, part)

            def forward(self, labels=None):
                return None

        class Pair(transformers.LlamaPreTrainedModel):
            def __init__(self):
                super().__init__(make().config)
                self.actor, self.critic = make(), nn.ModuleDict({"value": make()})

            def forward(self, labels=None):
                return None

        with pytest.raises(TypeError, match=r"a part of it has them: patch\(model.language_model\)\), got 'Wrapper'"):
            patch(Wrapper(language_model=make(), tower=nn.Linear(2, 2)))
        with pytest.raises(ValueError, match=r"patch\(model.actor\), patch\(model.critic.value\)\), got 'Pair'"):
            patch(Pair())


class TestTransforms:
    """What differentiates the model without its patch does so with it."""

    @pytest.fixture
    def model(self):
        return make("gpt2", **NO_DROPOUT["gpt2"]).train()

    def loss(self, model, parameters):
        return torch.func.functional_call(model, parameters, (), batch()).loss

    def test_torch_func(self, model, never_formed):
        parameters = {name: p.detach() for name, p in model.named_parameters()}
        several = {name: torch.stack([p, 0.9 * p]) for name, p in parameters.items()}
        gradient = torch.func.grad(lambda p: self.loss(model, p))
        tangent = {name: p.cos() for name, p in parameters.items()}
        found = []
        for change in (lambda m: m, patch):
            change(model)
            along = torch.func.jvp(lambda p: self.loss(model, p), (parameters,), (tangent,))[1]
            found.append((gradient(parameters), torch.func.vmap(gradient, randomness="same")(several), along))
        # the model takes its loss in float32
        torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-6, check_dtype=False)

    def test_many_gradients_in_one_backward_pass(self, model, never_formed):
        parameters = [*patch(model).parameters()]
        loss = model(**batch()).loss
        once = torch.autograd.grad(loss, parameters, retain_graph=True)
        upstream = torch.tensor([1.0, -2.0], dtype=loss.dtype)
        many = torch.autograd.grad(loss, parameters, upstream, is_grads_batched=True)
        for several, one in zip(many, once, strict=True):
            torch.testing.assert_close(several, torch.stack([one, -2 * one]))

    @pytest.mark.parametrize("kind", ["fake", "meta"])
    def test_shapes_alone(self, kind, never_formed):
        with FakeTensorMode() if kind == "fake" else torch.device("meta"):
            model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**LLAMA)).train()
            tokens = torch.zeros(3, T, dtype=torch.long)
            loss = patch(model, z_loss=0.1)(input_ids=tokens, labels=tokens).loss
            loss.backward()
        assert loss.shape == ()
        assert model.lm_head.weight.grad.shape == (V, 16)


class TestArguments:
    """What the loss function of the model takes, it still takes."""

    def test_number_of_items(self, never_formed):
        model = make()
        for items in (31, torch.tensor(31)):
            inputs = {**batch(), "num_items_in_batch": items}
            agree(train(patch(model), **inputs), train(unpatch(model), exact=True, **inputs), 1e-10)

    def test_shifted_labels(self, never_formed):
        model, inputs = make(), batch()
        inputs["shift_labels"] = inputs["labels"].roll(2, 1)
        agree(train(patch(model), **inputs), train(unpatch(model), exact=True, **inputs), 1e-10)

    def test_last_positions_alone(self, never_formed):
        model, inputs = make(), batch()
        inputs |= {"logits_to_keep": 3, "shift_labels": inputs["labels"][:, -3:].contiguous()}
        agree(train(patch(model), **inputs), train(unpatch(model), exact=True, **inputs), 1e-10)

    def test_labels_by_position(self, never_formed):
        model = patch(make()).train()
        given = list(inspect.signature(model.forward).parameters).index("labels")
        tokens, labels = batch().values()
        outputs = model(tokens, *[None] * (given - 1), labels)
        assert outputs.logits is None
        assert outputs.loss == model(input_ids=tokens, labels=labels).loss

    def test_tuples(self):
        model = make().train()
        before = model(**batch(), return_dict=False)
        after = patch(model)(**batch(), return_dict=False)
        assert len(after) == len(before)
        assert after[1] is None
        torch.testing.assert_close(after[0].float(), before[0].float())

    def test_other_outputs_stay(self, never_formed):
        model = make("mixtral").train()
        asked = {**batch(), "output_hidden_states": True, "output_attentions": True}
        before, after = model(**asked), patch(model)(**asked)
        assert type(after) is type(before)
        assert set(after) == set(before) - {"logits"}
        torch.testing.assert_close(after.hidden_states, before.hidden_states)
        torch.testing.assert_close(after.aux_loss, before.aux_loss)
        assert after.past_key_values.get_seq_length() == T

    def test_a_loss_function_that_names_a_tensor_type(self, never_formed):
        model = make()
        model.loss_function = lambda logits, labels, **_: cross_entropy(
            logits.type("torch.FloatTensor").view(-1, V), labels.view(-1)
        )
        before = train(model)
        agree(train(patch(model)), before, 1e-5)

    def test_nothing_counts(self):
        tokens = batch()["input_ids"]
        inputs = {"input_ids": tokens, "labels": torch.full_like(tokens, -100)}
        assert patch(make()).train()(**inputs).loss.isnan()
        assert patch(make(), empty="zero").train()(**inputs).loss == 0


class TestLogits:
    """When outputs have logits."""

    def test_outside_training_all_is_as_before(self, monkeypatch):
        model = make()
        before = model(**batch())
        patch(model)
        monkeypatch.setattr(LazyLogits, "of", None)
        after = model(**batch())
        assert torch.equal(before.logits, after.logits)
        assert before.loss == after.loss
        model.train()
        assert torch.equal(model(batch()["input_ids"]).logits, before.logits)

    def test_always(self):
        model = make("gemma2 softcap")
        before = model(**batch()).logits
        outputs = patch(model, logits=True).train()(**batch())
        torch.testing.assert_close(outputs.logits, before)
        assert type(outputs.logits) is torch.Tensor
        outputs.logits.sum().backward()
        assert model.lm_head.weight.grad.abs().sum() > 0

    def test_never(self, never_formed):
        model = make()
        before = model(**batch()).loss
        with torch.no_grad():
            after = patch(model, logits=False)(**batch())
        assert after.logits is None
        torch.testing.assert_close(after.loss.float(), before)


class TestObjective:
    """Options that change the loss do so while training."""

    @pytest.mark.parametrize("items", [None, 31])
    def test_smoothing_and_log_partition(self, items, never_formed):
        model = make("gemma2 softcap").train()
        logits, labels = model(batch()["input_ids"]).logits[:, :-1].reshape(-1, V), batch()["labels"][:, 1:].flatten()
        kept = labels != -100
        lse = logits[kept].logsumexp(1)
        smooth = 0.9 * (lse - logits[kept, labels[kept]]) + 0.1 * (lse - logits[kept].mean(1))
        wanted = (smooth + 0.01 * lse**2).sum() / (items or int(kept.sum()))
        inputs = batch() if items is None else {**batch(), "num_items_in_batch": items}
        found = patch(model, label_smoothing=0.1, z_loss=0.01)(**inputs).loss
        torch.testing.assert_close(found, wanted, rtol=1e-10, atol=0)
        plain = unpatch(model).eval()(**inputs).loss
        torch.testing.assert_close(patch(model, label_smoothing=0.1, logits=False)(**inputs).loss.float(), plain)

    def test_class_weights(self, never_formed):
        model = make().train()
        weight = torch.rand(V)
        logits, labels = model(batch()["input_ids"]).logits[:, :-1].reshape(-1, V), batch()["labels"][:, 1:].flatten()
        wanted = cross_entropy(logits, labels, weight.double())
        torch.testing.assert_close(patch(model, class_weight=weight)(**batch()).loss, wanted, rtol=1e-10, atol=0)

    def test_classes_that_the_model_weighs(self, never_formed):
        model, weight = make().train(), torch.rand(V, dtype=torch.float64)
        model.loss_function = lambda logits, labels, **_: cross_entropy(logits.view(-1, V), labels.view(-1), weight)
        before = model(**batch()).loss
        torch.testing.assert_close(patch(model)(**batch()).loss, before, rtol=1e-10, atol=0)
        with pytest.raises(ValueError, match="class_weight: expected None, since the loss of the model weighs"):
            patch(model, class_weight=weight)(**batch())

    def test_no_place_for_them(self):
        model = patch(make(), z_loss=0.1).train()
        model.lm_head.register_forward_hook(lambda *_: None)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with pytest.raises(RuntimeError, match="z_loss: the loss of LlamaForCausalLM is not taken from its output"):
                model(**batch())


class TestFallBack:
    """What isn't the cross-entropy of a linear layer stays right, and says what it costs."""

    def test_hooks(self):
        model = make()
        before, seen = train(model), []
        hook = patch(model).lm_head.register_forward_hook(lambda *all: seen.append(all[-1].shape))
        with pytest.warns(UserWarning, match=r"no plain linear layer \(Linear"):
            agree(train(model), before, 0)
        assert seen == [(3, T, V)]
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # it is said once
            train(model)
        hook.remove()
        assert model(**batch()).logits is None

    def test_another_layer(self):
        model = make("llama")

        class Doubled(nn.Linear):
            def forward(self, x):
                return 2 * super().forward(x)

        model.lm_head.__class__ = Doubled
        before = train(model)
        with pytest.warns(UserWarning, match="Doubled"):
            agree(train(patch(model)), before, 0)

    def test_something_else_with_the_logits(self):
        model = make()
        own = model.loss_function
        model.loss_function = lambda logits, **rest: own(logits=logits + 0.1 * logits.flip(-1), **rest)
        before = train(model)
        with pytest.warns(UserWarning, match="logits are formed for flip"):
            agree(train(patch(model)), before, 1e-6)

    def test_a_loss_that_would_lose_its_gradient(self):
        class Square(torch.autograd.Function):
            @staticmethod
            def forward(ctx, z):
                return (z * z.sum()).mean()

        model = make()
        model.loss_function = lambda logits, **_: Square.apply(logits)
        with pytest.raises(RuntimeError, match="where no gradient is recorded"):
            patch(model).train()(**batch())
        assert "forward" not in vars(model.lm_head)

    @pytest.mark.slow
    def test_compiled(self):
        model = make()
        before = train(model)
        patch(model).compile(backend="aot_eager")
        agree(train(model), before, 1e-6)
        assert model(**batch()).logits is not None


@pytest.mark.slow
def test_compiled_without_its_output_layer(never_formed):
    model = make()
    before = train(model, exact=True)
    patch(model).model.compile(backend="aot_eager")
    agree(train(model), before, 1e-10)


def lora(model, **options):
    peft = pytest.importorskip("peft")
    torch.manual_seed(2)
    found = peft.get_peft_model(model, peft.LoraConfig(init_lora_weights=False, r=2, task_type="CAUSAL_LM", **options))
    return found.double()


class TestAdapters:
    """LoRA by PEFT."""

    def test_on_attention(self, never_formed, monkeypatch):
        model = lora(make("llama"), target_modules=["q_proj", "v_proj"])
        before, added = train(model), []
        monkeypatch.setattr(_engine, "add_product", lambda *all: added.append(all))
        assert patch(model, memory=2000) is model
        found = train(model)
        agree(found, before, 1e-5)
        assert all("lora" in name for name in found[1])
        assert added == []  # no gradient of the frozen output layer is formed
        monkeypatch.undo()
        unpatch(model)
        assert type(model.get_base_model()) is transformers.LlamaForCausalLM

    def test_with_a_trained_output_layer(self, never_formed):
        model = lora(make("llama"), target_modules=["q_proj"], modules_to_save=["lm_head"])
        before = train(model)
        assert any("lm_head" in name for name in before[1])
        agree(train(patch(model)), before, 1e-5)

    def test_on_the_output_layer(self):
        model = lora(make("llama"), target_modules=["q_proj", "lm_head"])
        before = train(model)
        with pytest.warns(UserWarning, match="logits are formed for add"):
            agree(train(patch(model)), before, 1e-5)


class TestModel:
    """A patched model is the model it was."""

    def test_names(self):
        model = make()
        own, keys = type(model), list(model.state_dict())
        patch(model)
        assert isinstance(model, own)
        assert type(model).__name__ == own.__name__
        assert list(model.state_dict()) == keys
        assert inspect.signature(model.forward) == inspect.signature(unpatch(model).forward)
        assert type(model) is own
        assert not [name for name in vars(model) if "steepest" in name]
        assert unpatch(model) is model

    def test_under_accelerate(self, never_formed):
        accelerate = pytest.importorskip("accelerate")
        model = patch(make(dtype=torch.float32)).train()
        accelerator = accelerate.Accelerator(mixed_precision="bf16", cpu=True)
        prepared = accelerator.prepare(model)
        assert prepared(**batch()).logits is None
        with patched(unpatch(prepared), logits=False):  # it was patched before, so that its forward pass asks
            assert prepared(**batch()).logits is None
        patch(prepared)
        model = accelerator.unwrap_model(prepared, keep_fp32_wrapper=False)
        assert model(**batch()).logits is None

    def test_within_a_block(self):
        model = make().train()
        with patched(model) as same:
            assert same is model
            assert model(**batch()).logits is None
            with patched(model, logits=True):
                assert model(**batch()).logits is not None
            assert model(**batch()).logits is None
        assert type(model) is transformers.LlamaForCausalLM

    @pytest.mark.parametrize("again", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
    def test_copies(self, again, never_formed):
        model = patch(make(), z_loss=0.1).train()
        other = again(model)
        with torch.no_grad():
            wanted = model(**batch()).loss
            model.lm_head.weight.zero_()
            assert other(**batch()).loss == wanted
        assert other.get_input_embeddings().weight is other.lm_head.weight
        unpatch(other)
        assert model(**batch()).logits is None
        assert other(**batch()).logits is not None

    def test_saved(self, tmp_path):
        model = patch(make())
        model.save_pretrained(tmp_path)
        loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float64)
        assert type(loaded) is transformers.LlamaForCausalLM
        assert all(torch.equal(each, loaded.state_dict()[name]) for name, each in model.state_dict().items())

    def test_generates(self):
        model = make()
        asked = {"input_ids": batch()["input_ids"], "max_new_tokens": 4, "do_sample": False}
        before = model.generate(**asked)
        assert torch.equal(patch(model).generate(**asked), before)

    def test_checkpointing(self, never_formed):
        model = make()
        before = train(model, exact=True)
        model.gradient_checkpointing_enable()
        agree(train(patch(model)), before, 1e-10)

    def test_autocast(self, never_formed):
        """Against float64: no further away than the model was."""
        model = make("gemma2 softcap", dtype=torch.float32)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            before, after = train(model), train(patch(model))
        truth = train(unpatch(model).double(), exact=True)

        def error(found):
            return sum(float((found[1][name] - truth[1][name]).norm() ** 2) for name in truth[1]) ** 0.5

        assert after[0].dtype == torch.float32
        assert abs(after[0] - truth[0]) <= 1.5 * abs(before[0] - truth[0]) + 1e-3
        assert error(after) <= 1.5 * error(before)

    def test_resized(self, never_formed):
        model = patch(make())
        model.resize_token_embeddings(V + 8)
        agree(train(model), train(unpatch(model), exact=True), 1e-10)


class Ragged(torch.utils.data.Dataset):
    """Rows with from none to all labels, so that means of pieces aren't the mean of the batch."""

    def __len__(self):
        return 16

    def __getitem__(self, index):
        tokens = torch.randint(2, V, (T,), generator=torch.Generator().manual_seed(index))
        return {"input_ids": tokens, "labels": tokens.where(torch.arange(T) > index % T, -100)}


class TestTrainer:
    """Accumulation over pieces, checkpointed layers, the number of items of the whole batch."""

    @pytest.fixture
    def trainer(self, tmp_path):
        pytest.importorskip("accelerate")

        def build(model, **more):
            arguments = transformers.TrainingArguments(
                str(tmp_path),
                max_steps=3,
                per_device_train_batch_size=2,
                gradient_accumulation_steps=2,
                gradient_checkpointing=True,
                learning_rate=0.1,
                optim="sgd",
                lr_scheduler_type="constant",
                logging_steps=1,
                save_strategy="no",
                report_to=[],
                use_cpu=True,
                disable_tqdm=True,
                **more,
            )
            return transformers.Trainer(model, arguments, train_dataset=Ragged(), eval_dataset=Ragged())

        return build

    @pytest.mark.parametrize(
        "family", ["llama", *(pytest.param(name, marks=pytest.mark.slow) for name in ("gpt2", "mixtral", "adapted"))]
    )
    def test_three_steps(self, family, trainer, monkeypatch):
        runs = []
        for change in (lambda model: model, patch):
            if change is patch:
                monkeypatch.setattr(LazyLogits, "formed", None)
            model = make("llama" if family == "adapted" else family, dtype=torch.float32, **NO_DROPOUT.get(family, {}))
            if family == "adapted":
                model = lora(model, target_modules=["q_proj", "v_proj"]).float()
            start = {name: p.detach().clone() for name, p in model.named_parameters()}
            run = trainer(change(model))
            run.train()
            losses = [each["loss"] for each in run.state.log_history if "loss" in each]
            runs.append((losses, {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}))
        (before, reference), (after, found) = runs
        assert after == pytest.approx(before, rel=1e-5)
        assert len(after) == 3
        for name, wanted in reference.items():
            moved = float((wanted - start[name]).norm())
            assert float((found[name] - wanted).norm()) <= 1e-4 * moved + 1e-6 * float(wanted.norm()), name

    def test_half_precision_and_evaluation(self, trainer):
        model = patch(make("llama", dtype=torch.float32))
        run = trainer(model, bf16=True)
        run.train()
        loss = run.evaluate()["eval_loss"]
        predicted = run.predict(Ragged())
        assert predicted.predictions.shape == (16, T, V)
        unpatch(model)
        assert run.evaluate()["eval_loss"] == loss


class TestRefused:
    """What cannot be patched, and options out of range."""

    def test_models(self):
        with pytest.raises(TypeError, match="expected a language model of Transformers, got 'Linear'"):
            patch(nn.Linear(2, 2))
        body = make().model
        with pytest.raises(ValueError, match="expected an output layer over a vocabulary"):
            patch(body)

    @pytest.mark.parametrize(
        "options", [{"z_loss": -1.0}, {"label_smoothing": 2.0}, {"memory": -5}, {"empty": "all"}, {"logits": "yes"}]
    )
    def test_options(self, options):
        model = make()
        with pytest.raises((ValueError, TypeError), match=next(iter(options))):
            patch(model, **options)
        assert type(model) is transformers.LlamaForCausalLM
        with pytest.raises(ValueError, match=r"class_weight: expected shape \(50\)"):
            patch(model, class_weight=torch.ones(3))

    def test_after_accelerate(self):
        model = make()
        model.forward = model.forward
        with pytest.raises(ValueError, match="patch it before accelerate"):
            patch(model)


class TestLazyLogits:
    """The tensor that stands for logits."""

    @pytest.fixture
    def head(self):
        return nn.Linear(4, 5, dtype=torch.float64)

    @pytest.fixture
    def hidden(self):
        return torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)

    @pytest.mark.parametrize(
        "change",
        [
            lambda z: z[..., :-1, :].contiguous().view(-1, 5),
            lambda z: (2 * z / 3)[0],
            lambda z: z[torch.tensor([[True, False, True], [False, True, True]])],
            lambda z: z[:, [0, 2][1]].to(z.device),
            lambda z: torch.tanh(z / 2).mul(2.0).reshape((6, z.size(-1))),
            lambda z: 0.5 * z.mul_(3).tanh_().flatten(0, 1),
            lambda z: (3 * (z + BIAS) - BIAS).add(BIAS[None]).div(4).tanh().mul(2).view(-1, 5),
            lambda z: torch.add(BIAS, z.add_(BIAS) / 2).sub_(0.1 * BIAS)[0],
            lambda z: z.type("torch.DoubleTensor").type(torch.DoubleTensor).type_as(z)[0],
            lambda z: z.type(torch.float64).clone()[torch.tensor([1, 0]), 1:].reshape(-1, 5),
        ],
    )
    def test_cross_entropy(self, change, head, hidden, monkeypatch):
        dense = change(linear(hidden, head.weight, head.bias)).reshape(-1, 5)
        target = torch.arange(len(dense)) % 5
        wanted = cross_entropy(dense, target, ignore_index=1, reduction="sum", label_smoothing=0.2)
        use = Use({})
        lazy = change(LazyLogits.of(head, hidden, use))
        assert lazy.ndim == 2
        assert lazy.dtype == torch.float64
        assert lazy.requires_grad
        found = cross_entropy(lazy, target, ignore_index=1, reduction="sum", label_smoothing=0.2)
        torch.testing.assert_close(found, wanted, rtol=1e-12, atol=0)
        assert (use.fused, use.formed) == (1, [])
        torch.testing.assert_close(torch.stack(list(lazy)), dense, rtol=1e-12, atol=1e-14)
        ours, theirs = (torch.autograd.grad(x, (hidden, *head.parameters())) for x in (found, wanted))
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)

    @pytest.mark.parametrize(
        "change",
        [
            lambda z: z[..., :4],
            lambda z: z.transpose(1, 2).mT.reshape(-1, 5),
            lambda z: z.view(-1, 3),
            lambda z: (z / -2).view(-1, 5),
            lambda z: z.tanh().tanh()[0],
            lambda z: (z / torch.tensor(2.0))[0],
            lambda z: z[None, 0, 0],
            lambda z: torch.cat([z, z], 1)[0],
            lambda z: z.masked_fill_(torch.eye(3, 5) > 0, -2.0)[0],
            lambda z: z.log_softmax(-1).detach()[0],
            lambda z: (z.tanh() + BIAS)[0],
            lambda z: (z + torch.ones(3, 1))[0],
            lambda z: (z - 1.5)[0],
            lambda z: z.type("torch.LongTensor")[0],
            lambda z: z.long()[0],
            lambda z: torch.from_numpy(z.detach().numpy())[0],
            lambda z: torch.tensor(z.tolist())[0],
            lambda z: z.data.to("cpu", copy=True)[0],
            lambda z: torch.stack(list(z))[0][:, [0, 2]],
            lambda z: z.to(memory_format=torch.contiguous_format)[0],
            lambda z: z.sum(-1).reshape(-1, 1),
            lambda z: torch.as_tensor(z.argmax(-1).numpy()),
        ],
    )
    def test_anything_else_forms_them(self, change, head, hidden):
        dense, use = linear(hidden, head.weight, head.bias), Use({})
        lazy = change(LazyLogits.of(head, hidden, use))
        wanted = change(dense)
        assert lazy.shape == wanted.shape
        torch.testing.assert_close(lazy + 0, wanted)
        if wanted.ndim == 2 and wanted.is_floating_point():
            target = torch.zeros(len(wanted), dtype=torch.long)
            torch.testing.assert_close(cross_entropy(lazy, target), cross_entropy(wanted, target))
        assert use.formed

    @pytest.mark.parametrize("word", ["Float", "Double", "Half", "BFloat16"])
    def test_types_by_the_names_of_tensors(self, word, head, hidden):
        kind, use = getattr(torch, f"{word}Tensor"), Use({})
        z, dense = LazyLogits.of(head, hidden, use), linear(hidden, head.weight, head.bias)
        assert z.type() == dense.type() == "torch.DoubleTensor"
        for named in (f"torch.{word}Tensor", kind, kind.dtype):
            changed = z.type(named)
            assert (changed.dtype, use.formed) == (kind.dtype, [])
            torch.testing.assert_close(changed[0, :, 0].clone(), dense.type(named)[0, :, 0])
            use.formed.clear()
        with pytest.raises((ValueError, RuntimeError), match="invalid type"):
            z.type("torch.NoTensor")
        with pytest.raises(RuntimeError, match="device"):
            z.to("nowhere")

    def test_a_bias_gets_its_gradient(self, head, hidden):
        bias, frozen = BIAS.clone().requires_grad_(), nn.Linear(4, 5, dtype=torch.float64).requires_grad_(False)
        target = torch.tensor([0, 4, 2])
        z = 2 * (LazyLogits.of(frozen, hidden.detach(), Use({})) + bias)
        assert z.requires_grad
        dense = 2 * (frozen(hidden.detach()) + bias)
        ours, theirs = (torch.autograd.grad(cross_entropy(each[0], target), bias) for each in (z, dense))
        torch.testing.assert_close(ours, theirs)

    def test_changes_in_place(self, head, hidden):
        z, dense = LazyLogits.of(head, hidden, Use({})), linear(hidden, head.weight, head.bias).detach()
        with torch.no_grad():
            z[0, 0] = 7.0
        dense[0, 0] = 7.0
        torch.testing.assert_close(z.view(-1, 5)[:2] + 0, dense.view(-1, 5)[:2])
        z = LazyLogits.of(head, hidden, Use({}))
        view = z[0]
        for changed in (z, view):
            with pytest.raises(RuntimeError, match="changed in place while there are views"):
                changed.mul_(2)

    def test_what_it_cannot_do_it_refuses(self, head, hidden):
        z = LazyLogits.of(head, hidden, Use({}))
        with pytest.raises(RuntimeError, match="not formed"), torch._C.DisableTorchFunctionSubclass():
            z + 1

    def test_under_autocast_it_has_the_type_of_products(self, head, hidden):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            z = LazyLogits.of(head.float(), hidden.float(), Use({}))
            assert z.dtype == torch.bfloat16
            assert z.float().dtype == torch.float32
            assert (z + 0).dtype == torch.bfloat16

    def test_it_is_the_kernel_that_computes(self, head, hidden, monkeypatch):
        monkeypatch.setattr(_lazy_logits, "linear_cross_entropy", lambda *_, **told: torch.tensor(told["softcap"]))
        z = LazyLogits.of(head, hidden, Use({}))
        assert cross_entropy((z[0] / 4).tanh() * 4, torch.zeros(3, dtype=torch.long)) == 4.0


def test_the_size_of_the_vocabulary_is_the_configurations_where_the_heads_weight_is_no_matrix():
    """Flattened by sharding, or packed."""

    class Packed(nn.Module):
        config = SimpleNamespace(vocab_size=11)

        def __init__(self, *shape):
            super().__init__()
            self.head = nn.ParameterDict({"weight": torch.zeros(*shape)})

        def get_output_embeddings(self):
            return SimpleNamespace(**self.head)

        def forward(self, input_ids, labels=None):
            raise NotImplementedError

    assert [_classes(Packed(44)), _classes(Packed(13, 4))] == [11, 13]


@pytest.mark.parametrize("decay", ["linear", "cosine", "1-sqrt"])
@pytest.mark.parametrize("warm_up", ["linear", "cosine", "1-sqrt"])
@pytest.mark.parametrize("floor", [0.0, 0.1])
def test_wsd_is_that_of_transformers(decay, warm_up, floor):
    """It warms up from the least rate, and its decay ends a step before the end; so does ours with its arguments."""
    sgd = [torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.3) for _ in range(2)]
    settings = {"warmup_type": warm_up, "decay_type": decay, "min_lr_ratio": floor}
    theirs = transformers.get_wsd_schedule(sgd[0], 7, 20, 50, **settings)
    ours = WSD.from_num_steps(sgd[1], 7, 20, 50, **settings)
    for _ in range(60):
        assert sgd[1].param_groups[0]["lr"] == pytest.approx(sgd[0].param_groups[0]["lr"], rel=1e-12, abs=1e-15)
        for optimizer, schedule in zip(sgd, (theirs, ours)):
            optimizer.step()
            schedule.step()
    for wrong in ({"decay_type": "square"}, {"warmup_type": "sqrt"}, {"num_cycles": 1.5}):
        with pytest.raises(ValueError, match="expected one of"):
            WSD.from_num_steps(sgd[1], 7, 20, 50, **wrong)
