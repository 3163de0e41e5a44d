"""Settings of training data: which samples, and how they are laid out in rows."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from mllm.settings import PathText, Settings

Packing = Literal["none", "samples", "shared_prefix"]


OnTooLong = Literal["error", "drop", "truncate_text"]


class DataSettings(Settings):
    """Which samples, and how they are laid out in rows.

    `packing`: `none` = a row a sample; `samples` = several samples in a row, each seeing only itself; `shared_prefix` =
    also, samples that open with the same image and tokens store that opening once. `group_by_length`, for `none`: a
    global batch holds samples with images or samples without, of like length. `workers`: threads of each rank that decode
    the images of the next step (0: its one thread that prepares the step does; auto: by the cores that it may have).
    `on_too_long`: of a sample of more than `max_length_tokens`; `truncate_text` keeps its first tokens, never a part of an
    image, and drops it where no answer is among them.
    """

    recipe: PathText
    max_length_tokens: int = Field(default=2048, ge=8)
    packing: Packing = "samples"
    group_by_image: bool = False
    group_by_length: bool = False
    workers: Annotated[int, Field(ge=0)] | Literal["auto"] = "auto"
    on_bad_sample: Literal["error", "skip"] = "error"
    on_too_long: OnTooLong = "error"

    @model_validator(mode="after")
    def _one_grouping(self) -> "DataSettings":
        if self.group_by_length and (self.packing != "none" or self.group_by_image):
            raise ValueError(
                f"group_by_length goes with packing: none and without group_by_image (here packing: {self.packing}, "
                f"group_by_image: {str(self.group_by_image).lower()}): packed rows are of like length anyway"
            )
        return self
