"""What learns and how: full, from a layer, LoRA, DoRA, QLoRA; saved, loaded and merged with the same logits."""

import json

import pytest
import torch
from safetensors.torch import load_file

from mllm.checkpoint import ours as checkpoint
from mllm.checkpoint.start import build
from mllm.errors import UserError
from mllm.model.lora import add_lora, merge_lora
from mllm.model.quantized_layers import dequantize_linears, is_quantized, quantize_linears
from mllm.model.settings import LanguageModelSettings, LoraSettings, TrainableSettings
from mllm.model.trainable import PartCount, apply_policy, check_policy, policy_table
from mllm.settings import validate_settings
from tests.helpers.samples import batch_of, loss_and_gradients
from tests.helpers.tiny import tiny_settings

LORA = {"rank": 4, "alpha": 8, "dropout": 0.0}
LINEAR_LAYERS = 14  # of the tiny language model: 7 in each of 2 layers


def policy(**values):
    return TrainableSettings(**{"lora": LORA, "vision_encoder_lora": LORA, **values})


@pytest.fixture
def model_and_processor(tiny_parts):
    return build(tiny_settings(tiny_parts))


def learning(model):
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def disturb(model):
    """Move what learns, so that updates aren't the zeros they start from."""
    torch.manual_seed(1)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data.add_(0.05 * torch.randn_like(parameter))
    return model.eval()


KINDS = [
    {"language_model": "lora"},
    {"language_model": "dora"},
    {"language_model": "qlora"},
    {"language_model": "qlora", "lora": {**LORA, "targets": ["q_proj"]}},
    {"vision_encoder": "lora"},
    {"vision_encoder": "lora", "language_model": "dora"},
]


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_adapted_model_loads_merges_and_serves_with_equal_logits(
    tiny_parts, model_and_processor, samples, tmp_path, kind
):
    model, processor = model_and_processor
    apply_policy(model, policy(**kind))
    disturb(model)
    checkpoint.save(tmp_path / "model", model, processor)
    loaded, _ = checkpoint.load(tmp_path / "model")
    batch = batch_of(samples, processor, "samples")
    with torch.no_grad():
        expected = model.logits(batch)
        assert torch.equal(loaded.logits(batch), expected)
        merge_lora(loaded)
        assert not loaded.adapters and not any("lora_" in name for name, _ in loaded.named_parameters())
        assert not any(is_quantized(module) for module in loaded.modules())
        assert torch.allclose(loaded.logits(batch), expected, atol=1e-5)
        words = build_on(tiny_parts, tmp_path / "model").language_model
        ids = torch.arange(10)[None]
        assert torch.allclose(words(input_ids=ids).logits, model.language_model(input_ids=ids).logits, atol=1e-5)


def build_on(tiny_parts, words):
    """A model whose language model is taken from the directory `words`, one of ours."""
    settings = tiny_settings(tiny_parts)
    return build(settings.model_copy(update={"language_model": LanguageModelSettings(path=str(words))}))[0]


def test_qlora_weights_take_4_bits_on_disk(model_and_processor, tmp_path):
    model, processor = model_and_processor
    checkpoint.save(tmp_path / "before", model, processor)
    counts = apply_policy(model, policy(language_model="qlora"))
    checkpoint.save(tmp_path / "after", model, processor)
    weights = load_file(tmp_path / "after" / "model.safetensors")
    packed = [tensor for name, tensor in weights.items() if name.endswith("base_layer.weight")]
    plain = sum(
        t.numel() for n, t in load_file(tmp_path / "before" / "model.safetensors").items() if "_proj.weight" in n
    )
    assert len(packed) == LINEAR_LAYERS and all(t.dtype == torch.uint8 for t in packed)
    assert counts[2].total - counts[2].trainable == sum(p.numel() for p in build_again(tmp_path).parameters())
    assert sum(t.numel() for t in packed) < plain / 2


def build_again(tmp_path):
    return checkpoint.load(tmp_path / "before")[0].language_model


