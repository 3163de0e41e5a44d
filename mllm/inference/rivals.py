"""The conversations that answers are contrasted with, read beside them, with keys and values of their own.

B rows of a batch, of which b are contrasted; K vocabulary.
"""

from collections.abc import Sequence

import torch

from mllm.inference.contrast import Contrast
from mllm.inference.decoding import Decoding
from mllm.inference.opening import open_batch, plan_openings
from mllm.inference.reading import Reader
from mllm.inference.request import Prompt


class Rivals:
    """Changes the logits of contrasted rows, step by step; each rival goes on with the tokens that its row has chosen."""

    def __init__(
        self, reader: Reader, rows: Sequence[int], prompts: Sequence[Prompt], contrasts: Sequence[Contrast]
    ) -> None:
        """rows: their places in the batch; prompts: the rivals'."""
        groups = plan_openings(reader, prompts, len(prompts))
        opened = open_batch(reader, groups, prompts)
        self._reader = reader
        self._rows = [rows[index] for index in opened.members]
        self._prompts = [prompts[index] for index in opened.members]
        self._contrasts = [contrasts[index] for index in opened.members]
        self._cache, self._mask, self._unread, self._place = opened.cache, opened.cached_mask, opened.rest, 0

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """float32 [B, K] of logits [B, K]; input_ids [B, any] end with the tokens chosen last, from the second call on."""
        if self._place:
            self._go_on(input_ids[self._rows, -1].tolist())
        found = self._reader.logits(self._cache, self._mask, self._unread, 1)[:, -1]
        if self._reader.keeps:
            self._mask = torch.cat([self._mask, self._unread.mask], 1)
        out = scores.float().clone()
        for number, (row, contrast) in enumerate(zip(self._rows, self._contrasts, strict=True)):
            own, rival = scores[row : row + 1], found[number : number + 1].to(scores.device)
            out[row : row + 1] = contrast.scores(own, rival, self._place)
        self._place += 1
        return out

    def _go_on(self, chosen: Sequence[int]) -> None:
        self._prompts = [prompt.followed_by(token) for prompt, token in zip(self._prompts, chosen, strict=True)]
        stops = [len(prompt) for prompt in self._prompts]
        starts = [stop - 1 if self._reader.keeps else 0 for stop in stops]
        self._unread = self._reader.stretch(self._prompts, starts, stops)


def rivals_of(reader: Reader, prompts: Sequence[Prompt], decodings: Sequence[Decoding]) -> Rivals | None:
    """The rivals of a batch's rows; None where none is contrasted."""
    rows, rivals, contrasts = [], [], []
    for row, (prompt, decoding) in enumerate(zip(prompts, decodings, strict=True)):
        if decoding.contrast is None:
            continue
        if prompt.rival is None:
            raise ValueError("a prompt that is contrasted was made without its rival (`Decoding.rival`)")
        rows.append(row)
        rivals.append(prompt.rival)
        contrasts.append(decoding.contrast)
    return Rivals(reader, rows, rivals, contrasts) if rows else None
