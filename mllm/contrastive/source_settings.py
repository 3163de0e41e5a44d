"""Settings of where pairs come from, and of which are kept."""

from pydantic import Field, model_validator

from mllm.data.recipe import FileSource
from mllm.data.scripts import SCRIPTS
from mllm.settings import PathText, Settings


class PairSourceSettings(FileSource):
    """One file of pairs, or several of one kind."""

    reader: str = "captions"
    """What the records of the file mean. `captions`, the default, takes an image and one caption or several, under the names
    that are usual for them; `coco_captions` is a whole file of COCO. An unknown name lists the readers.
    """
    image_root: PathText = ""
    """Directory that image paths start from. Empty, the default, is `data.image_root`."""
    lanes: int = Field(default=8, ge=1)
    """Number of parts that the files of a stream are dealt into, of which each is read and shuffled by itself, with its
    share of `shuffle_buffer`. A step takes as many pairs of each, and ranks share the lanes. 8 by default, at most the
    number of files.
    """


class PairFilterSettings(Settings):
    """Which pairs are left out, and counted, as they are read."""

    min_words: int = Field(default=0, ge=0)
    """Number of words of a caption, at least. 0 by default."""
    max_words: int | None = Field(default=None, ge=1)
    """Number of words of a caption, at most. None, the default, is any number."""
    scripts: tuple[str, ...] = ()
    """Scripts, such as `Latin`, `Cyrillic`, `Han` or `Arabic`: one of them has most of a caption's letters. Empty, the
    default, takes any.
    """
    languages: tuple[str, ...] = ()
    """Languages, such as `en` or `de`, of which a caption of at least eight words has to be one; py3langid says which it is.
    Shorter ones, of which it can't be told, are kept. Empty, the default, takes any.
    """
    min_side_px: int = Field(default=0, ge=0)
    """Number of pixels of the shorter side of an image, at least; where it is above 0 the image's header is read. 0 by
    default.
    """
    max_aspect: float | None = Field(default=None, ge=1)
    """The longer side of an image divided by the shorter, at most; where it is set the image's header is read. None, the
    default, is any.
    """
    caption_counts: PathText | None = None
    """A file of `mllm clip count-captions`, which counts how many pairs have a caption, and how often each word and each two
    words in succession occur. The next two settings need it. None by default.
    """
    max_pairs_a_caption: int | None = Field(default=None, ge=1)
    """Number of pairs that share a caption, at most: of one that more have, all are left out. None, the default, is any."""
    min_word_count: int = Field(default=0, ge=0)
    """How often each word of a caption, and each two in succession, occur in all captions, at least. 0 by default."""

    @model_validator(mode="after")
    def _is_possible(self) -> "PairFilterSettings":
        if self.caption_counts is None and (self.max_pairs_a_caption is not None or self.min_word_count):
            raise ValueError(
                "max_pairs_a_caption and min_word_count need `caption_counts`, a file that `mllm clip count-captions` writes"
            )
        unknown = next((script for script in self.scripts if script not in SCRIPTS), None)
        if unknown is not None:
            raise ValueError(f"unknown script {unknown!r}; choose of: {', '.join(SCRIPTS)}")
        if self.max_words is not None and self.max_words < self.min_words:
            raise ValueError(f"min_words {self.min_words} is over max_words {self.max_words}: no caption is left")
        return self
