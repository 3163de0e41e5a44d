"""unCLIP whole: a prior and a decoder are trained, saved, loaded and drawn with; what can't work is refused in a line."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from mllm.errors import UserError
from mllm.generation.clip_sides import load_sides
from mllm.generation.data import Captioned
from mllm.generation.inversion import psnr_db
from mllm.generation.kinds import read_kind, train_generator
from mllm.generation.opening import load_generator
from mllm.generation.pictures import draw_pictures
from mllm.generation.prior_model import load_prior
from mllm.generation.sampler import Sampling
from mllm.generation.task import DiffusionTask, Dropping
from mllm.generation.unclip import edit, embed, mix, vary
from mllm.generation.unclip_generators import with_prior
from mllm.generation.unclip_rows import DecoderRows, Embeddings
from tests.helpers.commands import command
from tests.helpers.unclip import CAPTIONS, COLOURS, run_values, write_clip, write_colours

PLAIN = Sampling(steps=4, guidance=1.0)


def train(values, stop_after=None):
    return train_generator(read_kind(values, "test"), stop_after)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A directory with pairs.jsonl, clip/, and runs of a prior and a decoder."""
    root = tmp_path_factory.mktemp("unclip")
    pairs, clip = write_colours(root), write_clip(root / "clip")
    for kind in ("prior", "decoder"):
        train(run_values(kind, pairs, clip, root / kind))
    return root


@pytest.fixture(scope="module")
def decoder(root):
    return load_generator(root / "decoder")


@pytest.fixture(scope="module")
def images(root):
    return tuple(Image.open(root / f"images/{name}0.png").convert("RGB") for name in ("red", "blue"))


def weights_of(directory):
    return {path.relative_to(directory): load_file(path) for path in sorted(directory.rglob("*.safetensors"))}


def test_a_prior_that_was_stopped_ends_with_the_same_weights_to_the_bit(root, tmp_path):
    values = run_values("prior", root / "pairs.jsonl", root / "clip", tmp_path / "prior")
    assert train(values, stop_after=2) is None
    stopped, whole = weights_of(train(values)), weights_of(root / "prior/final")
    assert stopped.keys() == whole.keys()
    for file, tensors in whole.items():
        assert all(torch.equal(stopped[file][name], tensor) for name, tensor in tensors.items())


def test_a_prior_is_saved_with_the_mean_and_deviation_of_its_data_and_samples_unit_vectors(root):
    prior = load_prior(root / "prior")
    files = [root / f"images/{name}{shade}.png" for name in COLOURS for shade in (0, 40)]
    unit = load_sides(root / "clip").encoder.images(files)
    assert torch.allclose(prior.denoiser.standardizer.mean, unit.mean(0), atol=1e-5)
    assert torch.allclose(prior.denoiser.standardizer.std, unit.std(0).clamp(min=1e-4), atol=1e-5)
    how = Sampling(steps=3, method="ddpm", guidance=2.0)
    sampled = prior.embeddings(CAPTIONS[:2], [5, 6], how)
    assert torch.allclose(sampled.norm(dim=-1), torch.ones(2), atol=1e-5)
    # An embedding is a function of its prompt and its seed, whatever is sampled beside it.
    assert torch.allclose(prior.embeddings(CAPTIONS[1:2], [6], how)[0], sampled[1], atol=1e-5)
    assert not torch.allclose(prior.embeddings(CAPTIONS[1:2], [7], how)[0], sampled[1], atol=1e-3)


def test_of_two_samples_the_one_is_kept_that_is_more_like_the_text(root):
    prior, how = load_prior(root / "prior"), Sampling(steps=3, method="ddpm", guidance=1.0)
    texts = prior.sides.encoder.texts(CAPTIONS)
    both = prior.embeddings(CAPTIONS, [0, 1, 2, 3], how, candidates=2)
    first = prior.embeddings(CAPTIONS, [0, 1, 2, 3], how, candidates=1)
    likeness, likeness_of_first = (both * texts).sum(-1), (first * texts).sum(-1)
    assert bool((likeness >= likeness_of_first - 1e-5).all())
    assert bool((likeness > likeness_of_first + 1e-5).any())


