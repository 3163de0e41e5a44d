"""Settings of contrastive training: pairs, caption noise, the loss."""

from typing import Literal

from pydantic import Field, model_validator

from mllm.model.settings import ClipModelSettings
from mllm.settings import PathText, Settings
from mllm.training.settings import EngineSettings, LoopSettings, OptimizerSettings


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
