"""A new projector learns words before the language model is run."""

import json
import logging
import math
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import save_file
from torch.nn.functional import normalize

from mllm.checkpoint.start import build
from mllm.data.dataset import Mixture
from mllm.data.recipe import load_recipe
from mllm.errors import UserError
from mllm.finetune.calibration import (
    answers_about_one,
    calibrate_projector,
    learn_words,
    placed,
    read_word_features,
    words_of,
)
from mllm.model.settings import ProjectorSettings
from mllm.settings import validate_settings
from tests.helpers.tiny import tiny_settings

KINDS = [("mlp2x_gelu", {}), ("resampler", {"tokens": 4})]


def tokenize(word):
    return [ord(letter) - ord("a") for letter in word]


def test_a_rare_word_of_a_text_counts_more_than_one_that_all_texts_share():
    embeddings = torch.eye(26)
    words = words_of(["A b a", "a c", "a!", "a"], embeddings, tokenize)
    assert words.own.tolist() == [[0, 1], [0, 2], [0, 0], [0, 0]]
    assert torch.allclose(words.shares.sum(1), torch.ones(4)) and words.shares[2].tolist() == [1.0, 0.0]
    common, rare = words.shares[0].tolist()
    assert rare / common == pytest.approx(math.log(1 + 4 / 1) / math.log(1 + 4 / 4))
    assert torch.allclose(words.directions, normalize(torch.eye(26)[:3] - 1 / 26, dim=1))


@pytest.mark.parametrize("kind,given", KINDS)
def test_image_tokens_come_to_mean_the_words_of_their_images_at_the_scale_of_words(tiny_parts, kind, given):
    model, _ = build(tiny_settings(tiny_parts, kind=kind, **given))
    words = model.language_model.get_input_embeddings().weight.detach()
    torch.manual_seed(0)
    seen = torch.randn(6, model.vision_encoder.width)[torch.arange(96) % 6]
    features = seen[:, None] + 0.1 * torch.randn(96, 16, model.vision_encoder.width)
    targets = words_of([str(n % 6) for n in range(96)], words, lambda word: [40 + int(word)])
    model.projector.calibrate(features, words)

    def right():
        with torch.no_grad():
            means = normalize(model.projector.project(features).mean(1) - words.mean(0), dim=1)
        scores = means @ normalize(words[40:46] - words.mean(0), dim=1).T
        return (scores.argmax(1) == torch.arange(96) % 6).float().mean()

    assert right() < 0.6
    state = {name: tensor.clone() for name, tensor in model.projector.state_dict().items()}
    learn_words(model.projector, features, targets, words, 60, seed=0)
    assert right() > 0.95
    distance = (words - words.mean(0)).norm(dim=1).mean()
    far = (model.projector.project(features) - words.mean(0)).norm(dim=2).mean()
    assert 0.5 < far / distance < 1.5
    learned = {name: tensor.clone() for name, tensor in model.projector.state_dict().items()}
    model.projector.load_state_dict(state)
    learn_words(model.projector, features, targets, words, 60, seed=0)
    assert all(torch.equal(tensor, learned[name]) for name, tensor in model.projector.state_dict().items())


def mixture_of(recipe, tmp_path, kinds):
    """The mixture of a recipe's samples about `kinds` images each, at most."""
    (source,) = yaml.safe_load(recipe.read_text())["sources"]
    lines = Path(source["path"]).read_text().splitlines()
    kept = [line for line in lines if len(json.loads(line).get("images", [])) in kinds]
    (tmp_path / "some.jsonl").write_text("\n".join(kept))
    made = {"name": "some", "sources": [source | {"path": str(tmp_path / "some.jsonl")}]}
    (tmp_path / "some.yaml").write_text(yaml.safe_dump(made))
    return Mixture(load_recipe(str(tmp_path / "some.yaml")), 0, False)


def test_words_are_those_of_all_answers_about_an_image_alone(tiny_parts, recipe, tmp_path, caplog):
    mixture = mixture_of(recipe, tmp_path, (0, 1))
    answers = answers_about_one(mixture)
    assert set(answers) == set(mixture.images()) and all(answers.values())
    model, processor = build(tiny_settings(tiny_parts))
    words = model.language_model.get_input_embeddings().weight.detach()
    scaled = ProjectorSettings(calibration_images=8)
    taught = scaled.model_copy(update={"word_epochs": 2})
    calibrate_projector(model.projector, model.vision_encoder, words, processor, mixture, scaled)
    before = {name: tensor.clone() for name, tensor in model.projector.state_dict().items()}
    fresh, _ = build(tiny_settings(tiny_parts))
    with caplog.at_level(logging.INFO):
        calibrate_projector(fresh.projector, fresh.vision_encoder, words, processor, mixture, taught)
    assert f"learned the words of {len(answers)} images" in caplog.text
    after = fresh.projector.state_dict()
    assert torch.equal(before["feature_mean"], after["feature_mean"])
    assert not torch.equal(before["linear_2.weight"], after["linear_2.weight"])


def test_features_of_words_are_learned_beside_those_of_images(tiny_parts, recipe, tmp_path):
    mixture = mixture_of(recipe, tmp_path, (0, 1))
    model, processor = build(tiny_settings(tiny_parts))
    words = model.language_model.get_input_embeddings().weight.detach()
    width = model.vision_encoder.width
    known = 9.0 * torch.eye(width)[:3]
    path = tmp_path / "words.safetensors"
    save_file({"features": known}, path, {"words": json.dumps(["cat", "dog", "fish"])})
    settings = ProjectorSettings(calibration_images=8, word_epochs=120, word_features=str(path))
    calibrate_projector(model.projector, model.vision_encoder, words, processor, mixture, settings)
    neutral = words.mean(0)
    told = torch.stack(
        [words[processor.tokenizer.encode(f" {w}", add_special_tokens=False)].mean(0) for w in ("cat", "dog", "fish")]
    )
    with torch.no_grad():
        seen = model.projector.project(known[:, None].expand(-1, 16, -1)).mean(1)
    assert torch.equal(
        (normalize(seen - neutral, dim=1) @ normalize(told - neutral, dim=1).T).argmax(1), torch.arange(3)
    )
    for changes, message in (
        ({"features": known[:, 1:].contiguous()}, f"this encoder's are {width} wide"),
        ({"others": known}, "holds no features with words"),
    ):
        save_file(changes, path, {"words": json.dumps(["cat", "dog", "fish"])})
        with pytest.raises(UserError, match=message):
            read_word_features(str(path), width)
    save_file({"features": known}, path, {"words": json.dumps(["cat", "dog", "?"])})
    with pytest.raises(UserError, match="names a feature without a word"):
        read_word_features(str(path), width)


def test_a_words_feature_lies_at_every_place_with_an_images_differences():
    features = torch.randn(2, 4, 3)
    found = placed(torch.tensor([[1.0, 2.0, 3.0]] * 3), features)
    assert found.shape == (3, 4, 3) and torch.allclose(found.mean(1), torch.tensor([1.0, 2.0, 3.0]), atol=1e-6)
    assert torch.equal(found[0], found[2]) and not torch.equal(found[0], found[1])


def test_words_without_images_to_learn_them_from_are_refused():
    with pytest.raises(UserError, match="word_epochs needs images; set calibration_images"):
        validate_settings(ProjectorSettings, {"word_epochs": 3}, "test")