def test_a_decoder_loses_its_text_and_its_image_as_often_as_was_asked_and_independently(root, decoder, tmp_path):
    sides, files = load_sides(root / "clip"), sorted((root / "images").iterdir())
    pairs = Captioned(tuple(files), tuple(CAPTIONS), tuple(range(8)), (0,) * 8)

    class Blank:
        shape = (1, 1, 1)

        def __call__(self, image, generator):
            return torch.zeros(1, 1, 1)

    rows = DecoderRows(pairs, decoder.text, Blank(), Embeddings(files, sides, tmp_path), tmp_path)
    task = DiffusionTask(rows, decoder.schedule, Dropping(text=0.5, image=0.1), None, 8, 8, seed=0)
    drawn = [task.noised(step, range(8)).conditions for step in range(250)]
    no_text = torch.cat([(one.text == rows.null.text).flatten(1).all(1) for one in drawn])
    no_image = torch.cat([(one.image == 0).all(1) for one in drawn])
    assert no_text.float().mean() == pytest.approx(0.5, abs=0.04)
    assert no_image.float().mean() == pytest.approx(0.1, abs=0.025)
    assert (no_text & no_image).float().mean() == pytest.approx(0.05, abs=0.02)


def test_a_prompt_is_drawn_by_the_prior_and_without_one_it_is_said_what_lacks(root, decoder):
    both = with_prior(decoder, root / "prior")
    pictures = draw_pictures(both, CAPTIONS[:2], [0, 1], PLAIN)
    again = draw_pictures(both, CAPTIONS[1:2], [1], PLAIN)
    assert [picture.size for picture in pictures] == [(16, 16)] * 2
    difference = torch.tensor(list(pictures[1].tobytes())) - torch.tensor(list(again[0].tobytes()))
    assert int(difference.abs().max()) <= 1
    with pytest.raises(UserError, match="name one with --prior"):
        draw_pictures(decoder, CAPTIONS[:1], [0], PLAIN)


def pixels(pictures):
    return torch.stack([torch.tensor(list(p.tobytes())).reshape(-1) for p in pictures]).float() / 255


def test_without_noise_on_the_way_a_variation_is_the_image_again(decoder, images):
    drawn = vary(decoder, images[0], [0], PLAIN)
    assert float(psnr_db(pixels(drawn), pixels(images[:1]))[0]) > 35
    varied = vary(decoder, images[0], [0, 1], replace(PLAIN, eta=1.0))
    assert varied[0].tobytes() != varied[1].tobytes() != drawn[0].tobytes()


@pytest.mark.parametrize("seed", [3, None])
def test_the_ends_of_a_mixture_are_the_two_images_variations(decoder, images, seed):
    whole = mix(decoder, images, [0.0, 0.5, 1.0], PLAIN, seed)
    own = [vary(decoder, image, [0], PLAIN)[0] for image in images]
    if seed is not None:  # drawn from one noise, which is not the images' own
        own = [mix(decoder, pair, [0.0], PLAIN, seed)[0] for pair in (images, images[::-1])]
    ends = pixels([whole[0], whole[2]])
    assert float((ends - pixels(own)).abs().max()) <= 1.01 / 255
    assert whole[1].tobytes() not in (whole[0].tobytes(), whole[2].tobytes())


def test_an_edit_begins_with_the_image_and_turns_to_the_difference_of_the_texts(decoder, images):
    edited = edit(decoder, images[0], (CAPTIONS[0], CAPTIONS[1]), [0.0, 0.4], PLAIN)
    assert float(psnr_db(pixels(edited[:1]), pixels(images[:1]))[0]) > 35
    assert edited[1].tobytes() != edited[0].tobytes()
    with pytest.raises(UserError, match="have the same embedding"):
        edit(decoder, images[0], (CAPTIONS[0], CAPTIONS[0]), [0.4], PLAIN)
    with pytest.raises(UserError, match="at least 2 steps"):
        edit(decoder, images[0], (CAPTIONS[0], CAPTIONS[1]), [0.4], replace(PLAIN, steps=1))


