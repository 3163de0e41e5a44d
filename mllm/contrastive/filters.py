"""Which pairs are left out as they are read, and why."""

from collections.abc import Callable, Iterator

from mllm.contrastive.caption_counts import open_counts, words_of
from mllm.contrastive.pairs import Pair, checked
from mllm.contrastive.source_settings import PairFilterSettings
from mllm.data.scripts import script_of
from mllm.errors import UserError
from mllm.media.decode import read_image_size

# A language identifier says little of fewer.
IDENTIFIED_WORDS = 8
Refusal = Callable[[Pair], str | None]


def refusal_of(settings: PairFilterSettings) -> Refusal:
    """The function from a pair to the setting that leaves it out, or None.

    It raises UserError for an image whose size is asked for and can't be read.
    """
    checks = [*_of_words(settings), *_of_counts(settings), *_of_sizes(settings)]

    def refusal(pair: Pair) -> str | None:
        return next((reason for check in checks if (reason := check(pair)) is not None), None)

    return refusal


def _of_words(settings: PairFilterSettings) -> Iterator[Refusal]:
    least, most, scripts = settings.min_words, settings.max_words, frozenset(settings.scripts)
    if least or most is not None:

        def count(pair: Pair) -> str | None:
            words = len(words_of(pair.caption))
            return "min_words" if words < least else "max_words" if most is not None and words > most else None

        yield count
    if scripts:
        yield lambda pair: None if script_of(pair.caption) in scripts else "scripts"
    if settings.languages:
        yield _of_language(frozenset(settings.languages))


def _of_language(wanted: frozenset[str]) -> Refusal:
    """Raises UserError without py3langid."""
    try:
        from py3langid import classify
    except ImportError:
        raise UserError(
            "data.filters.languages needs py3langid: pip install 'mllm[synth]', or use data.filters.scripts"
        ) from None

    def language(pair: Pair) -> str | None:
        is_told = len(pair.caption.split()) >= IDENTIFIED_WORDS
        return "languages" if is_told and classify(pair.caption)[0] not in wanted else None

    return language


def _of_counts(settings: PairFilterSettings) -> Iterator[Refusal]:
    if settings.caption_counts is None:
        return
    counted, most, least = open_counts(settings.caption_counts), settings.max_pairs_a_caption, settings.min_word_count
    if most is not None:
        limit = most
        yield lambda pair: "max_pairs_a_caption" if counted.pairs_of(pair.caption) > limit else None
    if least:
        yield lambda pair: "min_word_count" if counted.rarest(pair.caption) < least else None


def _of_sizes(settings: PairFilterSettings) -> Iterator[Refusal]:
    least, most = settings.min_side_px, settings.max_aspect
    if least or most is not None:

        def size(pair: Pair) -> str | None:
            shorter, longer = sorted(read_image_size(checked(pair)))
            if shorter < least:
                return "min_side_px"
            return "max_aspect" if most is not None and longer > most * shorter else None

        yield size
