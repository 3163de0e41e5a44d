"""Filters by name, in the order in which they are asked; the first that refuses is the one that counts."""

from collections.abc import Callable

from mllm.errors import UserError
from mllm.synthesis.filters import turns
from mllm.synthesis.filters.base import Candidate, Filter
from mllm.synthesis.filters.duplicates import Duplicate, NearDuplicate, Seen
from mllm.synthesis.filters.images import EvaluationQuestion, ImageFilters
from mllm.synthesis.filters.language import WrongLanguage
from mllm.synthesis.filters.objects import UnknownObject
from mllm.synthesis.filters.pairs import NoDifference, Unbalanced, unverified
from mllm.synthesis.naming import Objects
from mllm.synthesis.settings import FilterSettings

NAMES = (
    "empty_turn",
    "too_short",
    "too_long",
    "source_leak",
    "unknown_object",
    "wrong_language",
    "personal_data",
    "unsafe",
    "evaluation_question",
    "no_difference",
    "unbalanced",
    "unverified",
    "duplicate",
    "near_duplicate",
)


def build_filters(settings: FilterSettings, objects: Objects, sees_image: bool) -> dict[str, Filter]:
    """The filters that aren't skipped; `sees_image`: the model was sent the image, so the facts aren't all it knew.

    Raises UserError for an unknown name and for a missing package.
    """
    known = (*ImageFilters.names, *NAMES)
    unknown = [name for name in settings.skip if name not in known]
    if unknown:
        raise UserError(f"filters.skip: unknown filter {unknown[0]!r}; choose among {', '.join(known)}")
    lengths, seen = turns.Length(settings.words), Seen()
    skip = {*settings.skip, *(["unknown_object"] if sees_image else [])}
    makers: dict[str, Callable[[], Filter]] = {
        "empty_turn": lambda: turns.empty_turn,
        "too_short": lambda: lengths.too_short,
        "too_long": lambda: lengths.too_long,
        "source_leak": lambda: turns.source_leak,
        "unknown_object": lambda: UnknownObject(objects),
        "wrong_language": WrongLanguage,
        "personal_data": lambda: turns.personal_data,
        "unsafe": lambda: turns.unsafe,
        "evaluation_question": lambda: EvaluationQuestion(settings),
        "no_difference": lambda: NoDifference(settings.min_margin),
        "unbalanced": lambda: Unbalanced(settings.max_length_ratio),
        "unverified": lambda: unverified,
        "duplicate": lambda: Duplicate(seen),
        "near_duplicate": lambda: NearDuplicate(seen, settings.near_duplicate_similarity),
    }
    return {name: makers[name]() for name in NAMES if name not in skip}


__all__ = ["Candidate", "Filter", "ImageFilters", "build_filters"]
