"""Karlo, SD-unCLIP and Kandinsky 2.2: tiny random models in their layouts, drawn from text; real weights were not run."""

import json

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    KandinskyV22Pipeline,
    KandinskyV22PriorPipeline,
    PriorTransformer,
    StableUnCLIPImg2ImgPipeline,
    UnCLIPPipeline,
    UnCLIPScheduler,
    UNet2DConditionModel,
    UNet2DModel,
    VQModel,
)
from diffusers.pipelines.deprecated.unclip.text_proj import UnCLIPTextProjModel
from diffusers.pipelines.stable_diffusion.stable_unclip_image_normalizer import StableUnCLIPImageNormalizer
from torch import nn
from transformers import (
    AutoTokenizer,
    CLIPImageProcessor,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)

from mllm.errors import UserError
from mllm.generation.opening import load_drawer
from mllm.generation.pictures import draw_pictures
from mllm.generation.sampler import Sampling

E = 32
SIMPLE = {
    "down_block_types": ("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
    "up_block_types": ("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
    "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "attention_head_dim": 4,
    "resnet_time_scale_shift": "scale_shift",
    "cross_attention_dim": 16,
}
SHAPE = {
    "hidden_size": E,
    "intermediate_size": E,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "projection_dim": E,
}


def text_encoder(tokenizer, cls=CLIPTextModelWithProjection):
    ids = {"bos_token_id": 2, "eos_token_id": 1, "pad_token_id": 0}
    return cls(CLIPTextConfig(**SHAPE, **ids, vocab_size=len(tokenizer), max_position_embeddings=8)).eval()


def image_encoder():
    return CLIPVisionModelWithProjection(CLIPVisionConfig(**SHAPE, image_size=16, patch_size=8)).eval()


def prior():
    made = PriorTransformer(
        num_attention_heads=2, attention_head_dim=8, num_layers=1, embedding_dim=E, num_embeddings=8
    ).eval()
    made.clip_std = nn.Parameter(torch.ones(1, E))
    return made


def prior_scheduler():
    return UnCLIPScheduler(variance_type="fixed_small_log", prediction_type="sample", clip_sample_range=5.0)


def upscaler():
    blocks = {"down_block_types": ("ResnetDownsampleBlock2D",) * 2, "up_block_types": ("ResnetUpsampleBlock2D",) * 2}
    return UNet2DModel(
        sample_size=16, in_channels=6, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4, **blocks
    )


def karlo(tokenizer):
    return UnCLIPPipeline(
        prior=prior(),
        decoder=UNet2DConditionModel(
            sample_size=8, in_channels=3, out_channels=6, class_embed_type="identity", **SIMPLE
        ),
        text_encoder=text_encoder(tokenizer),
        tokenizer=tokenizer,
        text_proj=UnCLIPTextProjModel(clip_embeddings_dim=E, time_embed_dim=32, cross_attention_dim=16),
        super_res_first=upscaler(),
        super_res_last=upscaler(),
        prior_scheduler=prior_scheduler(),
        decoder_scheduler=UnCLIPScheduler(variance_type="learned_range"),
        super_res_scheduler=UnCLIPScheduler(variance_type="fixed_small_log"),
    )


def kandinsky_prior(tokenizer):
    return KandinskyV22PriorPipeline(
        prior=prior(),
        image_encoder=image_encoder(),
        text_encoder=text_encoder(tokenizer),
        tokenizer=tokenizer,
        scheduler=prior_scheduler(),
        image_processor=CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}),
    )


def kandinsky(tokenizer):
    movq = VQModel(
        block_out_channels=(32, 32),
        down_block_types=("DownEncoderBlock2D", "AttnDownEncoderBlock2D"),
        up_block_types=("AttnUpDecoderBlock2D", "UpDecoderBlock2D"),
        latent_channels=4,
        num_vq_embeddings=12,
        vq_embed_dim=4,
        norm_num_groups=8,
        norm_type="spatial",
    )
    image = {"addition_embed_type": "image", "encoder_hid_dim_type": "image_proj", "encoder_hid_dim": E}
    unet = UNet2DConditionModel(sample_size=8, in_channels=4, out_channels=8, **image, **SIMPLE)
    return KandinskyV22Pipeline(unet=unet, movq=movq, scheduler=DDIMScheduler(steps_offset=1, clip_sample=False))


