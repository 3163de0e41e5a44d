"""Settings of a run that learns from the rewards of its own answers."""

from typing import Any, Literal

from pydantic import Field, model_validator

from mllm.finetune.settings import FinetuneSettings
from mllm.rewards.settings import RewardSettings
from mllm.settings import PathText, Settings


class SamplingSettings(Settings):
    """How answers are sampled."""

    answers: int = 8
    """Number of answers to each prompt, at least 2: an answer is compared with the others of its group. 8 by default."""
    max_new_tokens: int = Field(default=256, ge=1)
    """Number of tokens of an answer at most. 256 by default."""
    temperature: float = Field(default=1.0, gt=0)
    """Temperature of sampling, by which a loss that takes log-probabilities divides logits, too. 1 by default."""
    batch_size: int = Field(default=32, ge=1)
    """Number of answers that are written together, by each process. 32 by default."""

    @model_validator(mode="after")
    def _a_group_has_others(self) -> "SamplingSettings":
        if self.answers < 2:
            raise ValueError(
                f"answers is {self.answers}, and an answer is compared with the others to its prompt: give at least 2"
            )
        return self


class ObjectiveSettings(Settings):
    """The loss of the answers' tokens."""

    normalization: Literal["grpo", "bnpo", "dapo", "dr_grpo"] = "dapo"
    """What the sum over tokens is divided by: `dapo` (the default) and `bnpo` by the tokens of the step, which is the
    same here, since nothing is averaged by micro-batches; `grpo` means each answer's tokens first, so that those of
    short answers count more; `dr_grpo` divides by the most tokens that the answers might have had.
    """
    scale: Literal["group", "batch", "none"] = "group"
    """Standard deviation that advantages are divided by: that of the `group` (the default), of all answers of the step
    (`batch`), or `none`, as Dr. GRPO wants it.
    """
    epsilon: float = Field(default=0.2, gt=0, lt=1)
    """How far the ratio of probabilities may fall below 1 before it teaches nothing. 0.2 by default. It matters where
    `updates` is more than 1.
    """
    epsilon_high: float | None = Field(default=None, gt=0)
    """How far the ratio may rise above 1; DAPO takes 0.28. `epsilon` by default."""
    kl: float = Field(default=0.0, ge=0)
    """Weight of the divergence from the reference, by its k3 estimate. The default, 0, needs no reference."""
    reference: PathText | None = None
    """Directory of the model that the divergence is measured from. By default the model with its adapters switched
    off, which takes LoRA.
    """
    updates: int = Field(default=1, ge=1)
    """Number of steps that learn from the same answers. 1 by default."""
    masks_cut_answers: bool = False
    """Whether answers that reached `sampling.max_new_tokens` teach nothing, though their rewards count in the mean of
    their group. False by default.
    """
    resamples: int = Field(default=0, ge=0)
    """Number of times that a prompt is answered anew at most, while its answers are all worth the same and so teach
    nothing. 0 by default.
    """


class ReloadSettings(Settings):
    """A request that makes a server read its weights again."""

    path: str = Field(pattern="^/")
    """Path of the request, behind the server's address without `/v1`."""
    body: dict[str, Any] = Field(default_factory=dict)
    """Its JSON. Empty by default."""


class RolloutSettings(Settings):
    """A server of chat completions that samples the answers, for models too large to do so where they train."""

    url: PathText
    """Address of the server, with `/v1`."""
    model: str
    """Name that the server gives the model."""
    weights: PathText
    """Directory that the server reads its weights from. Before each sampling the weights as they are are written there, in
    transformers' layout, low-rank updates folded in.
    """
    reload: tuple[ReloadSettings, ...] = (
        ReloadSettings(path="/collective_rpc", body={"method": "reload_weights"}),
        ReloadSettings(path="/reset_prefix_cache"),
        ReloadSettings(path="/reset_encoder_cache"),
    )
    """Requests that make the server read them again, in turn. By default those of vLLM, which takes them where it was
    started with VLLM_SERVER_DEV_MODE=1.
    """
    concurrency: int = Field(default=64, ge=1)
    """Number of requests of a process at a time. 64 by default."""
    timeout_s: float = Field(default=600.0, gt=0)
    """Seconds that a request may take. 600 by default."""


class GrpoSettings(FinetuneSettings):
    """Everything that `mllm train` reads for a run with `rewards`.

    A sample of the recipe is a prompt: all before its last answer, which is the reference. `train.global_batch_size` counts
    prompts. The answers to a prompt share its tokens in a row, which may be longer than `data.max_length_tokens`; with
    `data.packing: none` each has its own.
    """

    rewards: RewardSettings
    """What an answer is worth."""
    sampling: SamplingSettings = SamplingSettings()
    """How many answers a prompt is given, and how they are drawn."""
    objective: ObjectiveSettings = ObjectiveSettings()
    """What the loss is, and which answers teach."""
    rollouts: RolloutSettings | None = None
    """A server that samples the answers. None, the default, lets the training processes do it."""

    @model_validator(mode="after")
    def _answers_fit(self) -> "GrpoSettings":
        if self.sampling.max_new_tokens >= self.data.max_length_tokens:
            raise ValueError(
                f"sampling.max_new_tokens is {self.sampling.max_new_tokens}, and data.max_length_tokens "
                f"{self.data.max_length_tokens} leaves no room for a prompt; raise it"
            )
        return self

    @model_validator(mode="after")
    def _reference_is_there(self) -> "GrpoSettings":
        kinds = (self.trainable.language_model, self.trainable.vision_encoder, self.trainable.projector)
        if self.objective.kl and self.objective.reference is None and "full" in kinds:
            raise ValueError(
                "objective.kl needs a reference, and switching off adapters gives one only where nothing else learns: "
                "name objective.reference, or train with LoRA alone"
            )
        return self
