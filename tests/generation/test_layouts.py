"""Directories: ours in diffusers' layout, and those that exist, drawn as diffusers draws them.

What stands in for Stable Diffusion is a tiny random model in its layout; real weights were not run.
"""

import json
import shutil

import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import AutoTokenizer, CLIPTextConfig, CLIPTextModel

from mllm.errors import UserError
from mllm.generation.codec import load_autoencoder
from mllm.generation.kinds import read_kind, train_generator
from mllm.generation.opening import load_drawer, load_generator
from mllm.generation.pictures import draw_pictures
from mllm.generation.sampler import Sampling, sample, start_noise
from tests.helpers.generation import settings_of, write_generator

LEVELS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "set_alpha_to_one": False}
PROMPTS = ["a red square", "a blue square"]


def tiny_vae(**config):
    torch.manual_seed(1)
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    return AutoencoderKL(block_out_channels=(8, 8), norm_num_groups=4, sample_size=16, **blocks, **config)


@pytest.fixture(scope="module")
def vae(tmp_path_factory):
    """The directory of an autoencoder of factor 2."""
    directory = tmp_path_factory.mktemp("vae") / "vae"
    tiny_vae(scaling_factor=0.5).save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def stable_diffusion(clip, tmp_path_factory):
    """A directory in the layout of Stable Diffusion 1.x, of latents of 8 × 8."""
    torch.manual_seed(0)
    net = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        norm_num_groups=4,
        attention_head_dim=2,
        cross_attention_dim=32,
    )
    pipe = StableDiffusionPipeline(
        vae=tiny_vae(),
        text_encoder=CLIPTextModel.from_pretrained(clip),
        tokenizer=AutoTokenizer.from_pretrained(clip),
        unet=net,
        scheduler=PNDMScheduler(**LEVELS, skip_prk_steps=True, steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    directory = tmp_path_factory.mktemp("sd") / "sd"
    pipe.save_pretrained(directory)
    return directory


def drawn_by_diffusers(directory, start, guidance, **levels):
    """Pixels [n, 3, S, S] in 0 to 1 of two prompts by diffusers' pipeline with DDIM."""
    pipe = StableDiffusionPipeline.from_pretrained(directory, use_safetensors=True, safety_checker=None)
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, **levels)
    further = {"num_inference_steps": 3, "guidance_scale": guidance, "output_type": "np"}
    pictures = pipe(PROMPTS, latents=start, **further).images
    return torch.from_numpy(pictures).permute(0, 3, 1, 2)


def drawn_here(generator, start, guidance):
    how = Sampling(steps=3, guidance=guidance)
    conditions = generator.conditions(PROMPTS, [0] * len(PROMPTS))
    latents = sample(generator.denoiser, generator.schedule, start, conditions, generator.null(), how)
    return generator.codec.decode(latents) / 2 + 0.5


def test_a_stable_diffusion_directory_draws_what_its_own_pipeline_draws(stable_diffusion):
    generator = load_generator(stable_diffusion)
    assert generator.config.image_size_px == 16 and generator.codec.scale == 0.18215
    start, _ = start_noise([0, 1], generator.codec.shape)
    theirs = drawn_by_diffusers(stable_diffusion, start, 2.5, clip_sample=False)
    assert (drawn_here(generator, start, 2.5) - theirs).abs().max() < 1e-4


@pytest.mark.slow
def test_a_generator_trained_in_latents_opens_in_diffusers_with_the_same_picture(pairs, clip, vae, tmp_path):
    pictures = {"image_size_px": 16, "autoencoder": str(vae)}
    settings = settings_of(pairs, clip, tmp_path / "run", pictures=pictures, train__max_steps=1)
    final = train_generator(settings)
    generator = load_generator(tmp_path / "run")
    start, _ = start_noise([0, 1], generator.codec.shape)
    assert generator.codec.scale == 0.5 and generator.codec.shape == (4, 8, 8)
    assert (drawn_here(generator, start, 3.0) - drawn_by_diffusers(final, start, 3.0)).abs().max() < 1e-4


@pytest.mark.slow
def test_an_autoencoder_is_trained_by_the_same_command_and_knows_its_scale(pairs, clip, tmp_path):
    values = {"kind": "autoencoder", "pictures": {"image_size_px": 16}, "widths": [8, 16], "norm_groups": 4}
    values |= {"latent_channels": 2, "run_dir": str(tmp_path / "run"), "optim": {"lr": 1e-3}}
    values |= {"data": {"pairs": str(pairs), "heldout": str(pairs), "image_root": str(pairs.parent)}}
    values["train"] = {"global_batch_size": 4, "epochs": 3, "trackers": []}
    final = train_generator(read_kind(values, "test"))
    model = load_autoencoder(final)
    pixels = torch.stack([torch.full((3, 16, 16), level) for level in (-1.0, 1.0)])
    assert model.config.latent_channels == 2 and model.encode(pixels).latent_dist.mean.shape == (2, 2, 8, 8)
    assert model.config.scaling_factor != 0.18215
    assert (final / "config.json").is_file()


def changed(directory, tmp_path, name, **changes):
    """A copy of a directory with other values in the JSON file `name`; None takes one away."""
    shutil.copytree(directory, tmp_path / "copy")
    path = tmp_path / "copy" / name
    values = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in values.items() if value is not None}))
    return tmp_path / "copy"


