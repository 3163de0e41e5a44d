"""Settings of a run that aligns or instruction-tunes, and of what is watched while it trains."""

from typing import Literal

from pydantic import Field, model_validator

from mllm.data.settings import DataSettings
from mllm.model.settings import ModelSettings, TrainableSettings
from mllm.settings import BenchmarkName, PathText, Settings
from mllm.training.settings import EngineSettings, LoopSettings, OptimizerSettings


class HeldOutSettings(Settings):
    """The exact loss on the samples of another recipe, measured every `every_steps` and at the end (`heldout_loss`)."""

    recipe: PathText
    every_steps: int = Field(ge=1)


class SampleAnswerSettings(Settings):
    """Answers to the first `count` questions of `file` every `every_steps` and at the end, to watch a model learn.

    `file`: JSON lines of samples, as for training; the last assistant turn, if there is one, is what was expected.
    """

    file: PathText
    image_root: PathText = "."
    every_steps: int = Field(ge=1)
    count: int = Field(default=8, ge=1)
    max_new_tokens: int = Field(default=64, ge=1)


class BenchmarkSettings(Settings):
    """Scores on benchmarks every `every_steps` and at the end, as `mllm eval` gives them (metric `benchmark/NAME`, 0–1).

    `names` and `data`: what `mllm eval` takes as `--benchmarks` and `--data`. `limit`: questions of each (None: the
    benchmark's own default). `conditions`: beside the question's own image (`model`), none (`withheld`) or another's
    (`swapped`), which are metrics `benchmark/NAME/CONDITION`.
    """

    names: tuple[BenchmarkName, ...] = Field(min_length=1)
    data: PathText
    every_steps: int = Field(ge=1)
    limit: int | None = Field(default=None, ge=1)
    conditions: tuple[Literal["model", "withheld", "swapped"], ...] = Field(default=("model",), min_length=1)
    batch_size: int = Field(default=32, ge=1)


class FinetuneSettings(Settings):
    """Everything `train/finetune.py` reads."""

    run_dir: PathText
    seed: int = 0
    model: ModelSettings
    trainable: TrainableSettings = TrainableSettings()
    data: DataSettings
    optim: OptimizerSettings
    train: LoopSettings = LoopSettings()
    engine: EngineSettings = EngineSettings()
    eval: HeldOutSettings | None = None
    samples: SampleAnswerSettings | None = None
    benchmarks: BenchmarkSettings | None = None

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
