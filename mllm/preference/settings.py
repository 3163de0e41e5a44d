"""Settings of a run that learns from preference pairs."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from mllm.finetune.settings import FinetuneSettings, HeldOutSettings
from mllm.settings import PathText, Settings

Term = Literal[
    "sigmoid", "robust", "hinge", "ipo", "sigmoid_norm", "apo_zero", "bco", "simpo", "sft", "image", "anchor"
]
PRESETS: dict[str, dict[Term, float]] = {
    "mpo": {"sigmoid": 0.8, "bco": 0.2, "sft": 1.0},
    "mdpo": {"sigmoid": 1.0, "image": 1.0, "anchor": 1.0},
}
ALONE: tuple[Term, ...] = ("simpo", "sft")  # terms that ask no reference


class DamageSettings(Settings):
    """What is done to an image for the terms that compare with a damaged one; the seed and the image decide how."""

    kind: Literal["crop", "noise"] = "crop"
    """What is done: `crop` (the default) shows a small part of the image in the whole's size, `noise` mixes noise into
    every pixel.
    """
    share: float | None = Field(default=None, gt=0, lt=1)
    """Share of the image's area that a crop keeps, at most, or of a pixel that is noise. By default 0.2 of a crop and
    0.9 of noise.
    """


class ReferenceSettings(Settings):
    """Where the log-probabilities come from that those of the model are compared with."""

    kind: Literal["cached", "adapters_off", "model"] = "cached"
    """How they are found: `cached` (the default) computes them once, before the first step, with the model that the run
    begins with, and keeps them in a file; `adapters_off` computes them in every step without the low-rank updates;
    `model` computes them in every step with a second model, which is in memory, too.
    """
    cache: PathText | None = None
    """The file of `cached`, which runs that begin with the same model may share. `reference.safetensors` in run_dir by
    default.
    """
    model: PathText | None = None
    """The second model's directory. By default a second copy of the model that the run begins with."""

    @model_validator(mode="after")
    def _paths_of_their_kind(self) -> "ReferenceSettings":
        for name, kind in (("cache", "cached"), ("model", "model")):
            if getattr(self, name) is not None and self.kind != kind:
                raise ValueError(f"{name} is given but kind is {self.kind}; it goes with kind: {kind}")
        return self


class ObjectiveSettings(Settings):
    """The loss of a pair. With `terms` left out it is DPO's."""

    preset: Literal["mpo", "mdpo"] | None = None
    """Terms by the name of a method: `mpo` is 0.8 sigmoid, 0.2 bco and 1 sft (Wang et al. 2024, of InternVL), `mdpo` is
    sigmoid, image and anchor (Wang et al. 2024). None by default.
    """
    terms: dict[Term, Annotated[float, Field(gt=0)]] = Field(default={})
    """Weights of the terms of the loss by name: `sigmoid` (DPO), `robust`, `hinge`, `ipo`, `sigmoid_norm`, `apo_zero`,
    `bco`, `simpo`, `sft`, `image`, `anchor`. Those of the preset, or else one `sigmoid`, by default.
    """
    beta: float = Field(default=0.1, gt=0)
    """Strength of the tie to the reference: what a difference of log-probabilities is multiplied by. 0.1 by default;
    terms that divide by the length of answers (`sigmoid_norm`, `simpo`) want 2 to 10.
    """
    label_smoothing: float = Field(default=0.0, ge=0, lt=0.5)
    """Share of the pairs that are taken to be the wrong way round, from 0 to below 0.5, in `sigmoid` (as conservative
    DPO) and `robust`. 0 by default.
    """
    simpo_margin: float = Field(default=1.0, ge=0)
    """Margin by which `simpo` wants the chosen answer to be better. 1.0 by default."""
    damage: DamageSettings = DamageSettings()
    """What is done to the images that the term `image` compares with."""
    reference: ReferenceSettings = ReferenceSettings()
    """What the model is compared with, unless no term asks for it."""

    @model_validator(mode="after")
    def _terms_or_a_preset(self) -> "ObjectiveSettings":
        if self.preset is not None and self.terms:
            raise ValueError(f"preset {self.preset} says which terms there are; remove it or terms")
        return self

    @property
    def weights(self) -> dict[Term, float]:
        """The terms of the loss and their weights."""
        return self.terms or (PRESETS[self.preset] if self.preset is not None else {"sigmoid": 1.0})

    @property
    def damages_images(self) -> bool:
        return "image" in self.weights

    @property
    def needs_reference(self) -> bool:
        return any(term not in ALONE for term in self.weights)


class PreferenceSettings(FinetuneSettings):
    """Everything that `mllm train` reads for a run with `preference`.

    The recipe's samples are preference pairs, and `train.global_batch_size` counts pairs. A row holds pairs whole: a pair of
    which each side has `data.max_length_tokens` may lie in a row that is longer.
    """

    preference: ObjectiveSettings
    """The loss of a pair, and what it is compared with."""
    eval_pairs: HeldOutSettings | None = None
    """Pairs that aren't trained on, and how often their loss and rewards are measured (metrics `heldout_pair_loss`,
    `heldout_reward_accuracy`, `heldout_reward_margin`). None by default; `eval` is of samples.
    """

    @model_validator(mode="after")
    def _adapters_are_all_that_learns(self) -> "PreferenceSettings":
        policy, objective = self.trainable, self.preference
        kinds = (policy.language_model, policy.vision_encoder, policy.projector)
        asks = objective.needs_reference and objective.reference.kind == "adapters_off"
        if asks and "full" in kinds:
            raise ValueError(
                "preference.reference.kind is adapters_off, which is the model that the run began with only where low-rank "
                "updates are all that learns: set trainable.projector: frozen and the others to lora or frozen, or take "
                "cached or model"
            )
        return self

    @model_validator(mode="after")
    def _one_grouping_of_pairs(self) -> "PreferenceSettings":
        if self.data.group_by_length:
            raise ValueError("data.group_by_length goes by the length of samples, which pairs have two of; remove it")
        return self
