"""Models of transformers in directories: written as transformers reads them, and refused where they aren't whole."""

import json

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import mllm
from mllm.checkpoint import public
from mllm.checkpoint.start import begin_model
from mllm.errors import UserError
from mllm.model.lora import add_lora
from mllm.model.public import wrap
from mllm.model.settings import LoraSettings, ModelSettings
from mllm.settings import validate_settings
from tests.helpers.public_models import tiny
from tests.helpers.samples import batch_of, sample
from tests.helpers.tiny import save_image


@pytest.fixture(scope="module")
def wrapped():
    return wrap(*tiny("rows_and_columns"))


@pytest.fixture
def directory(wrapped, tmp_path):
    public.write(tmp_path / "model", *wrapped, wrapped[0].state_dict())
    return tmp_path / "model"


def batch_for(processor, root):
    return batch_of([sample("one", "what is this", "a cat", [save_image(root / "a.png")])], processor, "none", 2000)


def test_what_is_written_has_equal_logits_here_and_in_transformers_alone(wrapped, directory, tmp_path):
    model, processor = wrapped
    loaded, reader = mllm.load(directory)
    batch = batch_for(reader, tmp_path)
    theirs = transformers.AutoModelForImageTextToText.from_pretrained(directory)
    with torch.no_grad():
        expected = model.logits(batch)
        assert torch.equal(loaded.logits(batch), expected)
        alone = theirs.eval()(input_ids=batch.input_ids, **batch.media).logits
    assert torch.allclose(alone, expected, rtol=0, atol=1e-5)
    assert reader.day == processor.day and reader.box_format == processor.box_format


def test_low_rank_updates_are_folded_into_what_is_written(wrapped, tmp_path):
    model, processor = wrap(*tiny("rows_and_columns"))
    for part in ("language_model", "vision_encoder"):
        add_lora(model, LoraSettings(rank=2, alpha=4, dropout=0.0), part)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    model.eval()
    public.write(tmp_path / "model", model, processor, model.state_dict())
    loaded, reader = mllm.load(tmp_path / "model")
    batch = batch_for(reader, tmp_path)
    with torch.no_grad():
        assert torch.allclose(loaded.logits(batch), model.logits(batch), rtol=0, atol=1e-5)
        assert not torch.allclose(loaded.logits(batch), wrapped[0].logits(batch), rtol=0, atol=1e-3)
    assert not loaded.adapters and not any(
        "lora" in name for name in load_file(tmp_path / "model" / "model.safetensors")
    )


def test_weights_that_are_missing_or_unused_are_refused(directory):
    file = directory / "model.safetensors"
    weights = load_file(file)
    first = sorted(weights)[0]
    save_file({name: tensor for name, tensor in weights.items() if name != first}, file, {"format": "pt"})
    with pytest.raises(UserError, match=r"1 weight\(s\) missing"):
        public.load(directory)
    save_file({**weights, "model.another.weight": torch.zeros(2)}, file, {"format": "pt"})
    with pytest.raises(UserError, match=r"1 weight\(s\) unused, such as model\.another\.weight"):
        public.load(directory)


def test_a_directory_with_code_of_its_own_or_without_a_processor_is_refused(directory):
    config = json.loads((directory / "config.json").read_text())
    own = config | {"auto_map": {"AutoModel": "modeling.Own"}, "model_type": "someones_own"}
    (directory / "config.json").write_text(json.dumps(own))
    with pytest.raises(UserError, match="brings code of its own"):
        mllm.load(directory)
    (directory / "config.json").write_text(json.dumps(config))
    (directory / "processor_config.json").unlink()
    with pytest.raises(UserError, match="processor"):
        mllm.load(directory)


def test_settings_of_parts_beside_a_model_of_transformers_are_refused(directory):
    def begin(**values):
        begin_model(validate_settings(ModelSettings, {"init_from": str(directory), **values}, "test"), {})

    with pytest.raises(UserError, match=r"model\.image describes a model that is put together from parts"):
        begin(image={"fit": "crop"})
    with pytest.raises(UserError, match=r"model\.prompt_format is chatml, but .* its own chat template"):
        begin(prompt_format="chatml")


def test_a_directory_without_weights_begins_with_drawn_ones_where_that_is_asked(directory, tmp_path):
    (directory / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"has no weights .*model.random_weights: true"):
        public.load(directory)
    asked = validate_settings(ModelSettings, {"init_from": str(directory), "random_weights": True}, "test")
    one, again, other = (begin_model(asked, {}, seed=seed).filled()[0].state_dict() for seed in (3, 3, 4))
    assert all(torch.equal(tensor, again[name]) for name, tensor in one.items())
    drawn = {name for name, tensor in one.items() if not torch.equal(tensor, other[name])}
    assert {"peer.lm_head.weight", "peer.model.vision_model.encoder.layers.0.mlp.fc1.weight"} <= drawn
    with pytest.raises(UserError, match="random_weights draws those of a model of transformers: name its directory"):
        parts = {"vision_encoder": {"path": "eyes"}, "language_model": {"path": "words"}}
        validate_settings(ModelSettings, parts | {"random_weights": True}, "test")
