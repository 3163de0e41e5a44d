"""Segments of a conversation of which the last answer alone is learned, its stretches with a weight each."""

from collections.abc import Sequence
from dataclasses import replace

from mllm.conversation.formats import Segment
from mllm.conversation.schema import LastAnswer, Stretch


def learn_last_answer(segments: Sequence[Segment], words: str, last: LastAnswer) -> list[Segment]:
    """`segments` with nothing supervised but the last answer, whose text is `words`, and what ends it.

    What a format puts before the words as a part of the answer counts what their first character counts.
    """
    end = max(number for number, segment in enumerate(segments) if segment.supervised)
    begin = end
    while begin and _is_of_answer(segments[begin - 1]):
        begin -= 1
    text = "".join(segment.text for segment in segments[begin:end])
    # A format puts a prefix before the words, or trims them.
    shift = len(text) - len(words) if text.endswith(words) else len(words.lstrip()) - len(words)
    answer = [
        Segment("text", text[start:stop], supervised=weight != 0, weight=weight or 1.0)
        for start, stop, weight in _covering(last.weights, shift, len(text))
    ]
    return [*(replace(segment, supervised=False) for segment in segments[:begin]), *answer, *segments[end:]]


def _is_of_answer(segment: Segment) -> bool:
    return segment.kind == "text" and segment.supervised and not segment.ends_turn


def _covering(stretches: Sequence[Stretch], shift: int, length: int) -> list[Stretch]:
    """All of `length` characters in stretches with their weights, from those of the words, which begin at `shift`."""
    covering: list[Stretch] = []
    done = 0
    for start, stop, weight in stretches:
        start, stop = (0 if start == 0 else max(0, start + shift)), min(length, stop + shift)
        covering += [(done, start, 1.0)] if start > done else []
        covering += [(start, stop, weight)] if stop > start else []
        done = max(done, stop)
    return covering + ([(done, length, 1.0)] if length > done else [])
