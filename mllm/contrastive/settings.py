"""Settings of contrastive training: pairs, caption noise, the loss."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from mllm.contrastive.augment import AugmentSettings
from mllm.contrastive.source_settings import PairFilterSettings, PairSourceSettings
from mllm.model.dual_settings import ClipModelSettings
from mllm.settings import PathText, Settings
from mllm.training.settings import EngineSettings, LoopSettings, OptimizerSettings


class CaptionNoiseSettings(Settings):
    """Shares of the training captions that are spoilt, as alt-text of the web is (ALIGN; Jia et al. 2021)."""

    mismatched: float = Field(default=0.0, ge=0, le=1)
    """Share of captions that are replaced by another image's, from 0 to 1. 0 by default."""
    truncated: float = Field(default=0.0, ge=0, le=1)
    """Share of captions that keep only the first half of their words, from 0 to 1. 0 by default."""
    boilerplate: float = Field(default=0.0, ge=0, le=1)
    """Share of captions that are replaced by words which say nothing of any image, from 0 to 1. 0 by default."""

    @model_validator(mode="after")
    def _at_most_all(self) -> "CaptionNoiseSettings":
        if self.mismatched + self.truncated + self.boilerplate > 1:
            raise ValueError("mismatched + truncated + boilerplate is over 1; a caption is spoilt in one way")
        return self


class ClipDataSettings(Settings):
    """Pairs of an image and a caption."""

    pairs: PathText | Annotated[tuple[PairSourceSettings, ...], Field(min_length=1)]
    """The pairs to train on: a file, such as JSON lines {"image": …, "caption": …}; a pattern, a list or a directory of
    files; or several sources with weights, in a list.
    """
    heldout: PathText | None = None
    """Pairs whose recall is measured at the end, in a file or in several. None by default."""
    image_root: PathText = "."
    """Directory that image paths start from. The working directory by default."""
    filters: PairFilterSettings = PairFilterSettings()
    """Which pairs are left out as they are read. None are by default."""
    workers: Annotated[int, Field(ge=0)] | Literal["auto"] = "auto"
    """Number of threads of each rank that decode the images of the next step. `auto` (the default) goes by the cores
    that it may have; with 0, the one thread that prepares the step decodes, too.
    """
    on_bad_sample: Literal["error", "skip"] = "error"
    """What to do about a record that is no pair and an image that can't be read: `error` (the default) ends the run,
    `skip` counts it and goes on. The loss of a step is then that of its other pairs.
    """
    max_bad_share: float = Field(default=0.1, ge=0, le=1)
    """Share of the pairs met so far that may be skipped; above it the run ends. Fewer than 1,000 count as 1,000. 0.1 by
    default.
    """
    max_pairs: int | None = Field(default=None, ge=2)
    """Number of pairs to train on, drawn by the seed. None, the default, takes all."""
    noise: CaptionNoiseSettings = CaptionNoiseSettings()
    """How training captions are spoilt; held-out ones never are. They aren't by default."""
    augment: AugmentSettings = AugmentSettings()
    """How training images are changed. They are cut by a `jitter` by default."""


class ContrastiveLossSettings(Settings):
    """The contrastive loss."""

    kind: Literal["infonce", "multi_positive", "sigmoid"] = "infonce"
    """The loss: `infonce` (the default) is symmetric, with one positive a query (CLIP); in `multi_positive`, every
    pair of the same words or the same image is one; `sigmoid` asks a yes/no question of each pair (SigLIP).
    """
    grad_cache: bool = False
    """Whether features are computed `train.micro_batch_size` pairs at a time, with the loss over the whole batch (Gao
    et al. 2021): the full batch's gradient in a small batch's memory, for one more forward pass. False by default.
    """


class ContrastiveSettings(Settings):
    """Everything that `mllm clip train` reads."""

    run_dir: PathText
    """Directory of the run: config, metrics, checkpoints, and final/ at its end. A run that was stopped goes on from
    it.
    """
    seed: int = 0
    """Seed of the order of pairs, of new weights and of noise. 0 by default."""
    model: ClipModelSettings = ClipModelSettings()
    """The dual encoder."""
    data: ClipDataSettings
    """Which pairs are trained on."""
    loss: ContrastiveLossSettings = ContrastiveLossSettings()
    """Which loss is computed, and how."""
    optim: OptimizerSettings
    """The optimizer and the schedule of its rate."""
    train: LoopSettings = LoopSettings()
    """How long the run trains, in what portions and precision, and when it is saved."""
    engine: EngineSettings = EngineSettings()
    """Which engine computes the steps, over how many processes."""

    @model_validator(mode="after")
    def _one_loss_a_batch(self) -> "ContrastiveSettings":
        if self.loss.kind == "sigmoid" and self.model.layout != "siglip":
            raise ValueError(
                "loss.kind: sigmoid learns a bias, which only the siglip layout has; set model.layout: siglip"
            )
        if self.train.gradient_checkpointing or self.train.neftune_alpha or self.train.tiles_together:
            raise ValueError(
                "train.gradient_checkpointing, train.neftune_alpha and train.tiles_together are for language models; "
                "loss.grad_cache: true bounds memory here"
            )
        if (self.train.attention, self.train.fused_layers) != ("auto", "auto"):
            raise ValueError("train.attention and train.fused_layers are for language models; leave them out")
        if self.loss.grad_cache and "micro_batch_size" not in self.train.model_fields_set:
            raise ValueError("loss.grad_cache needs train.micro_batch_size: the pairs that go through at once")
        return self