def test_qlora_gradients_after_an_evaluation_are_those_of_lora_on_the_rounded_weights(tiny_parts, samples):
    torch.manual_seed(0)  # the image token's row of the embedding is drawn from the global generator
    model, processor = build(tiny_settings(tiny_parts))
    apply_policy(model, policy(language_model="qlora"))
    disturb(model)
    batch = batch_of(samples, processor, "samples")
    with torch.no_grad():
        model(batch)
    loss, gradients = loss_and_gradients(model.train(), [batch])
    torch.manual_seed(0)
    plain, _ = build(tiny_settings(tiny_parts))
    names = [n for n, m in plain.language_model.named_modules() if n.endswith("_proj")]
    quantize_linears(plain.language_model, names)
    dequantize_linears(plain.language_model)
    apply_policy(plain, policy(language_model="lora"))
    plain.load_state_dict({n: p.data for n, p in model.named_parameters() if p.requires_grad}, strict=False)
    expected_loss, expected = loss_and_gradients(plain.train(), [batch])
    assert loss == pytest.approx(expected_loss, rel=1e-5)
    assert gradients.keys() == expected.keys()
    for name, gradient in gradients.items():
        assert torch.allclose(gradient, expected[name], rtol=1e-3, atol=1e-5), name


def test_targets_choose_layers_by_their_full_path(model_and_processor):
    model, _ = model_and_processor
    apply_policy(model, policy(language_model="lora", lora={**LORA, "targets": ["q_proj", "layers.1.mlp.*"]}))
    adapted = {name.split(".lora_")[0] for name in learning(model) if "lora_" in name}
    prefix = "language_model.model.layers"
    assert adapted == {
        *(f"{prefix}.{layer}.self_attn.q_proj" for layer in (0, 1)),
        *(f"{prefix}.1.mlp.{name}_proj" for name in ("gate", "up", "down")),
    }


@pytest.mark.parametrize(("part", "section"), [("language_model", "lora"), ("vision_encoder", "vision_encoder_lora")])
def test_a_target_that_matches_nothing_is_refused_with_what_is_there(model_and_processor, part, section):
    model, _ = model_and_processor
    message = (
        rf"trainable.{section}.targets: 'lm_head' matches none of .* linear layers of {part}; they end in .*q_proj"
    )
    with pytest.raises(UserError, match=message):
        apply_policy(model, policy(**{part: "lora", section: {**LORA, "targets": ["q_proj", "lm_head"]}}))


def test_encoder_learns_from_a_layer_on_and_lora_keeps_out_of_layers_behind_the_features(tiny_parts):
    model, _ = build(tiny_settings(tiny_parts))  # features of layer -2 of 3: layers 0 and 1
    apply_policy(model, policy(vision_encoder="full", vision_encoder_from_layer=1))
    names = {name for name in learning(model) if name.startswith("vision_encoder")}
    assert names and all(".layers.1." in name for name in names)
    apply_policy(model, policy(vision_encoder="lora"))
    names = {name for name in learning(model) if name.startswith("vision_encoder")}
    assert names and all("lora_" in n and (".layers.0." in n or ".layers.1." in n) for n in names)
    with pytest.raises(UserError, match="vision_encoder_from_layer is 2, but the features come from layers 0 to 1"):
        apply_policy(model, policy(vision_encoder="full", vision_encoder_from_layer=2))
    with pytest.raises(UserError, match="it goes with vision_encoder: full"):
        validate_settings(TrainableSettings, {"vision_encoder_from_layer": 1}, "test")


def test_the_language_model_learns_from_a_layer_on_and_all_behind_its_layers_with_it(tiny_parts):
    model, _ = build(tiny_settings(tiny_parts))
    (counted,) = (
        count
        for count in apply_policy(model, policy(language_model="full", language_model_from_layer=1))
        if count.part == "language_model"
    )
    names = {name for name in learning(model) if name.startswith("language_model")}
    every = {name for name, _ in model.named_parameters() if name.startswith("language_model")}
    assert every - names == {name for name in every if ".layers.0." in name} != set()
    assert counted.kind == "full from layer 1"
    with pytest.raises(UserError, match="language_model_from_layer is 2, but the language model has layers 0 to 1"):
        apply_policy(model, policy(language_model="full", language_model_from_layer=2))
    with pytest.raises(UserError, match="it goes with language_model: full"):
        validate_settings(TrainableSettings, {"language_model_from_layer": 1, "language_model": "lora"}, "test")


