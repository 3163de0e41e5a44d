"""Settings of training generators: pictures, pairs, the denoiser, its schedule of noise, and the autoencoder."""

from typing import Literal

from pydantic import Field, model_validator

from mllm.settings import PathText, Settings
from mllm.training.settings import EngineSettings, LoopSettings, OptimizerSettings

Prediction = Literal["epsilon", "sample", "v_prediction"]
Betas = Literal["linear", "scaled_linear", "squaredcos_cap_v2"]


class PictureSettings(Settings):
    """What pictures are while they are drawn: blocks of pixels, or latents of an autoencoder."""

    image_size_px: int = Field(default=32, ge=1)
    """Side of the square pictures, in pixels. 32 by default."""
    pixel_unshuffle: int = Field(default=4, ge=1)
    """Side of the blocks of pixels that become channels, without loss: the denoiser sees image_size_px / pixel_unshuffle
    positions a side. 4 by default; without effect with `autoencoder`.
    """
    autoencoder: PathText | None = None
    """Directory of an `AutoencoderKL` of diffusers, with a scaling factor, in whose latents is drawn. None, the
    default, draws in pixels.
    """

    @model_validator(mode="after")
    def _whole_blocks(self) -> "PictureSettings":
        if self.autoencoder is None and self.image_size_px % self.pixel_unshuffle:
            raise ValueError(
                f"image_size_px {self.image_size_px} is no multiple of pixel_unshuffle {self.pixel_unshuffle}"
            )
        return self


class GenerationDataSettings(Settings):
    """Pairs of a picture and a caption."""

    pairs: PathText
    """JSON lines {"image": …, "caption": …} to train on, as `mllm clip train` reads them."""
    heldout: PathText | None = None
    """JSON lines of pairs whose loss is measured. None by default."""
    image_root: PathText
    """Directory that image paths start from."""
    sources: tuple[str, ...] = ()
    """Values of the records' field `source` that are trained on. All by default."""
    withheld: tuple[tuple[str, ...], ...] = ()
    """Groups of words, such as [[blue, circle]]: a picture with a caption that has all the words of a group is left out,
    with all its captions. None by default.
    """
    max_pairs: int | None = Field(default=None, ge=2)
    """Number of pairs to train on, drawn by the seed. None, the default, takes all."""


class ScheduleSettings(Settings):
    """How noise is added, and what the denoiser says of a noised picture."""

    steps: int = Field(default=1000, ge=2)
    """Number of levels of noise. 1000 by default."""
    betas: Betas = "scaled_linear"
    """How the variance of the noise grows: `scaled_linear` (the default, Stable Diffusion's), `linear` (DDPM's) or
    `squaredcos_cap_v2`, the cosine.
    """
    beta_start: float = Field(default=0.00085, gt=0, lt=1)
    """Variance of the first level; without effect with the cosine. 0.00085 by default."""
    beta_end: float = Field(default=0.012, gt=0, lt=1)
    """Variance of the last level; without effect with the cosine. 0.012 by default."""
    prediction: Prediction = "v_prediction"
    """What is predicted: `v_prediction` (the default; Salimans & Ho 2022), the noise (`epsilon`) or the picture itself
    (`sample`).
    """
    zero_terminal_snr: bool = True
    """Whether the last level is noise alone, so that pictures may be as bright as they like (Lin et al. 2023). True by
    default; not with `epsilon`, which says nothing there.
    """
    min_snr_gamma: float | None = Field(default=None, gt=0)
    """Signal-to-noise ratio above which levels weigh less (Hang et al. 2023, who take 5). None, the default, weighs all
    alike.
    """

    @model_validator(mode="after")
    def _can_be_learned(self) -> "ScheduleSettings":
        if self.zero_terminal_snr and self.prediction == "epsilon":
            raise ValueError(
                "zero_terminal_snr needs prediction v_prediction or sample: at noise alone, the noise says nothing of the "
                "picture"
            )
        if self.zero_terminal_snr and self.min_snr_gamma is not None:
            raise ValueError(
                "min_snr_gamma weighs the level of noise alone with 0, at which drawing begins; leave it out, or set "
                "zero_terminal_snr: false"
            )
        return self


class DenoiserSettings(Settings):
    """The network that takes noise away."""

    kind: Literal["unet", "dit"] = "unet"
    """The network: `unet`, diffusers' U-Net (the default), or `dit`, a transformer of patches (PixArt's). Both attend to
    the text.
    """
    widths: tuple[int, ...] = Field(default=(96, 128), min_length=1)
    """Channels of the U-Net's levels, each at half the side of the one before: multiples of norm_groups. [96, 128] by
    default.
    """
    layers_per_block: int = Field(default=1, ge=1)
    """Residual blocks of a level of the U-Net. 1 by default."""
    norm_groups: int = Field(default=32, ge=1)
    """Groups of the U-Net's norms. 32 by default."""
    heads: int = Field(default=4, ge=1)
    """Attention heads. 4 by default."""
    dit_width: int = Field(default=128, ge=1)
    """Width of the transformer, a multiple of heads. 128 by default."""
    dit_layers: int = Field(default=4, ge=1)
    """Layers of the transformer. 4 by default."""
    dit_patch_size: int = Field(default=1, ge=1)
    """Side of the transformer's patches, in positions. 1 by default."""

    @model_validator(mode="after")
    def _divisible(self) -> "DenoiserSettings":
        if self.kind == "unet":
            odd = next((width for width in self.widths if width % self.norm_groups or width % self.heads), None)
            if odd is not None:
                raise ValueError(
                    f"a width of {odd} is no multiple of norm_groups {self.norm_groups} and heads {self.heads}"
                )
        elif self.dit_width % self.heads:
            raise ValueError(f"dit_width {self.dit_width} is no multiple of heads {self.heads}")
        return self