def test_a_decoder_in_half_precision_draws_nearly_the_same(root, decoder, images):
    half = load_generator(root / "decoder", device="cpu", dtype="bfloat16")
    whole, rough = (mix(one, images, [0.0, 1.0], PLAIN, 0) for one in (decoder, half))
    assert float((pixels(whole) - pixels(rough)).abs().mean()) < 0.02


def test_an_image_stands_for_itself_by_its_own_clips_embedding(root, decoder, images):
    of_files = load_sides(root / "clip").encoder.images([root / "images/red0.png"])
    assert torch.equal(embed(decoder, images[:1]), of_files)


def test_the_commands_draw_sheets(root, tmp_path):
    model, red, blue = str(root / "decoder"), str(root / "images/red0.png"), str(root / "images/blue0.png")
    few = ["-n", "2", "--steps", "3"]
    command("generate", "vary", model, red, *few, "--sheet", tmp_path / "vary.png")
    command("generate", "mix", model, red, blue, *few, "--noise", "slerped", "--sheet", tmp_path / "mix.png")
    words = ["--from", CAPTIONS[0], "--to", CAPTIONS[1]]
    command("generate", "edit", model, red, *words, *few, "--sheet", tmp_path / "edit.png")
    widths = [Image.open(tmp_path / f"{name}.png").width for name in ("vary", "mix", "edit")]
    assert widths[0] == widths[2] < widths[1]


def changed_clip(root, directory, config=None, weights=None):
    """A copy of the tiny CLIP with keys of its text config, or weights by name, changed."""
    shutil.copytree(root / "clip", directory)
    read = json.loads((directory / "config.json").read_text())
    read["text_config"] |= config or {}
    (directory / "config.json").write_text(json.dumps(read))
    tensors = load_file(directory / "model.safetensors")
    for name, value in (weights or {}).items():
        tensors[name] = torch.full_like(tensors[name], value)
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    return directory


def test_a_clip_that_reads_the_wrong_token_or_tells_no_captions_apart_is_refused(root, tmp_path):
    values = run_values("prior", root / "pairs.jsonl", root / "clip", tmp_path / "run")
    wrong = changed_clip(root, tmp_path / "wrong", config={"eos_token_id": 2})
    for kind in ("prior", "decoder"):
        with pytest.raises(UserError, match="at its highest id"):
            train(run_values(kind, root / "pairs.jsonl", wrong, tmp_path / kind))
    blind = {"text_model.embeddings.token_embedding.weight": 0.5, "text_model.embeddings.position_embedding.weight": 0}
    alike = changed_clip(root, tmp_path / "alike", weights=blind)
    with pytest.raises(UserError, match="4 different captions one text embedding"):
        train(values | {"text": {"clip": str(alike)}})
    wide = write_clip(tmp_path / "wide", text_width=64)
    with pytest.raises(UserError, match="64 wide and embeddings 32"):
        train(values | {"text": {"clip": str(wide)}})


def test_a_prior_of_another_clip_and_models_of_other_kinds_are_refused(root, decoder, tmp_path):
    other = write_clip(tmp_path / "other", seed=1)
    train(run_values("prior", root / "pairs.jsonl", other, tmp_path / "prior"))
    with pytest.raises(UserError, match="a prior of another CLIP"):
        with_prior(decoder, tmp_path / "prior")
    with pytest.raises(UserError, match="is no prior"):
        load_prior(root / "decoder")
    values = run_values("decoder", root / "pairs.jsonl", root / "clip", tmp_path / "run")
    with pytest.raises(UserError, match=r"denoiser\.kind unet"):
        train(values | {"denoiser": {"kind": "dit"}})
