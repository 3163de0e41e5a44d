"""Adapters in peft's layout: peft and transformers alone make the trained model of base and adapter, to the logits."""

import json

import peft
import pytest
import torch
import transformers
import yaml
from PIL import Image
from safetensors.torch import load_file

import mllm
from mllm.checkpoint import ours, public
from mllm.checkpoint.card import model_card
from mllm.checkpoint.export import export
from mllm.checkpoint.start import build
from mllm.errors import UserError
from mllm.model.lora import add_lora, linear_layers
from mllm.model.public import wrap
from mllm.model.quantized_layers import dequantize_linears, quantize_linears
from mllm.model.settings import LoraSettings
from tests.helpers.public_models import tiny
from tests.helpers.samples import batch_of, sample
from tests.helpers.tiny import save_image, tiny_settings

WORDS, EYES = LoraSettings(rank=2, alpha=4, dropout=0.0), LoraSettings(rank=3, alpha=3, dropout=0.0)
PROJECTORS = ("connector", "mm_soft", "multi_modal_projector.linear")


def learn(model, also=()):
    """Let the factors that begin with zeros, and the weights with `also` in their names, become something else."""
    torch.manual_seed(5)
    for name, parameter in model.named_parameters():
        if "lora_B" in name or any(part in name for part in also):
            parameter.data.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def batch_for(processor, root):
    return batch_of([sample("one", "what is this", "a cat", [save_image(root / "a.png")])], processor, "none", 2000)


def by_peft(base, adapter):
    return peft.PeftModel.from_pretrained(
        transformers.AutoModelForImageTextToText.from_pretrained(base), adapter
    ).eval()


def public_run(root, kind="lora", also=(), family="rows_and_columns"):
    """A base, and a model that is trained over it: what its run writes, and the model."""
    model, processor = wrap(*tiny(family))
    public.write(root / "base", model, processor, model.state_dict())
    add_lora(model, WORDS, "language_model", kind)
    if kind != "qlora":
        add_lora(model, EYES, "vision_encoder", kind)
    learn(model, also)
    public.write(root / "run", model, processor, model.state_dict())
    settings = {"model": {"init_from": str(root / "base")}, "data": {"recipe": str(root / "gone.yaml")}}
    (root / "run" / "run_config.yaml").write_text(yaml.safe_dump(settings))
    return model, processor


@pytest.mark.parametrize(
    "family,kind",
    [
        ("rows_and_columns", "dora"),
        *((family, "lora") for family in ("rows_and_columns", "several_axes", "whole_samples", "spans_and_windows")),
    ],
)
def test_an_adapter_of_a_public_model_has_our_logits_by_peft_alone(tmp_path, family, kind):
    model, processor = public_run(tmp_path, kind, PROJECTORS, family=family)
    export(str(tmp_path / "run"), tmp_path / "adapter", "peft")
    batch = batch_for(processor, tmp_path)
    types = {model.carried.token_types: batch.token_types} if model.carried.token_types else {}
    with torch.no_grad():
        theirs = by_peft(tmp_path / "base", tmp_path / "adapter")(input_ids=batch.input_ids, **batch.media, **types)
        assert torch.allclose(theirs.logits, model.logits(batch), rtol=0, atol=1e-5)
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(tmp_path / "base") and config["use_dora"] == (kind == "dora")
    kept = config["modules_to_save"] or ()
    assert all(any(own in name for own in PROJECTORS) for name in kept)
    assert bool(kept) == (family != "several_axes")  # whose projector is within its encoder
    card = (tmp_path / "adapter" / "README.md").read_text()
    assert f"an adapter for {tmp_path / 'base'}\n" in card and "library_name: peft" in card and "base_model" not in card
    assert "\nbase_model: OWNER/NAME\n" in model_card(tmp_path / "run", model, processor, "peft", "OWNER/NAME")
    transformers.AutoTokenizer.from_pretrained(tmp_path / "adapter")


