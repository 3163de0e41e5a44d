"""Settings of the generator: the drawings that are asked about, and how many questions of each kind."""

from pydantic import Field

from data_recipes.demo.settings import CaptionedParquetSource, Count, EasyVqaSource
from mllm.settings import ExpandedPath, Settings


class GeneratorSettings(Settings):
    """A whole run. The same settings give the same `data_hash`."""

    output: ExpandedPath
    """Directory that is written, whole or not at all."""
    seed: int = 0
    """Seed of every draw."""
    sources: tuple[CaptionedParquetSource, ...] = Field(min_length=1)
    """Drawings with categories; their `yes_no_count` and `category_count` are the prompts. Their held-out drawings are
    asked about and never in a prompt."""
    shapes: EasyVqaSource
    """easy-VQA, whose questions are prompts too, so that what the model knows of shapes is kept."""
    absent_per_drawing: Count = 3
    """Number of categories that each held-out drawing is asked about and doesn't show. 3 by default."""
