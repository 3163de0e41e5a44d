"""From the tokens of an answer, one by one, to its text: streaming, stop strings, log-probabilities."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from transformers import StoppingCriteria

from mllm.inference.decoding import Decoding, RowProcessors
from mllm.processor import Processor

FinishReason = Literal["stop", "length", "cancelled"]
UNFINISHED_CHARACTER = "\ufffd"


@dataclass(frozen=True)
class TokenLogprob:
    """The log-probability that the model itself gave a token, and the likeliest alternatives as (id, log-probability)."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Answer:
    """An answer: its text, its tokens (with the one that ended it), and why it ended.

    prompt_token_count: tokens of the prompt; computed_token_count: those of them that were not already known.
    """

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    prompt_token_count: int
    computed_token_count: int
    logprobs: tuple[TokenLogprob, ...] = ()


class AnswerText:
    """The words of an answer; joined, the pieces that `add` and `close` return are `text`.

    Special tokens are left out, white space at both ends is stripped, and the text is cut before the first stop string.
    Text that may yet turn out to belong to either is held back.
    """

    def __init__(self, tokenizer: Any, stop: Sequence[str] = ()) -> None:
        self.text = ""
        self.stopped = False
        self._tokenizer, self._stop = tokenizer, tuple(stop)
        self._ids: list[int] = []
        # Tokens from `_start` are decoded again each time, because a token's text may depend on its neighbours.
        self._start = self._read = 0
        self._held = ""

    def add(self, token_id: int) -> str:
        """The new text that is certain after this token."""
        self._ids.append(token_id)
        fresh = self._fresh()
        if not fresh or fresh.endswith(UNFINISHED_CHARACTER):
            return ""
        self._start, self._read = self._read, len(self._ids)
        return self._take(fresh)

    def close(self) -> str:
        """What was held back, when no more tokens come."""
        if self.stopped:
            return ""
        fresh, self._start, self._read = self._fresh(), len(self._ids), len(self._ids)
        piece = self._take(fresh)
        return piece if self.stopped else piece + self._emit(self._held.rstrip())

    def _fresh(self) -> str:
        known = self._decode(self._ids[self._start : self._read])
        return self._decode(self._ids[self._start :])[len(known) :]

    def _decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=True) if ids else ""

    def _take(self, fresh: str) -> str:
        self._held += fresh
        places = [place for place in (self._held.find(stop) for stop in self._stop) if place >= 0]
        if places:
            self.stopped = True
            return self._emit(self._held[: min(places)].rstrip())
        certain = len(self._held) - self._begun_stop()
        return self._emit(self._held[:certain].rstrip())

    def _begun_stop(self) -> int:
        """Length of the longest end of the held text that begins a stop string."""
        lengths = (
            length
            for stop in self._stop
            for length in range(min(len(stop) - 1, len(self._held)), 0, -1)
            if self._held.endswith(stop[:length])
        )
        return max(lengths, default=0)

    def _emit(self, piece: str) -> str:
        self._held = self._held[len(piece) :]
        piece = piece if self.text else piece.lstrip()
        self.text += piece
        return piece


class Stream:
    """One answer while it is written.

    on_text receives its text piece by piece; is_cancelled is asked after each token; on_finish is called at its end.
    """

    def __init__(
        self,
        processor: Processor,
        decoding: Decoding,
        on_text: Callable[[str], None] | None = None,
        is_cancelled: Callable[[], bool] | None = None,
        on_finish: Callable[[], None] | None = None,
    ) -> None:
        self.decoding = decoding
        self.words = AnswerText(processor.tokenizer, decoding.stop)
        self.token_ids: list[int] = []
        self.logprobs: list[TokenLogprob] = []
        self.finish_reason: FinishReason | None = None
        self._stops = frozenset(processor.stop_token_ids)
        self._on_text, self._is_cancelled, self._on_finish = on_text, is_cancelled, on_finish

    def add(self, token_id: int, logprob: TokenLogprob | None) -> None:
        """Take the next token and its log-probability, with at least as many alternatives as are wanted."""
        self.token_ids.append(token_id)
        if logprob is not None and self.decoding.logprobs:
            self.logprobs.append(replace(logprob, top=logprob.top[: self.decoding.top_logprobs]))
        is_end = token_id in self._stops
        self._say("" if is_end else self.words.add(token_id))
        if is_end or self.words.stopped:
            self.finish("stop")
        elif len(self.token_ids) >= self.decoding.max_new_tokens:
            self.finish("length")
        elif self._is_cancelled is not None and self._is_cancelled():
            self.finish("cancelled")

    def finish(self, reason: FinishReason) -> None:
        """End the answer, handing out what text was held back."""
        self.finish_reason = reason
        self._say(self.words.close())
        if self._on_finish is not None:
            self._on_finish()

    def _say(self, piece: str) -> None:
        if piece and self._on_text is not None:
            self._on_text(piece)

    def answer(self, prompt_token_count: int, computed_token_count: int) -> Answer:
        return Answer(
            self.words.text,
            tuple(self.token_ids),
            self.finish_reason or "cancelled",
            prompt_token_count,
            computed_token_count,
            tuple(self.logprobs),
        )


def token_logprobs(token_ids: torch.Tensor, logprobs: torch.Tensor, count: int) -> list[TokenLogprob]:
    """Of each row's token [B] among log-probabilities [B, K], with the `count` likeliest; read from the device at once."""
    values, ids = logprobs.topk(min(count, logprobs.shape[1]))
    own = logprobs.gather(1, token_ids[:, None])
    # Numbers below 2²⁴, such as those of tokens, are exact in float32, so that one copy brings all.
    read = torch.cat([column.float() for column in (token_ids[:, None], own, values, ids)], 1).tolist()
    width = values.shape[1]
    return [
        TokenLogprob(int(row[0]), row[1], tuple(zip(map(int, row[2 + width :]), row[2 : 2 + width], strict=True)))
        for row in read
    ]


class RowWatcher(StoppingCriteria):
    """Hands each row its new token within transformers' `generate`, and says which rows are finished."""

    def __init__(self, rows: Sequence[Stream], processors: RowProcessors) -> None:
        self.rows, self.processors = rows, processors

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        for row, (token_id, logprob) in zip(self.rows, self._read(input_ids[:, -1]), strict=True):
            if row.finish_reason is None:
                row.add(token_id, logprob)
        return torch.tensor([row.finish_reason is not None for row in self.rows], device=input_ids.device)

    def _read(self, token_ids: torch.Tensor) -> list[tuple[int, TokenLogprob | None]]:
        """Each row's token [B] and its log-probability where any row wants it: one wait for the device."""
        logprobs = self.processors.logprobs
        if logprobs is None:
            return [(token_id, None) for token_id in token_ids.tolist()]
        most = max(row.decoding.top_logprobs for row in self.rows)
        return [(found.token_id, found) for found in token_logprobs(token_ids, logprobs, most)]
