"""How tokens are chosen: transformers' logits processors, row by row of a batch. B rows, K vocabulary."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    SuppressTokensLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from mllm.errors import UserError
from mllm.inference.contrast import Contrast
from mllm.inference.request import Request
from mllm.processor import Processor

Contrasted = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""Makes of ids [B, any] that end with the tokens chosen last, and of logits [B, K], the logits that are chosen by."""


@dataclass(frozen=True)
class Decoding:
    """How one answer is written.

    max_new_tokens: its length at most. temperature: 0 is greedy. top_k: sample from the k likeliest (0: all). top_p: from
    the fewest whose probabilities sum to p. stop: the answer ends before any of these strings. logprobs: whether
    log-probabilities of the answer's tokens are kept; top_logprobs: of how many alternatives at each place. seed: of the
    answer's own random numbers, which make it a function of the seed and the prompt, whatever is answered beside it; None:
    torch's generator decides. forbidden: ids of tokens that are never chosen. contrast: with what the model's logits are
    contrasted before anything else is done to them; log-probabilities that are kept stay the model's own.
    """

    max_new_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    stop: tuple[str, ...] = ()
    logprobs: bool = False
    top_logprobs: int = 0
    seed: int | None = None
    forbidden: tuple[int, ...] = ()
    contrast: Contrast | None = None

    def __post_init__(self) -> None:
        for name, holds, wanted in (
            ("max_new_tokens", self.max_new_tokens >= 1, "at least 1"),
            ("temperature", 0 <= self.temperature < float("inf"), "a number from 0 on"),
            ("top_p", 0 < self.top_p <= 1, "above 0 and at most 1"),
            ("top_k", self.top_k >= 0, "at least 0"),
            ("top_logprobs", self.top_logprobs >= 0, "at least 0"),
            ("stop", all(self.stop), "strings that aren't empty"),
        ):
            if not holds:
                raise UserError(f"{name} is {getattr(self, name)!r}; it has to be {wanted}")

    @property
    def samples(self) -> bool:
        return self.temperature > 0

    @property
    def draws_from_torch(self) -> bool:
        """Whether torch's generator chooses its tokens."""
        return self.samples and self.seed is None

    def rival(self, request: Request) -> Request | None:
        """The request that an answer to `request` is contrasted with. Raises UserError where there can be none."""
        return None if self.contrast is None else self.contrast.rival(request)

    def warpers(self) -> LogitsProcessorList:
        """transformers' processors for this row; none for greedy."""
        out = LogitsProcessorList()
        if self.forbidden:
            out.append(SuppressTokensLogitsProcessor(list(self.forbidden)))
        if self.samples and self.temperature != 1.0:
            out.append(TemperatureLogitsWarper(float(self.temperature)))
        if self.samples and self.top_k > 0:
            out.append(TopKLogitsWarper(self.top_k))
        if self.samples and self.top_p < 1.0:
            out.append(TopPLogitsWarper(float(self.top_p)))
        return out


def generation_config(
    processor: Processor, max_new_tokens: int, temperature: float = 0.0, top_p: float = 1.0
) -> GenerationConfig:
    """Greedy at temperature 0, sampling above; stops at what ends an answer in the model's prompt format."""
    stops = processor.stop_token_ids
    sampling = (
        {"do_sample": True, "temperature": temperature, "top_p": top_p, "top_k": 0}
        if temperature > 0
        else {"do_sample": False}
    )
    # Said here, because transformers fills what is left open from a language model's own generation_config.json.
    return GenerationConfig(
        max_new_tokens=max_new_tokens,
        eos_token_id=stops,
        pad_token_id=stops[0],
        repetition_penalty=1.0,
        num_beams=1,
        **sampling,
    )


class RowProcessors(LogitsProcessor):
    """Each row's own warpers; where some rows sample, greedy rows keep their likeliest token alone, and rows with a seed the
    token that their own random number falls on.

    `logprobs` [B, K] are those of the model itself at the last step, before any warper; None when no row wants them.
    """

    def __init__(
        self,
        decodings: Sequence[Decoding],
        contrasted: Contrasted | None = None,
    ) -> None:
        """contrasted: None chooses by the model's own logits."""
        self._contrasted = contrasted
        self.wants_logprobs = any(decoding.logprobs for decoding in decodings)
        self.logprobs: torch.Tensor | None = None
        self._mixed = any(d.samples or d.forbidden for d in decodings)
        self._generators = {
            row: random.Random(d.seed) for row, d in enumerate(decodings) if d.samples and d.seed is not None
        }
        rows: dict[tuple[object, ...], list[int]] = {}
        for row, d in enumerate(decodings):
            rows.setdefault((d.temperature, d.top_p, d.top_k, d.forbidden), []).append(row)
        self._groups = [(indices, decodings[indices[0]]) for indices in rows.values()]

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        if self.wants_logprobs:
            self.logprobs = scores.float().log_softmax(-1)
        if self._contrasted is not None:
            scores = self._contrasted(input_ids, scores)
        if not self._mixed:
            return scores
        out = scores.clone()
        for indices, decoding in self._groups:
            rows = torch.tensor(indices, device=scores.device)
            warped = decoding.warpers()(input_ids[rows], scores[rows])
            out[rows] = warped if decoding.samples else _alone(warped, warped.argmax(-1, keepdim=True))
        if self._generators:
            rows = torch.tensor(list(self._generators), device=scores.device)
            numbers = [generator.random() for generator in self._generators.values()]
            out[rows] = _alone(out[rows], drawn(out[rows], numbers))
        return out


def drawn(scores: torch.Tensor, numbers: Sequence[float]) -> torch.Tensor:
    """int64 [b, 1]: the token of each row of `scores` [b, K] that its number in [0, 1) falls on, by their probabilities."""
    sums = scores.float().softmax(-1).double().cumsum(-1)
    places = torch.tensor(numbers, dtype=torch.float64).to(scores.device)[:, None] * sums[:, -1:]
    return torch.searchsorted(sums, places, right=True).clamp(max=scores.shape[-1] - 1)


def _alone(scores: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Scores [b, K] in which each row's token [b, 1] is the only one."""
    return torch.full_like(scores, -torch.inf).scatter(-1, tokens, 0.0)
