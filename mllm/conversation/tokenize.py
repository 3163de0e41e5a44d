"""From segments to token ids and a supervision mask, in one walk.

Text between two special tokens is one run, tokenized as the tokenizer would tokenize it in the whole prompt. Where
supervision begins inside a run, what came before is tokenized alone: so a generation prompt is always a prefix of the
training ids, and no token is half supervised.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from mllm.conversation.formats import Segment
from mllm.errors import UserError
from mllm.media.visual import Visual


@dataclass(frozen=True)
class Tokens:
    """`input_ids` (image tokens expanded), `supervised` of equal length; of each image, where its tokens stand as
    (start, length), and what it became. `weights`, of equal length too: what each supervised token counts; None, 1 each."""

    input_ids: tuple[int, ...]
    supervised: tuple[bool, ...]
    image_spans: tuple[tuple[int, int], ...]
    visuals: tuple[Visual, ...]
    weights: tuple[float, ...] | None = None

    @property
    def supervised_count(self) -> int:
        return sum(self.supervised)

    def until(self, stop: int) -> "Tokens":
        """The first `stop` tokens, with the images that lie wholly among them."""
        spans = spans_within(self.image_spans, stop)
        weights = None if self.weights is None else self.weights[:stop]
        return Tokens(self.input_ids[:stop], self.supervised[:stop], spans, self.visuals[: len(spans)], weights)

    def behind(self, opening: tuple[int, ...]) -> "Tokens":
        """The same with the ids of `opening`, which aren't learned, before them."""
        shift = len(opening)
        return Tokens(
            opening + self.input_ids,
            (False,) * shift + self.supervised,
            tuple((start + shift, length) for start, length in self.image_spans),
            self.visuals,
            None if self.weights is None else (1.0,) * shift + self.weights,
        )


def spans_within(image_spans: Sequence[tuple[int, int]], stop: int) -> tuple[tuple[int, int], ...]:
    """The images whose tokens lie before `stop`."""
    return tuple((start, count) for start, count in image_spans if start + count <= stop)


class RunEncoder:
    """Tokenizes runs of plain text; strings that look like special tokens stay plain text."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        specials = sorted(tokenizer.all_special_tokens, key=len, reverse=True)
        self._special = re.compile("|".join(re.escape(token) for token in specials)) if specials else None
        self._anchor = next(iter(specials), None)
        # Tokenizers with a word-start prefix (SentencePiece) tell the start of the text from the text after a special
        # token; byte-level ones don't, and can skip the detour.
        self._sees_context = any(self._after_special(text) != self._alone(text) for text in ("a b", " a", "\na"))

    def encode(self, text: str, follows_special: bool) -> list[int]:
        """Ids of a run, as it stands at the start of a prompt or after a special token."""
        if follows_special and self._sees_context and not self._holds_special(text):
            return self._after_special(text)
        return self._alone(text)

    def last_characters(self, text: str, follows_special: bool) -> list[int]:
        """Of each id that `encode` gives, the index in `text` of the last character it stands for.

        Raises UserError for a tokenizer that doesn't tell.
        """
        if not self.tokenizer.is_fast:
            raise UserError(
                f"{type(self.tokenizer).__name__} doesn't tell characters of tokens; weights need a fast one"
            )
        anchor = ""
        if follows_special and self._sees_context and not self._holds_special(text):
            anchor = self._anchor or ""
        options = {} if anchor else {"split_special_tokens": True}
        found = self.tokenizer(anchor + text, add_special_tokens=False, return_offsets_mapping=True, **options)
        ends = [end for _, end in found["offset_mapping"]]
        return [max(0, end - len(anchor) - 1) for end in (ends[1:] if anchor else ends)]

    def _alone(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False, split_special_tokens=True).input_ids

    def _after_special(self, text: str) -> list[int]:
        if self._anchor is None:
            return self._alone(text)
        return self.tokenizer(self._anchor + text, add_special_tokens=False).input_ids[1:]

    def _holds_special(self, text: str) -> bool:
        return self._special is not None and self._special.search(text) is not None


def tokenize(
    segments: Sequence[Segment],
    encoder: RunEncoder,
    image_ids: Sequence[Sequence[int]],
    visuals: Sequence[Visual],
    starts_with_special: bool = False,
) -> Tokens:
    """Token ids of `segments`; the n-th image segment becomes `image_ids[n]`, of which there are `visuals[n].token_count`."""
    ids: list[int] = []
    supervised: list[bool] = []
    weights: list[float] = []
    spans: list[tuple[int, int]] = []
    images = iter(image_ids)
    run: list[Segment] = []
    follows_special = starts_with_special

    def flush() -> None:
        for is_supervised, new_ids, new_weights in _tokenize_run(run, encoder, follows_special):
            ids.extend(new_ids)
            supervised.extend([is_supervised] * len(new_ids))
            weights.extend(new_weights)
        run.clear()

    for segment in segments:
        if segment.kind == "text":
            run.append(segment)
            continue
        flush()
        follows_special = True
        if segment.kind == "image":
            own = next(images)
            spans.append((len(ids), len(own)))
            ids.extend(own)
            supervised.extend([False] * len(own))
            weights.extend([1.0] * len(own))
        else:
            ids.append(encoder.tokenizer.convert_tokens_to_ids(segment.text))
            supervised.append(segment.supervised)
            weights.append(segment.weight)
    flush()
    counted = tuple(weights) if any(weight != 1 for weight in weights) else None
    return Tokens(tuple(ids), tuple(supervised), tuple(spans), tuple(visuals), counted)


def _tokenize_run(
    run: Sequence[Segment], encoder: RunEncoder, follows_special: bool
) -> Iterator[tuple[bool, list[int], list[float]]]:
    """(whether it is supervised, ids, weights of the ids) of each stretch of a run."""
    text = ""
    text_ids: list[int] = []
    for merged in _merge(run):
        piece = "".join(segment.text for segment in merged)
        joint = encoder.encode(text + piece, follows_special)
        if joint[: len(text_ids)] == text_ids:
            new, text, text_ids = joint[len(text_ids) :], text + piece, joint
        else:
            # The boundary would fall inside a token: cut there, and start afresh behind the cut.
            new = encoder.encode(piece, follows_special)
            text, text_ids = piece, new
        weights = [1.0] * len(new)
        if any(segment.weight != 1 for segment in merged):
            of_characters = [segment.weight for segment in merged for _ in segment.text]
            last = encoder.last_characters(text, follows_special)[len(text_ids) - len(new) :]
            begin = len(text) - len(piece)
            weights = [of_characters[max(0, index - begin)] for index in last]
        yield merged[0].supervised, new, weights


def _merge(run: Sequence[Segment]) -> list[list[Segment]]:
    """The segments of a run in stretches that are tokenized as one."""
    merged: list[list[Segment]] = []
    for segment in run:
        if merged and merged[-1][0].supervised == segment.supervised and not merged[-1][-1].ends_turn:
            merged[-1].append(segment)
        else:
            merged.append([segment])
    return merged
