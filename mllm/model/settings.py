"""Settings of models: the assembled one, what of it learns, and dual encoders."""

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from mllm.settings import PathText, Settings


class VisionEncoderSettings(Settings):
    """Where the encoder comes from and which of its features are used.

    `feature_layer` indexes the hidden states as transformers returns them (0 = embeddings, -1 = last layer, -2 as in
    LLaVA-1.5). `class_token: keep` hands the class token on as one more image token.
    """

    path: PathText
    feature_layer: int = -2
    class_token: Literal["drop", "keep"] = "drop"


class ProjectorSettings(Settings):
    """Which projector, and how many square patches it merges (`shuffle` 2: 2×2 patches become one image token).

    `calibration_images`: so many training images set the scale that a new projector starts from (0: none, as in LLaVA).
    """

    kind: str = "mlp2x_gelu"
    shuffle: int = Field(default=1, ge=1)
    calibration_images: int = Field(default=0, ge=0)


class LanguageModelSettings(Settings):
    """A causal language model of transformers, or a model directory of ours, whose language model is taken."""

    path: PathText


class ImageSettings(Settings):
    """How an image is made to fit the encoder's square input.

    `pad` centres it on a square of the encoder's mean colour (LLaVA-1.5 stage 2), `crop` scales the short side and cuts
    the middle (stage 1, CLIP's own), `stretch` ignores the aspect ratio.
    """

    fit: Literal["pad", "crop", "stretch"] = "pad"


class ModelSettings(Settings):
    """Either `init_from` (a checkpoint of ours) or all three parts."""

    init_from: PathText | None = None
    vision_encoder: VisionEncoderSettings | None = None
    projector: ProjectorSettings = ProjectorSettings()
    language_model: LanguageModelSettings | None = None
    image: ImageSettings = ImageSettings()
    prompt_format: str = "vicuna_v1"

    @model_validator(mode="after")
    def _one_origin(self) -> "ModelSettings":
        parts = [self.vision_encoder, self.language_model]
        if self.init_from and any(parts):
            raise ValueError("init_from already brings the encoder and the language model; remove one or the other")
        if not self.init_from and not all(parts):
            raise ValueError("needs vision_encoder and language_model, or init_from (a saved model)")
        return self


class LoraSettings(Settings):
    """Low-rank updates (LLaVA-1.5: rank 128, alpha 256, dropout 0.05).

    `targets`: patterns of module names within the part, where `*` stands for anything; a pattern may leave out the
    beginning of the path (`q_proj`, `layers.1?.self_attn.*`). Empty, or `all-linear` as peft calls it: every linear layer
    but the language model's head.
    """

    rank: int = Field(default=128, ge=1)
    alpha: float = Field(default=256, gt=0)
    dropout: float = Field(default=0.05, ge=0, lt=1)
    targets: tuple[str, ...] = ()

    @field_validator("targets", mode="before")
    @classmethod
    def _all_linear_is_no_pattern(cls, value: Any) -> Any:
        return () if value in ("all-linear", ["all-linear"], ("all-linear",)) else value


class TrainableSettings(Settings):
    """What learns, part by part: `docs/parameter_policies.md` tells when to take which.

    `lora`: low-rank updates (Hu et al. 2022). `dora`: also a magnitude per output (Liu et al. 2024). `qlora`: the part's
    linear layers in 4 bits (nf4, double quantization; Dettmers et al. 2023) under low-rank updates.
    `vision_encoder_from_layer`: with `vision_encoder: full`, encoder layers of a lower index and the patch embedding
    stay frozen. `token_embeddings: frozen` keeps a fully trained language model's input and output embeddings as they
    are: in a small model they are a quarter of the weights, and a step's dense gradient for them costs more than it
    teaches. `lora` shapes the updates of the language model, `vision_encoder_lora` those of the encoder.
    """

    vision_encoder: Literal["frozen", "full", "lora"] = "frozen"
    vision_encoder_from_layer: int | None = Field(default=None, ge=0)
    projector: Literal["frozen", "full"] = "full"
    language_model: Literal["frozen", "full", "lora", "dora", "qlora"] = "frozen"
    token_embeddings: Literal["frozen", "full"] = "full"
    lora: LoraSettings = LoraSettings()
    vision_encoder_lora: LoraSettings = LoraSettings()

    @model_validator(mode="after")
    def _layer_of_a_learning_encoder(self) -> "TrainableSettings":
        if self.vision_encoder_from_layer is not None and self.vision_encoder != "full":
            raise ValueError(
                f"vision_encoder_from_layer is {self.vision_encoder_from_layer} but vision_encoder is "
                f"{self.vision_encoder}; it goes with vision_encoder: full"
            )
        return self


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
