"""Settings of the assembled model, and of what of it learns."""

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from mllm.media.visual import Fit
from mllm.settings import PathText, Settings


class SecondEncoderSettings(Settings):
    """An encoder that sees the tiles of another one beside it."""

    path: PathText
    """A directory or hub id of an encoder, as for the first."""
    feature_layer: int = -2
    """Index of the hidden states that are used. -2 by default."""
    image_size_px: int | None = Field(default=None, ge=1)
    """Side of the square that it sees of a tile, in pixels. The default, null, is the first encoder's side."""
    fusion: Literal["width", "interleaved"] = "width"
    """How the features of a patch come together: side by side, as wide as both (`width`, the default; Prismatic), or one
    after the other, twice as many (`interleaved`; MMVP).
    """


class VisionEncoderSettings(Settings):
    """The vision encoder, and which of its features are used."""

    path: PathText | None = None
    """A directory or hub id of an encoder, alone or with what it was trained with: CLIP, MetaCLIP 2, AltCLIP, Chinese-CLIP,
    SigLIP, SigLIP 2 of a fixed size, DINOv2, DINOv3, AIMv2, InternViT, MLCD, or one of timm. Needed unless `init_from`
    brings one.
    """
    feature_layer: int = -2
    """Index of the hidden states that are used, as transformers returns them: 0 is the embeddings, -1 the last layer;
    timm's have no embeddings, so that 0 is the first block or stage. The default, -2, is LLaVA-1.5's.
    """
    image_size_px: int | None = Field(default=None, ge=1)
    """Side of the square tiles that the encoder gets, in pixels. At another side than it was trained at its positions are
    interpolated as its own code does. The default, null, is the side that it was trained at; under `init_from`, the side
    that was saved.
    """
    second: SecondEncoderSettings | None = None
    """Another encoder that sees the same tiles, with its own mean, standard deviation and colour around a padded image.
    Both have to make the same grid of patches of a tile. None by default.
    """
    class_token: Literal["drop", "keep"] = "drop"
    """What becomes of the encoder's class token: `drop` (the default), or `keep`, which hands it on as one more image
    token.
    """


class ProjectorSettings(Settings):
    """The projector, from image features to the language model's embeddings."""

    kind: str = "mlp2x_gelu"
    """Name of the projector: `linear`; `mlp2x_gelu`, which is the default and LLaVA-1.5's, or any other `mlpNx_gelu`;
    `norm_mlp2x_gelu` (InternVL's, with a LayerNorm in front); `average_pool` and `bilinear_pool`; `resampler` (Qwen-VL's);
    `c_abstractor` (Honeybee's).
    """
    shuffle: int = Field(default=1, ge=1)
    """Side of the square of patches that become one image token: 2 merges 2×2 patches. The default, 1, merges none. For
    projectors that have no `tokens`.
    """
    tokens: int | None = Field(default=None, ge=1)
    """Number of image tokens of a tile, a square number, of `average_pool`, `bilinear_pool`, `c_abstractor` and
    `resampler`. The default, null, is a quarter of the patches for the pools, 144 for `c_abstractor`, 256 for `resampler`.
    """
    hidden_width: int | None = Field(default=None, ge=4)
    """Width of the blocks of `c_abstractor`. The default, null, is 1024, which is Honeybee's."""
    calibration_images: int = Field(default=0, ge=0)
    """Number of training images that set the scale which a new projector starts from. The default, 0, leaves its
    random weights as they are, as LLaVA did.
    """
    word_epochs: int = Field(default=0, ge=0)
    """Passes over the calibration images in which a new projector learns to tell the words of their answers from other
    images', before training and without the language model: seconds for thousands of images. The default, 0, is none.
    """
    word_features: PathText | None = None
    """A safetensors file of `features` [N, encoder width] and, as JSON in its metadata, the `words` of each, to be learned
    beside those of the images: what a classifier knows of its classes. The default, null, is none.
    """

    @model_validator(mode="after")
    def _check_words(self) -> "ProjectorSettings":
        if self.word_epochs and not self.calibration_images:
            raise ValueError("word_epochs needs images; set calibration_images, such as 4000")
        if self.word_features is not None and not self.word_epochs:
            raise ValueError("word_features are learned in word_epochs; set it, such as 8")
        return self


class LanguageModelSettings(Settings):
    """The language model."""

    path: PathText
    """A directory or hub id of a causal language model of transformers, or a model directory of ours, whose language
    model is taken.
    """


