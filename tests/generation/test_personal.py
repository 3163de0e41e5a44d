"""Concepts and adapters: what is learned, what stays as it is, and that diffusers opens the files and draws the same."""

import pytest
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel

from mllm.errors import UserError
from mllm.generation.codec import LatentCodec
from mllm.generation.concept import FILE, ConceptText, first_vectors, load_concept, save_concept, with_concept
from mllm.generation.concept_training import learn_concept
from mllm.generation.conditions import Conditions
from mllm.generation.denoiser import build_denoiser
from mllm.generation.generator import GeneratorConfig, save_generator
from mllm.generation.judging.drawing import PictureFolder
from mllm.generation.lora import FILE as LORA_FILE
from mllm.generation.lora import load_lora, train_lora
from mllm.generation.opening import load_generator
from mllm.generation.personal_scores import CONCEPT, IMAGES, INSTEAD, WITHOUT, score_concept
from mllm.generation.personal_settings import ConceptSettings, LoraSettings
from mllm.generation.schedule import Schedule
from mllm.generation.settings import DenoiserSettings
from mllm.generation.text_side import TextSide
from mllm.inference.text_side import check_reads_end, read_place
from mllm.model.dual_encoder import train_tokenizer
from mllm.settings import validate_settings
from tests.helpers.tiny import save_image

CAPTIONS = ["a photo of a red mug", "a blue mug on a table", "the photo of the table"]
TOKEN = "<own>"


def tiny_text(length=12):
    tokenizer = train_tokenizer(CAPTIONS, 300, length)
    config = CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=length, bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    return TextSide(CLIPTextModel(config), tokenizer, length)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A generator of random weights in Stable Diffusion's layout."""
    torch.manual_seed(0)
    directory = tmp_path_factory.mktemp("personal") / "model"
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2, block_out_channels=(8, 8),
        layers_per_block=1, norm_num_groups=4, latent_channels=4, scaling_factor=0.5,
    )  # fmt: skip
    sizes = {"widths": (16, 16), "norm_groups": 4, "heads": 2}
    codec = LatentCodec(vae, 16)
    denoiser = build_denoiser(validate_settings(DenoiserSettings, sizes, "test"), 4, 8, 16)
    config = GeneratorConfig("text", 16, None)
    save_generator(directory, config, denoiser, denoiser.state_dict(), tiny_text(), codec, Schedule())
    return directory


@pytest.fixture(scope="module")
def opened(model):
    """The same in memory, which nobody changes."""
    return load_generator(model)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    root = tmp_path_factory.mktemp("images")
    return [save_image(root / f"{n}.png", (200, 40 * n, 30), (16, 16)) for n in range(3)]


def settings_of(kind, model, images, run_dir, **own):
    values = {
        "run_dir": str(run_dir), "model": str(model), "images": images, "optim": {"lr": 0.05, "schedule": "constant"},
        "train": {"epochs": 4, "max_steps": 4, "global_batch_size": 2, "micro_batch_size": 1, "trackers": []}, **own,
    }  # fmt: skip
    return validate_settings(kind, values, "test")


def concept_settings(model, images, run_dir):
    own = {"token": TOKEN, "vectors": 2, "initializer": "mug", "templates": ["a photo of a {}", "the {}"]}
    return settings_of(ConceptSettings, model, images, run_dir, **own)


def weights(model):
    return {f"{part.parent.name}/{name}": tensor for part in sorted(model.rglob("*.safetensors"))
            for name, tensor in load_file(part).items()}  # fmt: skip


@pytest.fixture(scope="module")
def learned(model, images, tmp_path_factory):
    """A concept of two vectors after four steps, which stopped after two of them."""
    run_dir = tmp_path_factory.mktemp("concept") / "run"
    settings = concept_settings(model, images, run_dir)
    assert learn_concept(settings, stop_after=2) is None
    return learn_concept(settings)


def test_four_steps_and_two_and_two_learn_the_same_vectors_and_only_these(model, opened, images, learned, tmp_path):
    before = weights(model)
    whole = learn_concept(concept_settings(model, images, tmp_path / "whole"))
    token, vectors = load_concept(learned)
    assert token == TOKEN and vectors.shape == (2, 16)
    assert torch.equal(vectors, load_concept(whole)[1])
    assert [name for name, _ in load_file(learned / FILE).items()] == [TOKEN]
    start = first_vectors(opened.text, "mug", 2)
    assert (vectors - start).abs().amin(1).max() > 0 and not torch.equal(vectors[0], vectors[1])
    after = weights(model)
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


def test_words_of_a_concept_have_the_states_that_diffusers_gives_them_and_all_others_stay(model, opened, learned):
    text, plain = with_concept(opened, learned).text, opened.text
    assert torch.equal(text.states(CAPTIONS), plain.states(CAPTIONS))
    assert torch.equal(text.model.get_input_embeddings().weight, plain.model.get_input_embeddings().weight)
    pipeline = StableDiffusionPipeline.from_pretrained(model, use_safetensors=True)
    pipeline.load_textual_inversion(learned, weight_name=FILE, use_safetensors=True)
    prompts = [f"a photo of a {TOKEN} on a table", f"{TOKEN}"]
    for prompt in prompts:
        theirs = pipeline.encode_prompt(prompt, "cpu", 1, False)[0]
        torch.testing.assert_close(text.states([prompt]), theirs, atol=1e-6, rtol=1e-6)
    assert not torch.allclose(text.states([prompts[0]]), plain.states([prompts[0]]))


