"""Settings of contrastive training: sizes and origin of the two encoders, the loss, caption noise."""

from typing import Literal

from pydantic import Field, model_validator

from mllm.config.load import Settings
from mllm.config.paths import PathText
from mllm.config.run import EngineSettings, LoopSettings, OptimizerSettings


class ClipModelSettings(Settings):
    """A dual encoder: sizes of one trained from nothing (widths in features, image size in pixels), and what is loaded.

    layout: transformers' `CLIPModel` or `SiglipModel`, or `resnet`: a `BitModel` beside CLIP's text side in a
    `VisionTextDualEncoderModel`. Its last stage is vision_width wide, each before it half of the next, and has one
    feature for every patch_size_px (a power of two from 8) pixels of a side; the stages share vision_layers blocks.

    image_encoder: a checkpoint whose image side is taken; its sizes then win over image_size_px, patch_size_px and
    vision_…. lock_image: what was taken stays as it is, so only the text side learns (locked-image tuning, LiT; Zhai et
    al. 2022, arXiv:2111.07991).
    """

    layout: Literal["clip", "siglip", "resnet"] = "clip"
    image_encoder: PathText | None = None
    lock_image: bool = False
    image_size_px: int = 64
    patch_size_px: int = 8
    vision_width: int = 256
    vision_layers: int = 6
    text_width: int = 256
    text_layers: int = 4
    embedding_width: int = 256
    vocabulary_size: int = 4096
    text_length_tokens: int = 32

    @model_validator(mode="after")
    def _whole(self) -> "ClipModelSettings":
        if self.lock_image and not self.image_encoder:
            raise ValueError("lock_image needs image_encoder: an image side of random weights would stay random")
        if self.layout == "siglip" and not self.image_encoder and self.embedding_width != self.vision_width:
            raise ValueError(
                f"the siglip layout has no image projection: embedding_width {self.embedding_width} must be "
                f"vision_width {self.vision_width}"
            )
        if self.layout == "resnet":
            self._check_resnet()
        return self

    def _check_resnet(self) -> None:
        if self.image_encoder:
            raise ValueError("model.image_encoder takes a ViT; a resnet is trained from nothing")
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


class CaptionNoiseSettings(Settings):
    """Shares of the training captions that are spoilt, as alt-text of the web is (ALIGN; Jia et al. 2021).

    mismatched: belongs to another image. truncated: only its first half of words. boilerplate: says nothing of any image.
    """

    mismatched: float = Field(default=0.0, ge=0, le=1)
    truncated: float = Field(default=0.0, ge=0, le=1)
    boilerplate: float = Field(default=0.0, ge=0, le=1)

    @model_validator(mode="after")
    def _at_most_all(self) -> "CaptionNoiseSettings":
        if self.mismatched + self.truncated + self.boilerplate > 1:
            raise ValueError("mismatched + truncated + boilerplate is over 1; a caption is spoilt in one way")
        return self


class ClipDataSettings(Settings):
    """`pairs` and `heldout`: JSON lines of `{"image", "caption"}`, image paths relative to `image_root`.

    max_pairs: train on so many of the pairs, drawn by the seed. noise spoils training captions, never held-out ones.
    """

    pairs: PathText
    heldout: PathText | None = None
    image_root: PathText
    max_pairs: int | None = Field(default=None, ge=2)
    noise: CaptionNoiseSettings = CaptionNoiseSettings()


class ContrastiveLossSettings(Settings):
    """infonce: symmetric, one positive a query (CLIP). multi_positive: every pair of the same words or the same image is
    one. sigmoid: each pair a yes/no question (SigLIP).

    grad_cache: features of `train.micro_batch_size` pairs at a time, loss over the whole batch (Gao et al. 2021): the
    full batch's gradient in a small batch's memory, for one more forward.
    """

    kind: Literal["infonce", "multi_positive", "sigmoid"] = "infonce"
    grad_cache: bool = False


class ContrastiveSettings(Settings):
    """Everything `train/contrastive.py` reads."""

    run_dir: PathText
    seed: int = 0
    model: ClipModelSettings = ClipModelSettings()
    data: ClipDataSettings
    loss: ContrastiveLossSettings = ContrastiveLossSettings()
    optim: OptimizerSettings
    train: LoopSettings = LoopSettings()
    engine: EngineSettings = EngineSettings()

    @model_validator(mode="after")
    def _one_loss_a_batch(self) -> "ContrastiveSettings":
        if self.loss.kind == "sigmoid" and self.model.layout != "siglip":
            raise ValueError(
                "loss.kind: sigmoid learns a bias, which only the siglip layout has; set model.layout: siglip"
            )
        if self.train.gradient_checkpointing or self.train.neftune_alpha:
            raise ValueError(
                "train.gradient_checkpointing and train.neftune_alpha are for language models; loss.grad_cache: true "
                "bounds memory here"
            )
        if (self.train.attention, self.train.fused_layers) != ("auto", "auto"):
            raise ValueError("train.attention and train.fused_layers are for language models; leave them out")
        if self.loss.grad_cache and "micro_batch_size" not in self.train.model_fields_set:
            raise ValueError("loss.grad_cache needs train.micro_batch_size: the pairs that go through at once")
        return self