class TextSettings(Settings):
    """The frozen text side that the denoiser attends to."""

    clip: PathText
    """Directory of a CLIP, such as `mllm clip train` writes, or of a `CLIPTextModel`."""
    length_tokens: int | None = Field(default=None, ge=3)
    """Number of tokens that a caption is padded or cut to. None, the default, is the text side's own length."""


class AveragesSettings(Settings):
    """The running mean of the weights, which draws better than the last ones."""

    cap: float = Field(default=0.999, ge=0, lt=1)
    """Decay at most; after n steps it is min(cap, (1 + n) / (10 + n)), so that a short run forgets its beginning. 0.999
    by default.
    """


class HeldoutSettings(Settings):
    """The loss on held-out pairs, at the same noise each time."""

    every_steps: int = Field(default=500, ge=1)
    """Number of steps between measurements. 500 by default."""
    pictures: int = Field(default=64, ge=1)
    """Number of held-out pairs, the first of the file. 64 by default."""


class GenerationSettings(Settings):
    """What `mllm generate train` reads for every kind of generator."""

    kind: str
    """What is trained."""
    run_dir: PathText
    """Directory of the run: config, metrics, cached rows, checkpoints, and final/ at its end. A run that was stopped
    goes on from it.
    """
    seed: int = 0
    """Seed of the order of pairs, of new weights and of noise. 0 by default."""
    data: GenerationDataSettings
    """Which pairs are trained on."""
    optim: OptimizerSettings
    """The optimizer and the schedule of its rate."""
    train: LoopSettings = LoopSettings()
    """How long the run trains, in what portions and precision, and when it is saved."""
    engine: EngineSettings = EngineSettings()
    """Which engine computes the steps, over how many processes."""
    averages: AveragesSettings = AveragesSettings()
    """The running mean of the weights."""

    @model_validator(mode="after")
    def _nothing_of_language_models(self) -> "GenerationSettings":
        if self.train.gradient_checkpointing or self.train.neftune_alpha or self.train.tiles_together:
            raise ValueError(
                "train.gradient_checkpointing, train.neftune_alpha and train.tiles_together are for language models; "
                "leave them out"
            )
        if (self.train.attention, self.train.fused_layers) != ("auto", "auto"):
            raise ValueError("train.attention and train.fused_layers are for language models; leave them out")
        if self.engine.kind == "fsdp" or (self.engine.ds_config or "").startswith("zero3"):
            raise ValueError(
                "averages of weights need them whole: engine.kind fsdp and ZeRO 3 spread them; take ZeRO 2"
            )
        return self


class DrawingSettings(GenerationSettings):
    """What `mllm generate train` reads for every kind of generator whose denoiser draws pictures."""

    pictures: PictureSettings = PictureSettings()
    """How large pictures are, and in what they are drawn."""
    denoiser: DenoiserSettings = DenoiserSettings()
    """The network."""
    schedule: ScheduleSettings = ScheduleSettings()
    """Levels of noise and what is predicted."""
    heldout: HeldoutSettings = HeldoutSettings()
    """When the loss on held-out pairs is measured, where there are some."""


class DiffusionSettings(DrawingSettings):
    """Everything that `mllm generate train` reads for pictures from text."""

    kind: Literal["text"] = "text"
    """What is trained: `text`, pictures from captions."""
    text: TextSettings
    """The text side."""
    caption_dropout: float = Field(default=0.1, ge=0, lt=1)
    """Share of captions that are replaced by an empty one, which guidance needs. 0.1 by default."""


class AutoencoderSettings(GenerationSettings):
    """Everything that `mllm generate train` reads for an autoencoder, in whose latents others draw."""

    kind: Literal["autoencoder"] = "autoencoder"
    """What is trained: `autoencoder`, a small `AutoencoderKL`."""
    pictures: PictureSettings = PictureSettings()
    """How large pictures are."""
    widths: tuple[int, ...] = Field(default=(32, 64, 64), min_length=1)
    """Channels of its levels; each but the last halves the side. [32, 64, 64] by default."""
    latent_channels: int = Field(default=4, ge=1)
    """Channels of the latents. 4 by default."""
    norm_groups: int = Field(default=16, ge=1)
    """Groups of its norms, which widths are multiples of. 16 by default."""
    kl_weight: float = Field(default=1e-6, ge=0)
    """Weight of the latents' divergence from a unit normal beside the mean squared error. 1e-6 by default."""

    @model_validator(mode="after")
    def _divisible(self) -> "AutoencoderSettings":
        if any(width % self.norm_groups for width in self.widths):
            raise ValueError(f"widths {list(self.widths)} are not all multiples of norm_groups {self.norm_groups}")
        halvings = 2 ** (len(self.widths) - 1)
        if self.pictures.image_size_px % halvings:
            raise ValueError(f"pictures.image_size_px {self.pictures.image_size_px} is no multiple of {halvings}")
        if self.pictures.autoencoder is not None:
            raise ValueError("pictures.autoencoder is for what draws in latents; an autoencoder reads pixels")
        return self
