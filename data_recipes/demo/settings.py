"""Settings of the generator: where images come from and how many samples of each kind to write."""

from typing import Annotated, Literal

from pydantic import Field

from mllm.settings import ExpandedPath, Settings

Count = Annotated[int, Field(ge=0)]


class EasyVqaSource(Settings):
    """Real questions about coloured shapes."""

    kind: Literal["easyvqa"]
    name: str = "easyvqa"
    """What samples and the report call the source."""
    path: ExpandedPath | None = None
    """Data folder of easy-VQA; it holds `train/` and `test/`. None, the default, is the installed `easy-vqa` package's."""
    caption_count: Count = 900
    """Number of captions at most."""
    yes_no_count: Count = 4000
    """Number of yes/no questions at most; each question text is answered yes as often as no."""
    shape_count: Count = 1500
    """Number of questions about the shape at most."""
    color_count: Count = 1500
    """Number of questions about the colour at most."""


class CaptionedParquetSource(Settings):
    """A Parquet file of images with title, keywords and category."""

    kind: Literal["captioned_parquet"]
    name: str
    """What samples and the report call the source."""
    path: ExpandedPath
    """The Parquet file, with the columns image, title, keywords, category and split."""
    split: str = "train"
    """Rows of this split are trained on."""
    heldout_split: str = "test"
    """Rows of this split are never trained on."""
    max_title_characters: Annotated[int, Field(ge=1)] = 80
    """A longer title names no picture."""
    max_pictures_per_title: Annotated[int, Field(ge=1)] = 4
    """A title of more pictures than this names none of them."""
    heldout_words: ExpandedPath | None = None
    """A text file of names, one a line, that training never hears. A picture with one of them in its title or keywords is
    in no training file; those that are called just that are asked about in `heldout/naming.jsonl` (default: none)."""
    writes_heldout_questions: bool = False
    """Whether the category of each held-out picture is asked in `heldout/NAME.jsonl`."""
    caption_count: Count = 900
    """Number of captions at most."""
    naming_count: Count = 500
    """Number of questions for the title at most."""
    category_count: Count = 450
    """Number of questions for the category at most; categories take turns."""
    yes_no_count: Count = 300
    """Number of yes/no questions about the category at most; each question text is answered yes as often as no."""
    description_count: Count = 130
    """Number of questions for title and keywords at most."""
    conversation_count: Count = 120
    """Number of conversations of two turns at most."""


class RenderedWordsSource(Settings):
    """Words drawn into square images in several fonts; contrastive pairs are about all words."""

    kind: Literal["rendered_words"]
    name: str = "words"
    """What samples and the report call the source."""
    path: ExpandedPath
    """A text file with one lower-case word a line."""
    asked_words: Annotated[int, Field(ge=1)] | None = None
    """Number of words that captions and questions are about. None, the default, is all."""
    image_size_px: Annotated[int, Field(ge=32, le=512)] = 64
    """Side of the images, in pixels."""
    caption_count: Count = 600
    """Number of captions at most."""
    reading_count: Count = 1200
    """Number of questions for the word at most."""
    clip_pair_count: Count = 3000
    """Number of pictures in contrastive pairs at most."""
    heldout_count: Count = 200
    """Number of questions in `heldout/ocr_words.jsonl`."""


SourceSettings = Annotated[EasyVqaSource | CaptionedParquetSource | RenderedWordsSource, Field(discriminator="kind")]


class GeneratorSettings(Settings):
    """A whole run. The same settings and the same input files give the same `data_hash`."""

    output: ExpandedPath
    """Directory that is written, whole or not at all."""
    seed: int = 0
    """Seed of every draw."""
    sources: Annotated[tuple[SourceSettings, ...], Field(min_length=1)]
    """Where pictures and their facts come from."""
