"""Settings of training data: which samples, and how they are laid out in rows."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from mllm.settings import PathText, Settings

Packing = Literal["none", "samples", "shared_prefix"]


OnTooLong = Literal["error", "drop", "truncate_text"]


class DataSettings(Settings):
    """Which samples a run trains on, and how they are laid out in rows."""

    recipe: PathText
    """A YAML file that names the sources of samples (`mllm schema recipe`)."""
    max_length_tokens: int = Field(default=2048, ge=8)
    """Number of tokens of a row, image tokens included, at most. 2048 by default."""
    packing: Packing = "samples"
    """How samples share rows: `none` is a row a sample; `samples` (the default) puts several in a row, each seeing
    only itself; `shared_prefix` also stores the opening that samples have in common, an image and what is said before
    it differs, once.
    """
    group_by_image: bool = False
    """Whether samples of the same image are put in one global batch. False by default."""
    group_by_length: bool = False
    """Whether a global batch holds samples of like length, either all with images or all without. It goes with
    `packing: none`. False by default.
    """
    workers: Annotated[int, Field(ge=0)] | Literal["auto"] = "auto"
    """Number of threads of each rank that decode the images of the next step. `auto` (the default) goes by the cores
    that it may have; with 0, the one thread that prepares the step decodes, too.
    """
    on_bad_sample: Literal["error", "skip"] = "error"
    """What to do about a sample that can't be used: `error` (the default) ends the run, `skip` lists it in
    skipped.jsonl and goes on.
    """
    on_too_long: OnTooLong = "error"
    """What to do about a sample of more than `max_length_tokens`: `error` (the default) ends the run; `drop` leaves it
    out; `truncate_text` keeps its first tokens, never a part of an image, and drops it where no answer is among them.
    """

    @model_validator(mode="after")
    def _one_grouping(self) -> "DataSettings":
        if self.group_by_length and (self.packing != "none" or self.group_by_image):
            raise ValueError(
                f"group_by_length goes with packing: none and without group_by_image (here packing: {self.packing}, "
                f"group_by_image: {str(self.group_by_image).lower()}): packed rows are of like length anyway"
            )
        return self
