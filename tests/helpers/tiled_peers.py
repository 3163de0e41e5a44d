"""Tiny models in transformers' tiled layouts, as transformers saves them, and what it makes of images and videos."""

import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextImageProcessorPil,
    LlavaNextProcessor,
    LlavaNextVideoConfig,
    LlavaNextVideoForConditionalGeneration,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    LlavaOnevisionImageProcessorPil,
    SiglipVisionConfig,
)

from mllm.conversation.schema import ImagePart, Message, TextPart, VideoPart
from mllm.media.visual import Clip
from tests.helpers.language_models import enlarge
from tests.helpers.tiny import byte_tokenizer

SIDE, PATCH = 16, 4
TILES = [(1, 2), (2, 1), (2, 2), (3, 1), (1, 3)]
SQUARE = {"height": SIDE, "width": SIDE}
MEAN, STD = [0.481, 0.458, 0.408], [0.269, 0.261, 0.276]
KINDS = {
    "llava_next": (LlavaNextConfig, LlavaNextForConditionalGeneration, "LlavaNextProcessor"),
    "llava_next_video": (LlavaNextVideoConfig, LlavaNextVideoForConditionalGeneration, "LlavaNextVideoProcessor"),
    "llava_onevision": (LlavaOnevisionConfig, LlavaOnevisionForConditionalGeneration, "LlavaOnevisionProcessor"),
}
# (height, width): ties, exact pinpoints and a pixel beside, strips that leave no row or no column, and shapes by chance.
SIZES = [(1, 1), (16, 16), (5, 16), (16, 32), (17, 32), (32, 31), (48, 16), (2, 600), (600, 2), (64, 64), (63, 65)]
SIZES += [(random.Random(n).randint(1, 90), random.Random(-n - 1).randint(1, 90)) for n in range(14)]
TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}"
    "{% for p in m['content'] %}{% if p['type'] == 'image' %}{{ '<image>\n' }}"
    "{% elif p['type'] == 'video' %}{{ '<video>\n' }}{% else %}{{ p['text'] }}{% endif %}{% endfor %}"
    "{{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@dataclass
class Peer:
    """A model of transformers, the image processor that cuts its tiles, and the directory that both are saved in."""

    kind: str
    model: Any
    image_processor: Any
    directory: Path

    @torch.no_grad()
    def logits(self, input_ids: torch.Tensor, **inputs: Any) -> Any:
        return self.model(input_ids=input_ids, **inputs).logits


def save_peer(kind: str, root: Path, is_legacy: bool = False, **values: Any) -> Peer:
    """A model of random weights, saved in `root` by transformers; the files of its processor as older releases wrote them.

    values: of its configuration, in place of those it has. A class that shows videos can't be made without torchvision, so
    that its processor's file is written here.
    """
    tokenizer = byte_tokenizer()
    tokens = ["<image>"] if kind == "llava_next" else ["<image>", "<video>"]
    tokenizer.add_special_tokens({"extra_special_tokens": tokens}, replace_extra_special_tokens=False)
    ids = {f"{token[1:-1]}_token_index": tokenizer.convert_tokens_to_ids(token) for token in tokens}
    is_onevision = kind == "llava_onevision"
    grids = [(r, c) for r in range(1, 5) for c in range(1, 5)] if is_onevision else TILES
    pinpoints = [[rows * SIDE, columns * SIDE] for rows, columns in grids]
    # A limit of two tiles lets maps of these small tiles be scaled down.
    more = {"vision_aspect_ratio": "anyres_max_2"} if is_onevision else {}
    model = _random_model(kind, tokenizer, {"image_grid_pinpoints": pinpoints, **ids, **more, **values})
    statistics = {"image_mean": MEAN, "image_std": STD, "image_grid_pinpoints": pinpoints}
    if is_onevision:
        prepare: Any = LlavaOnevisionImageProcessorPil(size=SQUARE, **statistics)
    else:
        prepare = LlavaNextImageProcessorPil(size={"shortest_edge": SIDE}, crop_size=SQUARE, **statistics)
    model.save_pretrained(root)
    tokenizer.chat_template = None
    tokenizer.save_pretrained(root)
    video = {"do_center_crop": not is_onevision, "size": SQUARE, "num_frames": 6}
    if kind == "llava_next" and not is_legacy:
        counting = {"patch_size": PATCH, "num_additional_image_tokens": 1, "vision_feature_select_strategy": "default"}
        LlavaNextProcessor(prepare, tokenizer, chat_template=TEMPLATE, **counting).save_pretrained(root)
    elif is_legacy:
        prepare.save_pretrained(root)
        write_json(root / "processor_config.json", {"processor_class": KINDS[kind][2]})
        write_json(root / "video_preprocessor_config.json", video)
        write_json(root / "chat_template.json", {"chat_template": TEMPLATE})
    else:
        whole = {"processor_class": KINDS[kind][2], "image_processor": prepare.to_dict(), "video_processor": video}
        write_json(root / "processor_config.json", whole)
        (root / "chat_template.jinja").write_text(TEMPLATE)
    return Peer(kind, model, prepare, root)


