"""Settings of contrastive training: pairs, caption noise, the loss."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from mllm.contrastive.augment import AugmentSettings
from mllm.contrastive.caption_prompts import PromptSettings
from mllm.contrastive.negatives import Ignored
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
    prompts: PromptSettings = PromptSettings()
    """Which prompts training captions are put in. None are by default."""


class ClipOptimizerSettings(OptimizerSettings):
    """AdamW over both sides, with linear warm-up and then a cosine or constant rate."""

    lr_text_encoder: float | None = Field(default=None, gt=0)
    """Learning rate of the text side. `lr` by default."""
    layer_decay_text_encoder: float = Field(default=1.0, gt=0, le=1)
    """Factor from one layer of the text side to the one in front of it, as `layer_decay_vision_encoder` is. 1.0, the
    default, is the same rate for all.
    """
    weight_decay_text_encoder: float | None = Field(default=None, ge=0)
    """Weight decay of the text side. `weight_decay` by default."""

    @model_validator(mode="after")
    def _of_both_sides(self) -> "ClipOptimizerSettings":
        absent = ("lr_projector", "weight_decay_projector", "lr_token_embeddings", "weight_decay_token_embeddings")
        for name in absent:
            if getattr(self, name) is not None:
                raise ValueError(
                    f"{name} is for language models; a dual encoder has lr_vision_encoder and lr_text_encoder"
                )
        return self


class ClipEvalSettings(Settings):
    """What is measured of the model while it trains."""

    every_steps: int = Field(default=1000, ge=1)
    """Number of steps from one measurement to the next; the last step is measured, too. 1000 by default."""
    pairs: PathText | None = None
    """Pairs whose recall@1, 5 and 10 is measured both ways, as CLIP_benchmark does. None by default."""
    reader: str = "captions"
    """What the records of `pairs` mean: `captions` (the default), `coco_captions`, `karpathy_test` of Karpathy's splits of
    COCO and Flickr30k; an unknown name lists the readers.
    """
    image_root: PathText | None = None
    """Directory that the image paths of `pairs` start from. `data.image_root` by default."""
    folder: PathText | None = None
    """A folder whose folders are classes, such as ImageNet's `val`, or a webdataset of CLIP_benchmark: zero-shot
    accuracy@1 and @5. None by default.
    """
    class_file: PathText | None = None
    """A file of class names, as `mllm clip eval --class-file` takes them, or `imagenet`. By default the folders' names."""
    templates: PathText | None = None
    """A file of prompts, each with {} for the class name, whose features are averaged, or the name of a published
    ensemble, such as `imagenet`. By default the data set's own, or an ensemble of eight.
    """

    @model_validator(mode="after")
    def _of_something(self) -> "ClipEvalSettings":
        if self.pairs is None and self.folder is None:
            raise ValueError("give pairs, for recall, or folder, for zero-shot accuracy")
        if self.folder is None and (self.class_file or self.templates):
            raise ValueError("class_file and templates are for the classes of a folder, which is missing")
        return self


class ContrastiveLossSettings(Settings):
    """The contrastive loss."""

    kind: Literal["infonce", "multi_positive", "sigmoid"] = "infonce"
    """The loss: `infonce` (the default) is symmetric, with one positive a query (CLIP); in `multi_positive`, every
    pair of the same words or the same image is one; `sigmoid` asks a yes/no question of each pair (SigLIP).
    """
    ignore: Ignored = "describes"
    """Which pairs are no negatives of each other: `none` is CLIP's and open_clip's loss, in which every other pair of
    the batch is one; `same` leaves out pairs of the same image or the same words; `describes` (the default) also those
    where the words of one caption are all in the other's ("a circle", "a red circle").
    """
    grad_cache: bool = False
    """Whether features are computed `train.micro_batch_size` pairs at a time, with the loss over the whole batch (Gao
    et al. 2021): the full batch's gradient in a small batch's memory, for one more forward pass. False by default.
    """

    teacher: PathText | None = None
    """A dual encoder to learn from beside the pairs: cross-entropy of its probabilities over the batch and the
    model's, both ways, as open_clip distils. None by default.
    """
    teacher_weight: float = Field(default=1.0, gt=0)
    """Weight of the teacher's loss beside the pairs'. 1.0 by default."""

    @model_validator(mode="after")
    def _teaches_a_softmax(self) -> "ContrastiveLossSettings":
        if self.teacher and self.kind == "sigmoid":
            raise ValueError("loss.teacher teaches probabilities over the batch, which the sigmoid loss has none of")
        return self


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
    optim: ClipOptimizerSettings
    """The optimizer and the schedule of its rate."""
    average_decay: float | None = Field(default=None, gt=0, lt=1)
    """Decay, from step to step, of a running average of the weights, which final/ then holds; checkpoints hold the weights
    themselves. In step n it is (1 + n) / (10 + n) at most. None, the default, keeps no average.
    """
    eval: ClipEvalSettings | None = None
    """What is measured while the model trains. Nothing by default."""
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
        if self.train.neftune_alpha or self.train.tiles_together:
            raise ValueError("train.neftune_alpha and train.tiles_together are for language models; leave them out")
        if self.train.gradient_checkpointing and self.model.layout == "resnet":
            raise ValueError(
                "train.gradient_checkpointing recomputes layers of a ViT; loss.grad_cache bounds memory here"
            )
        decays = (self.optim.layer_decay_vision_encoder, self.optim.layer_decay_text_encoder)
        if self.model.layout == "resnet" and decays != (1.0, 1.0):
            raise ValueError("optim.layer_decay_… is for layers of a ViT, which a resnet lacks")
        if (self.train.attention, self.train.fused_layers) != ("auto", "auto"):
            raise ValueError("train.attention and train.fused_layers are for language models; leave them out")
        if self.loss.grad_cache and "micro_batch_size" not in self.train.model_fields_set:
            raise ValueError("loss.grad_cache needs train.micro_batch_size: the pairs that go through at once")
        return self
