"""Prompts around training captions, so that the words of a zero-shot prompt are words that the text side has read."""

import random
import re
from dataclasses import dataclass

from pydantic import Field, model_validator

from mllm.settings import Settings

_ARTICLE = re.compile(r"^(?:an?|the)\s+", re.IGNORECASE)


class PromptSettings(Settings):
    """Prompts that a share of the training captions is put in, as CoCa does with class names (Yu et al. 2022)."""

    share: float = Field(default=0.0, ge=0, le=1)
    """Share of captions that stand in a prompt, drawn anew in every epoch, from 0 to 1. 0 by default. It is for data
    whose captions are names ("a red circle") and models that are to be asked in sentences ("a photo of a red circle.").
    """
    templates: tuple[str, ...] = ("a photo of a {}.", "a photo of the {}.", "a picture of a {}.", "an image of a {}.")
    """The prompts, each with {} in place of the caption without its article; each is drawn as often. By default
    four: a photo of a and of the, a picture of a, an image of a. "{}" is the bare name.
    """

    @model_validator(mode="after")
    def _hold_the_caption(self) -> "PromptSettings":
        wrong = next((template for template in self.templates if template.count("{}") != 1), None)
        if wrong is not None:
            raise ValueError(f"template {wrong!r} must hold {{}} once, in the caption's place")
        if self.share and not self.templates:
            raise ValueError("templates are empty, but share asks for prompts")
        return self


@dataclass(frozen=True)
class Prompter:
    """Puts captions in prompts, by settings and the seed of a run."""

    settings: PromptSettings
    seed: int

    def __call__(self, caption: str, step: int, place: int) -> str:
        """Return what is read of the caption at `place` in the global batch of `step`."""
        if not self.settings.share:
            return caption
        draw = random.Random(f"{self.seed}/prompt/{step}/{place}")
        if draw.random() >= self.settings.share:
            return caption
        return draw.choice(self.settings.templates).replace("{}", _ARTICLE.sub("", caption.strip()))
