"""Models that an earlier mllm wrote, `written_before/`: ours with LoRA, and an export in transformers' layout, in bfloat16.

`expected.json` holds what they answered then: the prompt's ids, and the first logits behind it.
"""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import mllm
from mllm.checkpoint.llava import import_llava
from mllm.checkpoint.ours import read_config
from mllm.conversation.schema import ImagePart, Message, TextPart
from mllm.inference.features import ImageFeatures
from mllm.inference.request import PromptImage

BEFORE = Path(__file__).parent / "written_before"
EXPECTED = json.loads((BEFORE / "expected.json").read_text(encoding="utf-8"))


def answer(model, processor):
    """Ids of a prompt with an image, and the logits of the token behind it."""
    question = Message(role="user", content=(ImagePart(), TextPart(text="what is this")))
    rendered = processor.render([question], [(12, 20)], generation=True)
    ids = torch.tensor([rendered.input_ids])
    images = [PromptImage(BEFORE / "image.png", visual) for visual in rendered.visuals]
    with torch.inference_mode():
        embeddings = model.embed_features(ids, ImageFeatures(model, processor).of(images))
        return ids[0].tolist(), model.language_model(inputs_embeds=embeddings, use_cache=False).logits[0, -1].float()


@pytest.mark.parametrize("name", ["lora", "exported"])
def test_a_model_written_before_answers_as_it_did(name):
    model, processor = mllm.load(BEFORE / name)
    ids, logits = answer(model, processor)
    expected = torch.tensor(EXPECTED[name]["logits"])
    assert ids == EXPECTED[name]["input_ids"]
    assert torch.allclose(logits[: len(expected)], expected, atol=1e-5)
    assert model.adapters.keys() == ({"language_model"} if name == "lora" else set())


def test_a_model_written_before_is_written_with_the_same_names_and_config(tmp_path):
    mllm.save(tmp_path / "again", *mllm.load(BEFORE / "lora", dtype="bfloat16"))
    before, again = read_config(BEFORE / "lora"), read_config(tmp_path / "again")
    for part in ("vision_config", "text_config"):  # transformers fills in what its releases add
        before[part].pop("transformers_version", None)
        again[part] = {key: value for key, value in again[part].items() if key in before[part]}
    assert again == before
    files = [directory / "model.safetensors" for directory in (BEFORE / "lora", tmp_path / "again")]
    assert header(files[0]) == header(files[1])


def header(file):
    """Name → dtype and shape of a safetensors file."""
    opened = file.read_bytes()
    entries = json.loads(opened[8 : 8 + int.from_bytes(opened[:8], "little")])
    return {name: (entry["dtype"], entry["shape"]) for name, entry in entries.items() if name != "__metadata__"}


def test_an_export_written_before_is_imported(tmp_path):
    import_llava(BEFORE / "exported", tmp_path / "ours", None, None)
    assert torch.allclose(
        answer(*mllm.load(tmp_path / "ours"))[1], answer(*mllm.load(BEFORE / "exported"))[1], atol=1e-6
    )


@pytest.mark.parametrize("module_more", [False, True])
def test_a_llava_directory_is_read_by_name_in_every_layout_of_its_files(tmp_path, monkeypatch, module_more):
    """As transformers writes them, as its module calls them, and with the module more that CLIP's encoder had."""
    shutil.copytree(BEFORE / "exported", tmp_path / "model")
    weights = load_file(tmp_path / "model" / "model.safetensors")
    renamed = {}
    for name, tensor in weights.items():
        name = name.replace("vision_tower.", "vision_tower.vision_model.") if module_more else f"model.{name}"
        renamed[name.replace("model.language_model.model.", "model.language_model.")] = tensor
    save_file(renamed, tmp_path / "model" / "model.safetensors", metadata={"format": "pt"})
    monkeypatch.setattr("mllm.checkpoint.llava._loaded_by_transformers", None)
    _, logits = answer(*mllm.load(tmp_path / "model"))
    assert torch.allclose(logits[:24], torch.tensor(EXPECTED["exported"]["logits"]), atol=1e-5)


def test_a_llava_directory_whose_files_hold_a_tied_head_as_well_is_loaded_by_transformers(tmp_path):
    shutil.copytree(BEFORE / "exported", tmp_path / "model")
    weights = load_file(tmp_path / "model" / "model.safetensors")
    weights["language_model.lm_head.weight"] = weights["language_model.model.embed_tokens.weight"].clone()
    save_file(weights, tmp_path / "model" / "model.safetensors", metadata={"format": "pt"})
    _, logits = answer(*mllm.load(tmp_path / "model"))
    assert torch.allclose(logits[:24], torch.tensor(EXPECTED["exported"]["logits"]), atol=1e-5)