class ImageSettings(Settings):
    """What images become: how one is made square or cut into tiles, and what several share."""

    fit: Fit = "pad"
    """How an image becomes square: `pad` (the default; LLaVA-1.5 stage 2) centres it on the encoder's mean colour,
    `crop` (stage 1, CLIP) scales the short side and cuts the middle, `stretch` ignores the aspect ratio.
    """
    tiling: str = "square"
    """Name of the tiling: `square` (the default) makes one tile of an image, `anyres` (LLaVA-NeXT) an overview and tiles
    of the image scaled into a pinpoint, `anyres_max` (LLaVA-OneVision) the same with a limit on its tokens, `grid`
    (InternVL) tiles of the stretched image and a thumbnail.
    """
    pinpoints: tuple[tuple[int, int], ...] = ()
    """Pairs of pixels, multiples of the encoder's side: the sizes that `anyres` and `anyres_max` scale an image into.
    Empty by default: for `anyres` LLaVA-1.6's five of up to three tiles, for `anyres_max` all of up to 6 × 6 tiles.
    """
    rule: Literal["hf", "original"] = "hf"
    """Axis order and rounding of the pinpoints: `hf` (the default; (height, width), as transformers reads them) or
    `original` ((width, height), as the LLaVA-NeXT code does).
    """
    max_tiles: int | None = Field(default=None, ge=1)
    """Most tiles of one image, overviews not counted. The default, null, leaves it to the pinpoints, and is 12 for `grid`."""
    map_tiles: int = Field(default=9, ge=1)
    """Number of tiles: `anyres_max` scales a map of more features than so many tiles have. 9 by default."""
    several: Literal["tile", "share", "square"] = "tile"
    """What images become of which there are more than one: each is tiled as if alone (`tile`, the default), they share
    `max_tiles` (`share`; InternVL), or each becomes one square (`square`; LLaVA-OneVision).
    """
    several_in: Literal["turn", "sample"] = "turn"
    """Which images count together for `several`: those of one turn (`turn`, the default), so that a later image changes
    nothing that was computed of an earlier one, or those of the whole conversation (`sample`).
    """
    max_image_tokens: int | None = Field(default=None, ge=1)
    """Most image tokens of a conversation; one with more is refused with the count of each image. Null, the default,
    allows any number.
    """


class VideoSettings(Settings):
    """What videos become: which frames are shown, and how their features are pooled and told apart."""

    frames: int = Field(default=8, ge=1)
    """Most frames that are shown of a video. 8 by default."""
    sampling: Literal["inclusive", "exclusive", "fps"] = "inclusive"
    """How frames are chosen: `inclusive` (the default; LLaVA) spreads them from the first to the last, `exclusive`
    (transformers) leaves the end out, `fps` takes `fps` a second, and `inclusive` ones where these are more than `frames`.
    """
    fps: float = Field(default=1.0, gt=0)
    """Frames a second under `sampling: fps`. 1 by default."""
    fit: Fit = "stretch"
    """How a frame becomes square: `stretch` (the default; LLaVA-Video), `pad` or `crop`."""
    pooling: Literal["none", "average", "bilinear"] = "none"
    """How the features of a frame are pooled: not (`none`, the default), by the `average` of squares, or `bilinear`."""
    stride: int = Field(default=2, ge=1)
    """Side of the square of features that pooling makes one of. 2 by default."""
    pool_before_projector: bool = False
    """Whether pooling comes before the projector's layers (LLaVA-NeXT-Video) and not behind them (the default)."""
    newline: Literal["none", "row", "frame", "end"] = "none"
    """Where the learned newline stands: nowhere (`none`, the default), behind each `row` of a frame, behind each `frame`,
    or once at the `end` of the video.
    """
    time_prompt: Literal["none", "llava_video"] = "none"
    """Sentence that says how long the video is and when its frames are: `none` (the default), or LLaVA-Video's."""