@pytest.mark.parametrize("kind", [*KINDS[:3], KINDS[4], {"vision_encoder": "full", "language_model": "full"}], ids=str)
def test_every_tensor_that_learns_gets_a_gradient_with_gradient_checkpointing(model_and_processor, samples, kind):
    model, processor = model_and_processor
    apply_policy(model, policy(**kind))
    batch = batch_of(samples, processor, "samples")
    loss, expected = loss_and_gradients(model.train(), [batch])
    model.checkpoint_activations()
    assert model.vision_encoder.model.is_gradient_checkpointing == ("vision_encoder" in kind)
    checkpointed_loss, gradients = loss_and_gradients(model, [batch])
    assert checkpointed_loss == loss and gradients.keys() == learning(model)
    assert all(torch.allclose(gradient, expected[name], atol=1e-6) for name, gradient in gradients.items())


def test_updates_go_on_learning_for_the_same_policy_and_are_merged_for_another(model_and_processor, samples):
    model, processor = model_and_processor
    apply_policy(model, policy(language_model="qlora"))
    batch = batch_of(samples, processor, "samples")
    with torch.no_grad():
        expected = disturb(model).logits(batch)
        apply_policy(model, policy(language_model="qlora"))
        assert torch.equal(model.logits(batch), expected)
        apply_policy(model, policy(language_model="lora"))
        assert model.adapters["language_model"]["kind"] == "lora"
        assert torch.allclose(model.logits(batch), expected, atol=1e-5)  # new updates start from zero
        apply_policy(model, policy(language_model="full"))
        assert not model.adapters and torch.allclose(model.logits(batch), expected, atol=1e-5)


def test_a_tensor_that_learns_against_the_policy_or_fails_to_stops_the_run(model_and_processor):
    model, _ = model_and_processor
    wanted = policy(vision_encoder="lora", language_model="dora")
    apply_policy(model, wanted)
    norm = next(p for n, p in model.language_model.named_parameters() if "input_layernorm" in n)
    norm.requires_grad_(True)
    with pytest.raises(RuntimeError, match=r"input_layernorm.* would learn, but trainable.language_model is dora"):
        check_policy(model, wanted)
    norm.requires_grad_(False)
    model.adapted_module("vision_encoder").requires_grad_(False)
    with pytest.raises(RuntimeError, match=r"lora_.* would not learn, but trainable.vision_encoder is lora"):
        check_policy(model, wanted)


def test_the_table_says_how_each_part_learns_and_at_what_rate(model_and_processor):
    model, _ = model_and_processor
    counts = apply_policy(model, policy(language_model="qlora"))
    rates = {"language_model": (2e-4, 0.1), "projector": (2e-5, 0.0), "vision_encoder": (1e-6, 0.0)}
    lines = policy_table(counts, rates).splitlines()
    assert lines[1].split() == ["vision_encoder", "frozen", f"{counts[0].total:,}", "0"]
    assert lines[3].split()[1:4] == ["qlora,", "rank", "4"] and lines[3].split()[-2:] == ["0.0002", "0.1"]
    assert "learning rate" in lines[0] and "learning rate" not in policy_table([PartCount("projector", 1, 1)])


def test_a_checkpoint_from_before_the_other_kinds_still_loads(model_and_processor, tmp_path):
    model, processor = model_and_processor
    add_lora(model, LoraSettings(**LORA))
    checkpoint.save(tmp_path / "model", model, processor)
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    config["lora"] = {k: v for k, v in config.pop("adapters")["language_model"].items() if k in LORA}
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    loaded, _ = checkpoint.load(tmp_path / "model")
    assert loaded.adapters == model.adapters
    assert len(loaded.token_embeddings()) == 2