def test_a_base_that_the_adapter_was_not_trained_over_is_refused(tmp_path):
    _, processor = public_run(tmp_path)
    other = learn(wrap(*tiny("rows_and_columns"))[0], also=("text_model.layers",))
    public.write(tmp_path / "other", other, processor, other.state_dict())
    with pytest.raises(UserError, match=r"other is not what the adapter was trained over: .*q_proj"):
        export(str(tmp_path / "run"), tmp_path / "adapter", "peft", base=str(tmp_path / "other"))
    strange = wrap(*tiny("whole_samples"))
    public.write(tmp_path / "strange", *strange, strange[0].state_dict())
    with pytest.raises(UserError, match="strange is no base of this model"):
        export(str(tmp_path / "run"), tmp_path / "adapter", "peft", base=str(tmp_path / "strange"))
    with pytest.raises(UserError, match="no low-rank updates to make an adapter of"):
        export(str(tmp_path / "base"), tmp_path / "adapter", "peft", base=str(tmp_path / "base"))
    assert not (tmp_path / "adapter").exists()


def test_four_bits_of_a_public_model_are_merged_and_make_an_adapter(tmp_path, caplog):
    model, processor = public_run(tmp_path, "qlora")
    batch = batch_for(processor, tmp_path)
    with torch.no_grad():
        merged = mllm.load(tmp_path / "run")[0].logits(batch)
        assert torch.allclose(merged, model.logits(batch), rtol=0, atol=1e-4)
    export(str(tmp_path / "run"), tmp_path / "adapter", "peft")
    assert "trained over weights in 4 bits" in caplog.text
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config["modules_to_save"] is None
    base = wrap(*tiny("rows_and_columns"))[0]
    decoder = base.adapted_module("language_model")
    quantize_linears(decoder, linear_layers(base, "language_model"))
    dequantize_linears(decoder)
    rounded = peft.PeftModel.from_pretrained(base.peer, tmp_path / "adapter").eval()
    with torch.no_grad():
        theirs = rounded(input_ids=batch.input_ids, **batch.media).logits
        assert torch.allclose(theirs, model.logits(batch), rtol=0, atol=1e-4)


def assembled(parts, root, also=()):
    model, processor = build(tiny_settings(parts, "siglip", "chatml"))
    add_lora(model, WORDS, "language_model")
    add_lora(model, EYES, "vision_encoder")
    learn(model, also)
    mllm.save(root / "run", model, processor)
    return model, processor


def test_an_adapter_of_a_model_from_parts_has_our_logits_over_its_base(tiny_parts, tmp_path):
    model, processor = assembled(tiny_parts, tmp_path, also=("projector",))
    export(str(tmp_path / "run"), tmp_path / "base", "hf", without_lora=True)
    with pytest.raises(UserError, match=r"which model of transformers its adapter is for: name it by --base"):
        export(str(tmp_path / "run"), tmp_path / "adapter", "peft")
    export(str(tmp_path / "run"), tmp_path / "adapter", "peft", base=str(tmp_path / "base"))
    # A base whose projector is another: the run's goes along whole.
    first, _ = ours.load(tmp_path / "run")
    learn(first, also=("projector",))
    mllm.save(tmp_path / "first", first, processor)
    export(str(tmp_path / "first"), tmp_path / "untrained", "hf", without_lora=True)
    export(str(tmp_path / "run"), tmp_path / "with_projector", "peft", base=str(tmp_path / "untrained"))
    names = load_file(tmp_path / "with_projector" / "adapter_model.safetensors").keys()
    assert sum("multi_modal_projector" in name for name in names) == 4
    batch = batch_for(processor, tmp_path)
    pixels = {"pixel_values": processor.pixels(Image.open(tmp_path / "a.png"))[None]}
    with torch.no_grad():
        expected = model.logits(batch)
        for base, adapter in (("base", "adapter"), ("untrained", "with_projector")):
            theirs = by_peft(tmp_path / base, tmp_path / adapter)(input_ids=batch.input_ids, **pixels).logits
            assert torch.allclose(theirs, expected, rtol=0, atol=1e-5), base
    assert transformers.AutoProcessor.from_pretrained(tmp_path / "adapter").chat_template


def test_words_that_were_trained_and_are_tied_are_refused(tiny_parts, tmp_path):
    model, processor = assembled(tiny_parts, tmp_path)
    export(str(tmp_path / "run"), tmp_path / "base", "hf", without_lora=True)
    learn(model, also=("embed_tokens",))
    mllm.save(tmp_path / "later", model, processor)
    with pytest.raises(UserError, match=r"embed_tokens.weight differs .* shared by embeddings and head"):
        export(str(tmp_path / "later"), tmp_path / "adapter", "peft", base=str(tmp_path / "base"))
