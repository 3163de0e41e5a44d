"""Settings of making a generator one's own: a concept learned as new words, or an adapter of its attention."""

from typing import Literal

from pydantic import Field

from mllm.settings import PathText, Settings
from mllm.training.settings import EngineSettings, LoopSettings, OptimizerSettings


class PersonalSettings(Settings):
    """What both ways read."""

    run_dir: PathText
    """Directory of the run: config, metrics, checkpoints, and final/ at its end. A run that was stopped goes on from
    it.
    """
    seed: int = 0
    """Seed of new weights, of the order of images, of prompts and of noise. 0 by default."""
    model: PathText
    """Directory of the generator, ours or Stable Diffusion's; nothing in it is changed."""
    images: tuple[PathText, ...] = Field(min_length=1)
    """The images to learn from."""
    optim: OptimizerSettings
    """The optimizer and the schedule of its rate."""
    train: LoopSettings = LoopSettings()
    """How long the run trains, in what portions and precision, and when it is saved."""
    engine: EngineSettings = EngineSettings()
    """Which engine computes the steps, over how many processes."""


class ConceptSettings(PersonalSettings):
    """What `mllm generate invert` trains by: textual inversion (Gal et al. 2022, arXiv:2208.01618)."""

    kind: Literal["concept"] = "concept"
    """What is trained."""
    token: str = Field(pattern=r"^\S+$")
    """The new word, such as <mug>, that no prompt has otherwise."""
    vectors: int = Field(default=1, ge=1)
    """Number of vectors that the word stands for: more are more alike, and harder to put into other prompts. 1 by
    default.
    """
    initializer: str = ""
    """Words whose vectors the new ones start as, such as mug. The mean of all words by default."""
    templates: tuple[str, ...] = Field(min_length=1)
    """Prompts that the images are learned with, with {} for the word; one is drawn for each image of a step."""


class LoraSettings(PersonalSettings):
    """What `mllm generate lora` trains by: low-rank updates of the attention (Hu et al. 2021, arXiv:2106.09685)."""

    kind: Literal["lora"] = "lora"
    """What is trained."""
    captions: tuple[str, ...] = Field(min_length=1)
    """The prompt of each image."""
    rank: int = Field(default=4, ge=1)
    """Rank of the updates, which count in full (alpha is the rank). 4 by default."""
    caption_dropout: float = Field(default=0.1, ge=0, lt=1)
    """Share of prompts that are left out, so that guidance goes on to work. 0.1 by default."""
