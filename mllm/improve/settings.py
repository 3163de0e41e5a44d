"""Settings of rounds of sampling, verifying, learning and scoring."""

from typing import Literal

from pydantic import Field, model_validator

from mllm.grpo.settings import SamplingSettings
from mllm.rewards.settings import RewardSettings
from mllm.settings import BenchmarkName, PathText, Settings


class PromptSettings(Settings):
    """What a model is asked. A sample is a prompt: all before its last answer, which is the reference."""

    recipe: PathText
    """A YAML file that names the sources of samples (`mllm schema recipe`)."""
    count: int | None = Field(default=None, ge=1)
    """Number of prompts of a round; the rounds take them in turn. All samples of the recipe by default."""
    on_bad_sample: Literal["error", "skip"] = "error"
    """What to do about a sample that can't be asked: `error` (the default) ends the run, `skip` lists it in
    skipped.jsonl.
    """


class SelectionSettings(Settings):
    """What is learned of the answers to a prompt."""

    learn_from: Literal["pairs", "best"] = "pairs"
    """What becomes of the answers to a prompt: `pairs` (the default), of the best and the worst where they are `margin`
    apart, or samples of the `best` alone.
    """
    margin: float = Field(default=0.1, gt=0)
    """Difference of rewards from which two answers are a pair. 0.1 by default."""
    least_reward: float | None = None
    """Reward below which a best answer isn't learned. None, the default, sets no limit."""
    takes_cut_answers: bool = False
    """Whether answers that reached `sampling.max_new_tokens` are learned from, too, though they have no end. False by
    default.
    """


class ScoreSettings(Settings):
    """Benchmarks that the model is scored on before the first round and after each, as by `mllm eval`."""

    names: tuple[BenchmarkName, ...] = Field(min_length=1)
    """Names of benchmarks, as `mllm eval --benchmarks` takes them."""
    data: PathText | None = None
    """Directory of the benchmarks' files, as `mllm eval --data` takes it. None by default."""
    limit: int | None = Field(default=None, ge=1)
    """Number of questions of each benchmark. The benchmark's own number by default."""
    batch_size: int = Field(default=32, ge=1)
    """Number of questions that are answered together. 32 by default."""


class ImproveSettings(Settings):
    """Everything that `mllm improve` reads."""

    run_dir: PathText
    """Directory of the rounds and of the report. A run that was stopped goes on from it."""
    seed: int = 0
    """Seed of the order of prompts and of sampling. 0 by default."""
    model: PathText
    """The model that the first round begins with: a directory or hub id, as `mllm eval` takes it."""
    rounds: int = Field(default=2, ge=1)
    """Number of rounds. 2 by default."""
    prompts: PromptSettings
    """The samples whose questions are asked."""
    sampling: SamplingSettings = SamplingSettings()
    """How many answers a prompt is given, and how they are drawn."""
    rewards: RewardSettings
    """What an answer is worth."""
    selection: SelectionSettings = SelectionSettings()
    """Which of the answers are learned from, and as what."""
    training: PathText
    """A config of `mllm train`, with `preference` where pairs are learned; its run_dir, model.init_from and data.recipe
    are those of the round.
    """
    max_answers: int | None = Field(default=None, ge=1)
    """Number of answers that are sampled in all rounds together, at most; whole groups, so that rounds get shorter and
    then end. None, the default, sets no limit.
    """
    benchmarks: ScoreSettings | None = None
    """Benchmarks that each round's model is scored on. None by default."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Data type of the weights while answers are sampled; auto (the default) is bfloat16 on a GPU that has it, float32
    elsewhere.
    """

    @model_validator(mode="after")
    def _budget_suffices(self) -> "ImproveSettings":
        if self.max_answers is not None and self.max_answers < self.sampling.answers:
            raise ValueError(
                f"max_answers is {self.max_answers}, less than the {self.sampling.answers} answers to one prompt "
                "(sampling.answers)"
            )
        return self