def _random_model(kind: str, tokenizer: Any, values: dict[str, Any]) -> Any:
    """A model of random weights that says different things of different images, with a newline to be reckoned with."""
    torch.manual_seed(3)
    config_class, model_class, _ = KINDS[kind]
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2}
    vision = SiglipVisionConfig if kind == "llava_onevision" else CLIPVisionConfig
    text = LlamaConfig(
        **{**sizes, "num_hidden_layers": 2, "num_attention_heads": 4},
        num_key_value_heads=2,
        vocab_size=len(tokenizer) + 3,
        max_position_embeddings=4096,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
    )
    encoder = vision(**sizes, image_size=SIDE, patch_size=PATCH)
    model = model_class(config_class(vision_config=encoder, text_config=text, **values)).eval()
    # Not the encoder, which would make much of how a pixel's last bit is rounded.
    for part in (model.model.language_model, model.model.multi_modal_projector, model.lm_head):
        enlarge(part)
    with torch.no_grad():
        model.model.image_newline.normal_()
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    return model


def write_json(file: Path, content: dict[str, Any]) -> None:
    file.write_text(json.dumps(content))


def prompt(processor: Any, messages: Any, media: list[Any]) -> tuple[Any, list[list[torch.Tensor]]]:
    """Our tokens of a conversation of pictures, and videos as lists of pictures, and the tiles of each."""
    sizes = [clip_of(item) if isinstance(item, list) else item.size[::-1] for item in media]
    tokens = processor.render(messages, sizes, generation=True)
    tiles = []
    for item, visual in zip(media, tokens.visuals, strict=True):
        shown = [item if crop.frame is None else item[crop.frame] for crop in visual.crops]
        tiles.append([processor.preparer.tiles(i, [c])[0] for i, c in zip(shown, visual.crops, strict=True)])
    return tokens, tiles


def clip_of(frames: list[Image.Image]) -> Clip:
    return Clip(frames[0].height, frames[0].width, tuple(n / 8 for n in range(len(frames))))


@torch.no_grad()
def our_logits(model: Any, processor: Any, messages: Any, media: list[Any]) -> tuple[torch.Tensor, list[int]]:
    """Logits [T, K] at all positions of a prompt, and its ids."""
    tokens, tiles = prompt(processor, messages, media)
    ids, features = torch.tensor([tokens.input_ids]), []
    if media:
        joined = model.encode_images(torch.stack([tile for own in tiles for tile in own]), tokens.visuals)
        features = list(joined.split([visual.token_count for visual in tokens.visuals]))
    embeddings = model.embed_features(ids, features)
    return model.language_model(inputs_embeds=embeddings, use_cache=False).logits[0], list(tokens.input_ids)


def picture(size: tuple[int, int], seed: int = 0) -> Image.Image:
    """Noise of (height, width) pixels."""
    return Image.fromarray(np.random.default_rng([seed, *size]).integers(0, 256, (*size, 3), dtype=np.uint8))


def video(frames: int, size: tuple[int, int] = (20, 30)) -> list[Image.Image]:
    return [picture(size, seed) for seed in range(frames)]


def ask(*kinds: str, text: str = "what is this") -> list[Message]:
    """A question behind an image or a video for each of `kinds`."""
    parts = [{"image": ImagePart, "video": VideoPart}[kind]() for kind in kinds]
    return [Message(role="user", content=(*parts, TextPart(text=text)))]