class ModelSettings(Settings):
    """The model that a run begins with: a saved one (`init_from`), or parts."""

    init_from: PathText | None = None
    """A model directory that the run begins with: one of ours, which brings the encoder, the projector and the language
    model, or a directory or hub id of any model of transformers that reads images and text.
    """
    random_weights: bool = False
    """Whether a model of transformers begins with weights that its own code draws, by the run's seed, in place of those of
    its directory, which needs none then. False by default.
    """
    vision_encoder: VisionEncoderSettings | None = None
    """The vision encoder. Needed unless `init_from` is given, under which its `image_size_px` alone may be set."""
    projector: ProjectorSettings = ProjectorSettings()
    """The projector. Ignored where `init_from` brings one."""
    language_model: LanguageModelSettings | None = None
    """The language model. Needed unless `init_from` is given."""
    image: ImageSettings = ImageSettings()
    """What images become. Under `init_from`, what isn't given is as it was saved."""
    video: VideoSettings = VideoSettings()
    """What videos become. Under `init_from`, what isn't given is as it was saved."""
    prompt_format: str = "vicuna_v1"
    """How a conversation becomes text: a name such as `plain`, `vicuna_v1` (the default) or `chatml`, or `native` for
    the language model's own chat template. It is saved with the model.
    """
    box_format: str | None = None
    """How places in an image become text, and how answers with places are read: `llava`, `qwen_vl`, `qwen2_vl`,
    `qwen25_vl_json`, `internvl` or `kosmos2`. It is saved with the model. Null, the default: as it was saved under
    `init_from`, else `llava`.
    """

    @model_validator(mode="after")
    def _one_origin(self) -> "ModelSettings":
        encoder = self.vision_encoder
        resized_alone = encoder is None or encoder.model_fields_set <= {"image_size_px"}
        if self.init_from and (self.language_model or not resized_alone):
            raise ValueError(
                "init_from already brings the encoder and the language model; remove one or the other (of vision_encoder, "
                "image_size_px may stay)"
            )
        if not self.init_from and not (encoder and encoder.path and self.language_model):
            raise ValueError("needs vision_encoder (with its path) and language_model, or init_from (a saved model)")
        if self.random_weights and not self.init_from:
            raise ValueError("random_weights draws those of a model of transformers: name its directory as init_from")
        return self

    @property
    def encoder_path(self) -> str:
        """The directory or hub id of the vision encoder, of a model that is put together from parts."""
        assert self.vision_encoder is not None and self.vision_encoder.path is not None
        return self.vision_encoder.path

    @property
    def encoder_paths(self) -> tuple[str, ...]:
        """The same of the first encoder, and of the one beside it if there is one."""
        second = self.vision_encoder.second if self.vision_encoder is not None else None
        return (self.encoder_path,) if second is None else (self.encoder_path, second.path)

    @property
    def image_size_px(self) -> int | None:
        """The side of tiles that is asked for; None leaves it as it was trained or saved."""
        return self.vision_encoder.image_size_px if self.vision_encoder is not None else None


class LoraSettings(Settings):
    """Low-rank updates (Hu et al. 2022)."""

    rank: int = Field(default=128, ge=1)
    """Rank of the updates. The default, 128, is LLaVA-1.5's."""
    alpha: float = Field(default=256, gt=0)
    """Scale of the updates, which are multiplied by alpha / rank. The default, 256, is LLaVA-1.5's."""
    dropout: float = Field(default=0.05, ge=0, lt=1)
    """Share of the inputs of the updates that is dropped while training, from 0 to below 1. The default, 0.05, is
    LLaVA-1.5's.
    """
    targets: tuple[str, ...] = ()
    """Patterns of the names of the layers that are updated, where `*` stands for anything; the beginning of a name may
    be left out (`q_proj`, `layers.1?.self_attn.*`). Empty (the default) or `all-linear`: every linear layer but the
    language model's head.
    """

    @field_validator("targets", mode="before")
    @classmethod
    def _all_linear_is_no_pattern(cls, value: Any) -> Any:
        return () if value in ("all-linear", ["all-linear"], ("all-linear",)) else value


class TrainableSettings(Settings):
    """Which parts learn, and how. `docs/how-to/lora_and_freezing.md` tells when to take which."""

    vision_encoder: Literal["frozen", "full", "lora"] = "frozen"
    """How the encoder learns: `frozen` (the default), `full`, or `lora` (low-rank updates)."""
    vision_encoder_from_layer: int | None = Field(default=None, ge=0)
    """Index of the first encoder layer that learns under `vision_encoder: full`; lower ones and the patch embedding
    stay frozen. All learn by default.
    """
    projector: Literal["frozen", "full"] = "full"
    """How the projector learns: `full` (the default) or `frozen`."""
    language_model: Literal["frozen", "full", "lora", "dora", "qlora"] = "frozen"
    """How the language model learns: `frozen` (the default), `full`, `lora` (low-rank updates), `dora` (also a
    magnitude per output; Liu et al. 2024), or `qlora` (low-rank updates on linear layers in 4 bits: nf4 with double
    quantization; Dettmers et al. 2023).
    """
    language_model_from_layer: int | None = Field(default=None, ge=0)
    """Index of the first layer of the language model that learns under `language_model: full`; lower ones stay frozen,
    and `token_embeddings` says of the embeddings. All learn by default.
    """
    token_embeddings: Literal["frozen", "full"] = "full"
    """How a fully trained language model's input and output embeddings learn: `full` (the default) or `frozen`. In a
    small model they are a quarter of the weights, and a step's dense gradient for them costs more than it teaches.
    """
    lora: LoraSettings = LoraSettings()
    """Shape of the language model's updates."""
    vision_encoder_lora: LoraSettings = LoraSettings()
    """Shape of the encoder's updates."""

    @model_validator(mode="after")
    def _layers_of_parts_that_learn(self) -> "TrainableSettings":
        for part in ("vision_encoder", "language_model"):
            first, kind = getattr(self, f"{part}_from_layer"), getattr(self, part)
            if first is not None and kind != "full":
                raise ValueError(f"{part}_from_layer is {first} but {part} is {kind}; it goes with {part}: full")
        return self