def test_an_autoencoder_without_a_scaling_factor_is_refused_but_in_stable_diffusion(vae, stable_diffusion, tmp_path):
    with pytest.raises(UserError, match="has shift_factor"):
        load_autoencoder(changed(vae, tmp_path, "config.json", shift_factor=0.1))
    shutil.rmtree(tmp_path / "copy")
    with pytest.raises(UserError, match="names no scaling_factor"):
        load_autoencoder(changed(vae, tmp_path, "config.json", scaling_factor=None))
    shutil.rmtree(tmp_path / "copy")
    old = changed(stable_diffusion, tmp_path, "vae/config.json", scaling_factor=None)
    assert load_generator(old).codec.scale == 0.18215


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_pickled_weights_are_refused_in_a_line(stable_diffusion, tmp_path, part):
    shutil.copytree(stable_diffusion, tmp_path / "copy")
    (weights,) = (tmp_path / "copy" / part).glob("*.safetensors")
    weights.rename(weights.with_name({"text_encoder": "pytorch_model.bin"}.get(part, "diffusion_pytorch_model.bin")))
    with pytest.raises(UserError, match="safetensors") as caught:
        load_generator(tmp_path / "copy")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "changes", "told"),
    [
        ("unet/config.json", {"class_embed_type": "projection"}, "unet"),
        ("scheduler/scheduler_config.json", {"trained_betas": [0.1]}, "trained_betas"),
        ("scheduler/scheduler_config.json", {"prediction_type": "flow"}, "'flow'; known are epsilon"),
        ("scheduler/scheduler_config.json", {"rescale_betas_zero_snr": True}, "says nothing of the picture"),
        ("model_index.json", {"_class_name": "FluxPipeline"}, "is a FluxPipeline"),
    ],
)
def test_a_directory_that_is_drawn_with_otherwise_is_refused_in_a_line(stable_diffusion, tmp_path, name, changes, told):
    copy = changed(stable_diffusion, tmp_path, name, **changes)
    with pytest.raises(UserError, match=told) as caught:
        load_drawer(copy)
    assert "\n" not in str(caught.value)


def test_unlike_widths_and_what_is_no_generator_are_a_line(saved, clip, tmp_path):
    shutil.copytree(saved, tmp_path / "wide")
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1}
    CLIPTextModel(CLIPTextConfig(**sizes, max_position_embeddings=8)).save_pretrained(tmp_path / "wide/text_encoder")
    with pytest.raises(UserError, match="attends to states of width 32, the text side has 16"):
        load_generator(tmp_path / "wide")
    narrow = changed(saved, tmp_path, "config.json", pixel_unshuffle=2)
    with pytest.raises(UserError, match=r"takes 48 channels, its pictures have 12"):
        load_generator(narrow)
    with pytest.raises(UserError, match="is no generator"):
        load_generator(clip)


@pytest.mark.parametrize("kind", ["unet", "dit"])
def test_what_is_saved_is_loaded_with_all_that_draws(clip, tmp_path, kind):
    write_generator(
        clip, tmp_path / "saved", kind, prediction="sample", zero_terminal_snr=False, betas="squaredcos_cap_v2"
    )
    generator = load_generator(tmp_path / "saved")
    assert generator.denoiser.is_unet == (kind == "unet")
    assert generator.schedule.prediction_type == "sample" and generator.schedule.beta_schedule == "squaredcos_cap_v2"
    assert generator.schedule.clip_sample and generator.text is not None and generator.text.length_tokens == 8
    assert draw_pictures(generator, ["a square"], [0], Sampling(steps=1))[0].size == (16, 16)
