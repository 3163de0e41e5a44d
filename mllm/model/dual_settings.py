"""Settings of dual encoders."""

from typing import Literal

from pydantic import Field, model_validator

from mllm.settings import PathText, Settings


class ClipModelSettings(Settings):
    """A dual encoder: its layout, its sizes where it is trained from nothing, and what is loaded."""

    layout: Literal["clip", "siglip", "resnet"] = "clip"
    """Class that is trained: `clip` (transformers' CLIPModel, the default), `siglip` (SiglipModel), or `resnet` (a
    BitModel beside CLIP's text side in a VisionTextDualEncoderModel).
    """
    init_from: PathText | None = None
    """A CLIP or SigLIP to go on with: both its sides, its tokenizer and its image processor, so that no size is set
    here. A directory of transformers or of open_clip, or a run. None, the default, begins from nothing.
    """
    image_encoder: PathText | None = None
    """A CLIP or SigLIP whose image side is taken; its sizes then replace image_size_px, patch_size_px and vision_….
    None by default.
    """
    lock_image: bool = False
    """Whether the image side that was taken stays as it is, so that only the text side learns (locked-image tuning,
    LiT; Zhai et al. 2022, arXiv:2111.07991). False by default.
    """
    image_size_px: int = 64
    """Side of the square input, in pixels. 64 by default."""
    patch_size_px: int = 8
    """Side of a patch, in pixels; in a resnet, the pixels of a side for each feature of its last stage, a power of two
    from 8. 8 by default.
    """
    vision_width: int = 256
    """Width of the image side, in features; in a resnet, of its last stage, each before it being half as wide. 256 by
    default.
    """
    vision_layers: int = 6
    """Number of layers of the image side; in a resnet, of the blocks that its stages share. 6 by default."""
    text_width: int = 256
    """Width of the text side, in features. 256 by default."""
    text_layers: int = 4
    """Number of layers of the text side. 4 by default."""
    embedding_width: int = 256
    """Width of the common space of images and texts, in features. 256 by default."""
    vocabulary_size: int = 4096
    """Number of tokens of the tokenizer that is learned from the captions. 4096 by default."""
    text_length_tokens: int = 32
    """Number of tokens of a caption that are read at most; longer ones are cut. 32 by default."""

    patch_dropout: float = Field(default=0.0, ge=0, lt=1)
    """Share of an image's patches that are left out in a step of training, drawn for each image (FLIP; Li et al. 2023,
    arXiv:2212.00794): 0.5 takes about half the time on the image side. Features are of all patches afterwards. 0 by
    default.
    """
    compile_layers: bool = False
    """Whether torch compiles the layers of both sides (torch.compile), which the first steps wait for. False by
    default.
    """

    @model_validator(mode="after")
    def _whole(self) -> "ClipModelSettings":
        if self.init_from and self.image_encoder:
            raise ValueError("init_from brings an image side, and image_encoder another: remove one of them")
        if self.lock_image and not (self.image_encoder or self.init_from):
            raise ValueError("lock_image needs image_encoder: an image side of random weights would stay random")
        if (
            self.layout == "siglip"
            and not (self.image_encoder or self.init_from)
            and self.embedding_width != self.vision_width
        ):
            raise ValueError(
                f"the siglip layout has no image projection: embedding_width {self.embedding_width} must be "
                f"vision_width {self.vision_width}"
            )
        if self.layout == "resnet":
            self._check_resnet()
        return self

    def _check_resnet(self) -> None:
        if self.image_encoder or self.init_from:
            raise ValueError(
                "model.image_encoder takes a ViT, and model.init_from a CLIP or SigLIP; a resnet is trained from nothing"
            )
        if self.patch_dropout or self.compile_layers:
            raise ValueError(
                "model.patch_dropout and model.compile_layers are for layers of a ViT, which a resnet lacks"
            )
        if self.patch_size_px < 8 or self.patch_size_px.bit_count() != 1 or self.image_size_px % self.patch_size_px:
            raise ValueError(
                f"a resnet's patch_size_px {self.patch_size_px} must be a power of two from 8 that divides "
                f"image_size_px {self.image_size_px}"
            )
        stages = self.resnet_stages
        if self.vision_width % (2 ** (stages - 1) * 32):
            raise ValueError(f"vision_width {self.vision_width} must be a multiple of {2 ** (stages - 1) * 32}")
        if self.vision_layers < stages:
            raise ValueError(f"vision_layers {self.vision_layers} must be {stages} at least: one for each stage")

    @property
    def resnet_stages(self) -> int:
        """The stem divides a side by four, each stage but the first by two."""
        return self.patch_size_px.bit_length() - 2
