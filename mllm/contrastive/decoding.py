"""Images of pairs, read, changed and laid into a batch's tensor by threads.

Pillow lets go of the interpreter for most of it.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Literal

import torch
from PIL import Image

from mllm.contrastive.left_out import LeftOut
from mllm.contrastive.pairs import Pair, checked, with_place
from mllm.data.collate import own_share_of_cores
from mllm.errors import UserError
from mllm.media.decode import read_image

# Of more, the first are listed by name.
MOST_LISTED = 1000


class PairDecoder:
    """Decodes with `workers` threads; with 0, in the thread that asks. Which of them does changes no pixel."""

    def __init__(self, workers: int | Literal["auto"] = 0, left_out: LeftOut | None = None) -> None:
        """left_out: counts images that can't be read, or raises; by default the first raises."""
        self.workers = own_share_of_cores() if workers == "auto" else workers
        self._pool = ThreadPoolExecutor(self.workers, "decode") if self.workers else None
        self._left_out = left_out or LeftOut(at_once=True, most_share=0.0)
        self._listed = 0
        self._skipped: list[tuple[str, str, str]] = []

    @property
    def skips(self) -> bool:
        """Whether an image that can't be read is skipped, so that a pair may not count."""
        return not self._left_out.at_once

    def decode(
        self, pairs: Sequence[Pair], prepare: Callable[[int, Image.Image], torch.Tensor], shape: tuple[int, ...]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """float32 [b, *shape] of the images of b pairs, blank where one can't be read, and bool [b], which could.

        prepare(n, image) gives the pixels of the n-th.
        """
        pixels = torch.empty(len(pairs), *shape)

        def read(place: int) -> UserError | None:
            try:
                pixels[place] = prepare(place, read_image(checked(pairs[place])))
            except UserError as error:
                pixels[place] = 0.0
                return error
            return None

        places = range(len(pairs))
        errors = list(map(read, places) if self._pool is None else self._pool.map(read, places))
        self._left_out.met += sum(error is None for error in errors)
        for pair, error in zip(pairs, errors, strict=True):
            if error is not None:
                self._skip(pair, error)
        return pixels, torch.tensor([error is None for error in errors])

    def _skip(self, pair: Pair, error: UserError) -> None:
        named = with_place(pair, error)
        self._left_out.add(named)
        if self._listed < MOST_LISTED:
            self._listed += 1
            self._skipped.append((pair.place or str(pair.image), "image", str(named)))

    def taken_skipped(self) -> list[tuple[str, str, str]]:
        """(place, kind, reason) of what was skipped since this was last asked, the first thousand of a run."""
        taken, self._skipped = self._skipped, []
        return taken
