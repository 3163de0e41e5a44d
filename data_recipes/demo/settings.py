"""Settings of the generator: where images come from and how many samples of each kind to write."""

from typing import Annotated, Literal

from pydantic import Field

from mllm.settings import ExpandedPath, Settings

Count = Annotated[int, Field(ge=0)]


class EasyVqaSource(Settings):
    """Real questions about coloured shapes. `path` None means the installed `easy-vqa` package."""

    kind: Literal["easyvqa"]
    name: str = "easyvqa"
    path: ExpandedPath | None = None
    caption_count: Count = 900
    yes_no_count: Count = 4000
    shape_count: Count = 1500
    color_count: Count = 1500


class CaptionedParquetSource(Settings):
    """A Parquet file of images with title, keywords and category; rows of `heldout_split` are never trained on."""

    kind: Literal["captioned_parquet"]
    name: str
    path: ExpandedPath
    split: str = "train"
    heldout_split: str = "test"
    max_title_characters: Annotated[int, Field(ge=1)] = 80
    max_pictures_per_title: Annotated[int, Field(ge=1)] = 4
    writes_heldout_questions: bool = False
    caption_count: Count = 900
    naming_count: Count = 500
    category_count: Count = 450
    yes_no_count: Count = 300
    description_count: Count = 130
    conversation_count: Count = 120


class RenderedWordsSource(Settings):
    """Words of a text file (one a line), drawn into square images in several fonts.

    Captions and questions are about `asked_words` of them (None: all), contrastive pairs about all.
    """

    kind: Literal["rendered_words"]
    name: str = "words"
    path: ExpandedPath
    asked_words: Annotated[int, Field(ge=1)] | None = None
    image_size_px: Annotated[int, Field(ge=32, le=512)] = 64
    caption_count: Count = 600
    reading_count: Count = 1200
    clip_pair_count: Count = 3000
    heldout_count: Count = 200


SourceSettings = Annotated[EasyVqaSource | CaptionedParquetSource | RenderedWordsSource, Field(discriminator="kind")]


class GeneratorSettings(Settings):
    """A whole run. The same settings and the same input files give the same `data_hash`."""

    output: ExpandedPath
    seed: int = 0
    sources: Annotated[tuple[SourceSettings, ...], Field(min_length=1)]
