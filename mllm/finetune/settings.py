"""Settings of a run that aligns or instruction-tunes, and of what is watched while it trains."""

from typing import Literal

from pydantic import Field, model_validator

from mllm.data.settings import DataSettings
from mllm.model.settings import ModelSettings, TrainableSettings
from mllm.settings import BenchmarkName, PathText, Settings
from mllm.training.settings import EngineSettings, LoopSettings, OptimizerSettings


class HeldOutSettings(Settings):
    """The exact loss on samples that aren't trained on (metric `heldout_loss`)."""

    recipe: PathText
    """The recipe whose samples are measured."""
    every_steps: int = Field(ge=1)
    """Number of steps between measurements; the end is measured, too."""


class SampleAnswerSettings(Settings):
    """Answers to a few questions while the model trains, to watch it learn (samples.jsonl)."""

    file: PathText
    """JSON lines of samples, as for training; where the last turn is the assistant's, it is what was expected."""
    image_root: PathText = "."
    """Directory that image paths of `file` start from. The working directory by default."""
    every_steps: int = Field(ge=1)
    """Number of steps between rounds of answers; the end has one, too."""
    count: int = Field(default=8, ge=1)
    """Number of questions, the first of the file. 8 by default."""
    max_new_tokens: int = Field(default=64, ge=1)
    """Number of tokens of an answer at most. 64 by default."""


class BenchmarkSettings(Settings):
    """Scores on benchmarks while the model trains, as `mllm eval` gives them (metric `benchmark/NAME`, from 0 to 1)."""

    names: tuple[BenchmarkName, ...] = Field(min_length=1)
    """Names of benchmarks, as `mllm eval --benchmarks` takes them."""
    data: PathText
    """Directory of the benchmarks' files, as `mllm eval --data` takes it."""
    every_steps: int = Field(ge=1)
    """Number of steps between evaluations; the end has one, too."""
    limit: int | None = Field(default=None, ge=1)
    """Number of questions of each benchmark. The benchmark's own number by default."""
    conditions: tuple[Literal["model", "withheld", "swapped", "single", "shuffled"], ...] = Field(
        default=("model",), min_length=1
    )
    """What is shown with a question: its own images and videos (`model`, the default), none (`withheld`), another's
    (`swapped`), the first of several alone (`single`), or the frames of a video in another order (`shuffled`). All but the
    first are metrics `benchmark/NAME/CONDITION`.
    """
    batch_size: int = Field(default=32, ge=1)
    """Number of questions that are answered together. 32 by default."""


class FinetuneSettings(Settings):
    """Everything that `mllm train` reads."""

    run_dir: PathText
    """Directory of the run: config, metrics, checkpoints, and final/ at its end. A run that was stopped goes on from
    it.
    """
    seed: int = 0
    """Seed of the order of samples, of new weights and of dropout. 0 by default."""
    model: ModelSettings
    """The model that the run begins with."""
    trainable: TrainableSettings = TrainableSettings()
    """Which parts learn. The projector alone by default, which is stage 1."""
    data: DataSettings
    """Which samples are trained on, and how they are laid out in rows."""
    optim: OptimizerSettings
    """The optimizer and the schedule of its rate."""
    train: LoopSettings = LoopSettings()
    """How long the run trains, in what portions and precision, and when it is saved."""
    engine: EngineSettings = EngineSettings()
    """Which engine computes the steps, over how many processes."""
    eval: HeldOutSettings | None = None
    """The loss on samples that aren't trained on. Not measured by default."""
    samples: SampleAnswerSettings | None = None
    """Answers to a few questions while the model trains. None by default."""
    benchmarks: BenchmarkSettings | None = None
    """Scores on benchmarks while the model trains. None by default."""

    @model_validator(mode="after")
    def _layers_that_learn(self) -> "FinetuneSettings":
        if self.optim.layer_decay_vision_encoder != 1.0 and self.trainable.vision_encoder == "frozen":
            raise ValueError(
                f"optim.layer_decay_vision_encoder is {self.optim.layer_decay_vision_encoder}, but the encoder doesn't "
                "learn: that takes trainable.vision_encoder: full or lora"
            )
        return self

    @model_validator(mode="after")
    def _rates_of_embeddings_that_learn(self) -> "FinetuneSettings":
        learn = self.trainable.language_model == "full" and self.trainable.token_embeddings == "full"
        for name in ("lr_token_embeddings", "weight_decay_token_embeddings"):
            if getattr(self.optim, name) is not None and not learn:
                raise ValueError(
                    f"optim.{name} is {getattr(self.optim, name)}, but the token embeddings don't learn: that takes "
                    "trainable.language_model: full and trainable.token_embeddings: full"
                )
        return self