def test_the_place_of_a_texts_feature_stays_at_its_end_where_a_concept_is_read(opened, learned):
    text = with_concept(opened, learned).text
    ids = text.ids([f"a {TOKEN} on a table"])
    known = ids.masked_fill(ids >= text.first_id, text._filler)
    end, last = text.model.config.eos_token_id, int((ids[0] == text.tokenizer.eos_token_id).nonzero()[0])
    assert int(read_place(known, end)) == last
    # With the end token of id 2, CLIPs read at the highest id, which diffusers' new ids would be.
    assert int(read_place(ids, 2)) != last


def test_a_clip_that_reads_elsewhere_is_refused():
    text = tiny_text()
    check_reads_end(text.model.config, text.tokenizer, "tiny")
    text.model.config.eos_token_id = 2
    with pytest.raises(UserError, match="tiny reads the feature of a text at its highest id"):
        check_reads_end(text.model.config, text.tokenizer, "tiny")


def test_vectors_start_as_the_words_in_turn_or_as_the_mean():
    text = tiny_text()
    table = text.model.get_input_embeddings().weight
    mug, table_word = table[text.tokenizer("a mug table", add_special_tokens=False)["input_ids"][1:]]
    assert torch.equal(first_vectors(text, "mug table", 3), torch.stack([mug, table_word, mug]))
    assert torch.allclose(first_vectors(text, "mug table", 1)[0], (mug + table_word) / 2)
    assert torch.allclose(first_vectors(text, "", 2), table.mean(0).expand(2, -1))


def test_concepts_that_are_words_already_of_another_width_or_pickled_are_lines(tmp_path):
    text = tiny_text()
    with pytest.raises(UserError, match=r"is a word of this text side already"):
        ConceptText(text, text.tokenizer.eos_token, torch.zeros(1, 16))
    with pytest.raises(UserError, match="has vectors of width 8, and the words of this text side have 16"):
        ConceptText(text, TOKEN, torch.zeros(1, 8))
    (tmp_path / "concept.bin").touch()
    with pytest.raises(UserError, match=r"concept\.bin is no safetensors file; pickled concepts aren't read"):
        load_concept(tmp_path / "concept.bin")
    save_file({"a": torch.zeros(1, 4), "b": torch.zeros(1, 4)}, tmp_path / "two.safetensors")
    with pytest.raises(UserError, match="holds 2 tensors; a concept is one"):
        load_concept(tmp_path / "two.safetensors")
    save_concept(tmp_path / "one.safetensors", TOKEN, torch.ones(2, 4))
    assert load_concept(tmp_path / "one.safetensors")[1].tolist() == [[1.0] * 4] * 2


def test_an_adapter_learns_alone_goes_on_and_draws_in_diffusers_what_it_draws_here(model, opened, images, tmp_path):
    def settings(run_dir):
        return settings_of(LoraSettings, model, images, run_dir, captions=CAPTIONS, rank=2)

    assert train_lora(settings(tmp_path / "run"), stop_after=2) is None
    final = train_lora(settings(tmp_path / "run"))
    whole = train_lora(settings(tmp_path / "whole"))
    ours, theirs = (load_file(path / LORA_FILE) for path in (final, whole))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert any(tensor.abs().max() > 0 for name, tensor in ours.items() if "lora.up" in name or "lora_B" in name)

    generator = load_generator(model)
    noised, levels = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([500])
    conditions = Conditions(text=generator.text.states(CAPTIONS[:1]))
    with torch.no_grad():
        plain = generator.denoiser(noised, levels, conditions)
        load_lora(generator, final)
        adapted = generator.denoiser(noised, levels, conditions)
        pipeline = StableDiffusionPipeline.from_pretrained(model, use_safetensors=True)
        pipeline.load_lora_weights(final, weight_name=LORA_FILE)
        expected = pipeline.unet(noised, levels, encoder_hidden_states=conditions.text).sample
    torch.testing.assert_close(adapted, expected, atol=1e-5, rtol=1e-5)
    assert (adapted - plain).abs().max() > 1e-4
    save_file({"vae.x": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(UserError, match=r"weights that don't begin with unet\."):
        load_lora(opened, tmp_path / "other.safetensors")


class ByColour:
    """Stands for an encoder: a picture's feature is its mean colour, and so is a text's that names one."""

    def images(self, paths):
        from PIL import Image

        pixels = torch.tensor([Image.open(path).convert("RGB").resize((1, 1)).getpixel((0, 0)) for path in paths])
        return torch.nn.functional.normalize(pixels.float() + 1, dim=1)

    def texts(self, texts):
        assert not any(TOKEN in text for text in texts), "what is asked for is scored without the word"
        colours = [[255.0, 1, 1] if "red" in text else [1.0, 1, 255] for text in texts]
        return torch.nn.functional.normalize(torch.tensor(colours), dim=1)


def test_scores_stand_beside_prompts_alone_words_and_the_training_images(tmp_path):
    from PIL import Image

    red, blue = (255, 0, 0), (0, 0, 255)
    images = [save_image(tmp_path / f"{n}.png", red) for n in range(2)]

    def paint(prompts, seeds):
        return [Image.new("RGB", (8, 8), red if TOKEN in prompt else blue) for prompt in prompts]

    folder = PictureFolder(tmp_path / "pictures", {}, "test")
    rows = score_concept(
        ByColour(), folder, paint, TOKEN, images, f"a {TOKEN}", [f"a {TOKEN} in red"], "thing", 2, 0, 4
    )
    scores = {row.name: (round(row.likeness, 2), round(row.adherence, 2)) for row in rows}
    assert scores == {CONCEPT: (1, 1), WITHOUT: (0.01, 0.01), INSTEAD: (0.01, 0.01), IMAGES: (1, 1)}