def sd_unclip(tokenizer):
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        norm_num_groups=4,
        attention_head_dim=(2, 4),
        cross_attention_dim=E,
        class_embed_type="projection",
        projection_class_embeddings_input_dim=2 * E,
    )
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    return StableUnCLIPImg2ImgPipeline(
        feature_extractor=CLIPImageProcessor(),
        image_encoder=image_encoder(),
        image_normalizer=StableUnCLIPImageNormalizer(embedding_dim=E),
        image_noising_scheduler=DDIMScheduler(beta_schedule="squaredcos_cap_v2"),
        tokenizer=tokenizer,
        text_encoder=text_encoder(tokenizer, CLIPTextModel),
        unet=unet,
        scheduler=DDIMScheduler(steps_offset=1, clip_sample=False, prediction_type="v_prediction"),
        vae=AutoencoderKL(block_out_channels=(8, 8), norm_num_groups=4, sample_size=16, **blocks),
    )


@pytest.fixture(scope="module")
def directories(clip, tmp_path_factory):
    """Directories of tiny pipelines by name."""
    torch.manual_seed(0)
    root, tokenizer = tmp_path_factory.mktemp("pipelines"), AutoTokenizer.from_pretrained(clip)
    for build in (karlo, kandinsky_prior, kandinsky, sd_unclip):
        build(tokenizer).save_pretrained(root / build.__name__)
    # As released, it names a place that the class has left since.
    index = root / "karlo" / "model_index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | {"text_proj": ["unclip", "UnCLIPTextProjModel"]}))
    return root


@pytest.mark.parametrize(
    ("name", "prior_name", "size"),
    [("karlo", None, 16), ("kandinsky", "kandinsky_prior", 16), ("sd_unclip", "karlo", 16)],
)
def test_pictures_are_drawn_from_text_and_seed_by_a_prior_and_a_decoder(directories, name, prior_name, size):
    drawer = load_drawer(directories / name, prior_name and directories / prior_name)
    how = Sampling(steps=2)
    first, again, other = draw_pictures(drawer, ["a red square"] * 3, [0, 0, 1], how)
    assert first.size == (size, size) and first.tobytes() == again.tobytes() != other.tobytes()
    for changes, told in (({"steps": 2, "guidance": 0.5}, "guidance from 1 on"), ({"steps": 1}, "in 2 steps at least")):
        with pytest.raises(UserError, match=told):
            draw_pictures(drawer, ["a red square"], [0], Sampling(**changes))


@pytest.mark.parametrize(
    ("name", "prior_name", "told"),
    [
        ("karlo", "kandinsky_prior", "leave --prior out"),
        ("kandinsky", None, "name one by --prior DIRECTORY: a KandinskyV22PriorPipeline"),
        ("sd_unclip", "kandinsky_prior", "name one by --prior DIRECTORY: a UnCLIPPipeline"),
        ("kandinsky_prior", None, "is a KandinskyV22PriorPipeline"),
    ],
)
def test_a_prior_that_does_not_fit_is_a_line(directories, name, prior_name, told):
    with pytest.raises(UserError, match=told):
        load_drawer(directories / name, prior_name and directories / prior_name)


def test_a_pickled_part_of_a_pipeline_is_refused(directories, tmp_path):
    copy = tmp_path / "karlo"
    karlo_directory = directories / "karlo"
    copy.mkdir()
    for part in karlo_directory.iterdir():
        (copy / part.name).symlink_to(part)
    (copy / "decoder").unlink()
    (copy / "decoder").mkdir()
    (copy / "decoder" / "config.json").write_text((karlo_directory / "decoder" / "config.json").read_text())
    torch.save({}, copy / "decoder" / "diffusion_pytorch_model.bin")
    with pytest.raises(UserError, match="in safetensors") as caught:
        load_drawer(copy)
    assert "\n" not in str(caught.value)
