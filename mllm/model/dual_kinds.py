"""Public dual encoders: what differs between transformers' classes of them, as data, by a configuration's `model_type`."""

from dataclasses import dataclass
from typing import Any

import torch
from tokenizers import normalizers
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mllm.errors import UserError
from mllm.model.dual_encoder import ResNetDualEncoder
from mllm.model.families.family import transformers_class


@dataclass(frozen=True)
class DualKind:
    """A class of dual encoders.

    title: what it is called. model_class: name of transformers' class. asks_each_pair: whether logits are answers of yes or
    no, which a sigmoid reads (SigLIP), and not for a softmax over classes. reads_padding: whether the text side reads its
    last position, and sees the padding; its texts are of full length, in lower case. takes_patches: whether its image side
    takes an image's patches in their own grid, and no square pixels (NaFlex).
    """

    title: str
    model_class: str
    asks_each_pair: bool = False
    reads_padding: bool = False
    takes_patches: bool = False


DUAL_KINDS = {
    "clip": DualKind("CLIP", "CLIPModel"),
    # SigLIP 2 of a fixed size is of this type, too.
    "siglip": DualKind("SigLIP", "SiglipModel", asks_each_pair=True, reads_padding=True),
    "siglip2": DualKind("SigLIP 2 NaFlex", "Siglip2Model", asks_each_pair=True, reads_padding=True, takes_patches=True),
    "metaclip_2": DualKind("MetaCLIP 2", "MetaClip2Model"),
    "align": DualKind("ALIGN", "AlignModel"),
    "chinese_clip": DualKind("Chinese-CLIP", "ChineseCLIPModel"),
    "altclip": DualKind("AltCLIP", "AltCLIPModel"),
    "vision-text-dual-encoder": DualKind("an image encoder beside a text encoder", "VisionTextDualEncoderModel"),
}
# Their positions begin behind the padding's id (RoBERTa's way), so as many of them are never used.
SHIFTED_POSITIONS = frozenset({"altclip_text_model", "camembert", "roberta", "xlm-roberta", "xlm-roberta-xl"})


def dual_kind(path: object, model_type: str) -> DualKind:
    """Return the kind of dual encoder whose configuration says `model_type`. Raises UserError that lists the choices."""
    if model_type not in DUAL_KINDS:
        raise UserError(f"{path} is of type {model_type}; a dual encoder is one of: {', '.join(DUAL_KINDS)}")
    return DUAL_KINDS[model_type]


def dual_class(config: Any) -> type[PreTrainedModel]:
    """Return the class that computes a dual encoder of this configuration, of a type that `dual_kind` knows."""
    if config.model_type == "vision-text-dual-encoder" and config.vision_config.model_type == "bit":
        return ResNetDualEncoder
    found: type[PreTrainedModel] = transformers_class(DUAL_KINDS[config.model_type].model_class)
    return found


def read_as_trained(tokenizer: PreTrainedTokenizerBase, config: Any) -> None:
    """Have a tokenizer cut and pad texts, and fold their case, as the text side of a dual encoder was trained.

    SigLIPs were trained on texts of full length in lower case. The tokenizer that SigLIP 2 comes with, Gemma's, keeps case
    and pads as it is asked to.
    """
    text = config.text_config
    unused = text.pad_token_id + 1 if text.model_type in SHIFTED_POSITIONS else 0
    longest = text.max_position_embeddings - unused
    if not 0 < tokenizer.model_max_length <= longest:
        tokenizer.model_max_length = longest
    if not DUAL_KINDS[config.model_type].reads_padding:
        return
    tokenizer.model_input_names = ["input_ids"]
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None and tokenizer("A").input_ids != tokenizer("a").input_ids:
        own = [backend.normalizer] if backend.normalizer is not None else []
        backend.normalizer = normalizers.Sequence([normalizers.Lowercase(), *own])


def logit_factor_of(model: PreTrainedModel) -> float:
    """Return what cosines are multiplied by to become logits: as the checkpoint says, without a bound.

    ALIGN has a temperature, by which they are divided; the others the logarithm of a factor.
    """
    temperature = getattr(model, "temperature", None)
    if temperature is not None:
        return 1 / float(temperature.detach())
    scale: torch.Tensor = model.logit_scale.detach()
    return float(scale.float().exp())


def packed(patches: torch.Tensor, grid: torch.Tensor) -> torch.Tensor:
    """Put an image's patches [P, D], padded at the end, and their grid (rows, columns) int64 [2] into one tensor [P + 1, D].

    The grid is the beginning of the last row, so that images of any shape are stacked, as square pixels are.
    """
    last = torch.zeros(1, patches.shape[1])
    last[0, :2] = grid
    return torch.cat([patches, last])


def unpacked(images: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return what `Siglip2Model` takes of stacked `packed` images [N, P + 1, D]: patches, which of them are there, grids."""
    grids = images[:, -1, :2].long()
    places = torch.arange(images.shape[1] - 1, device=images.device)
    return {
        "pixel_values": images[:, :-1],
        "pixel_attention_mask": (places < grids.prod(1, keepdim=True)).long(),
        "spatial_shapes": grids,
    }
