"""Prompts become pictures, and pictures a sheet."""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from PIL import Image, ImageDraw

from mllm.files import atomic_file
from mllm.generation.codec import to_pictures
from mllm.generation.conditions import Conditions
from mllm.generation.generator import Generator
from mllm.generation.pipelines import Pipeline
from mllm.generation.sampler import Sampling, sample, start_noise

CELL_PX = 128
LABEL_PX = 18
MARGIN_PX = 4


def draw_pictures(
    generator: Generator | Pipeline,
    prompts: Sequence[str],
    seeds: Sequence[int],
    how: Sampling,
    batch_size: int = 16,
    on_step: Callable[[int], None] | None = None,
) -> list[Image.Image]:
    """Draw picture i from prompt i and the noise of seed i.

    on_step(done): called after each step of a batch, with the number of pictures' steps that are done. Raises UserError
    like `Sampling.checked`.
    """
    if isinstance(generator, Pipeline):
        return generator.draw(prompts, seeds, how, on_step)
    how.checked(generator.schedule.num_train_timesteps)
    conditions = generator.conditions(prompts, seeds)
    return draw_conditions(generator, conditions, seeds, how, batch_size, on_step)


def draw_conditions(
    generator: Generator,
    conditions: Conditions,
    seeds: Sequence[int],
    how: Sampling,
    batch_size: int = 16,
    on_step: Callable[[int], None] | None = None,
) -> list[Image.Image]:
    """`draw_pictures` from conditions, those of one picture a seed."""
    null, pictures, done = generator.null(), [], 0
    for first in range(0, len(seeds), batch_size):
        own = seeds[first : first + batch_size]
        start, generators = start_noise(own, generator.codec.shape)

        def told(number: int, _: torch.Tensor, before: int = done, count: int = len(own)) -> None:
            if on_step is not None:
                on_step(before + number * count)

        rows = conditions.rows(first, first + len(own))
        latents = sample(
            generator.denoiser, generator.schedule, start.to(generator.device), rows, null, how, generators, told
        )
        pictures += to_pictures(generator.codec.decode(latents))
        done += how.steps * len(own)
    return pictures


def save_sheet(pictures: Sequence[Image.Image], labels: Sequence[str], columns: int, path: Path, by: str) -> None:
    """Draw pictures in rows of `columns`, each under a label, to a file.

    by: the command that does, see `mllm.outputs.check_file`.
    """
    rows = -(-len(pictures) // columns)
    width, height = CELL_PX + MARGIN_PX, CELL_PX + LABEL_PX
    sheet = Image.new("RGB", (min(columns, len(pictures)) * width + MARGIN_PX, rows * height + MARGIN_PX), "white")
    draw = ImageDraw.Draw(sheet)
    for place, (picture, label) in enumerate(zip(pictures, labels, strict=True)):
        left, top = place % columns * width + MARGIN_PX, place // columns * height
        draw.text((left, top + 3), _fitting(draw, label, CELL_PX), fill="black")
        resample = Image.Resampling.NEAREST if picture.width < CELL_PX else Image.Resampling.LANCZOS
        sheet.paste(picture.resize((CELL_PX, CELL_PX), resample), (left, top + LABEL_PX))
    with atomic_file(path, by) as temporary:
        sheet.save(temporary)


def _fitting(draw: ImageDraw.ImageDraw, text: str, width_px: int) -> str:
    while text and draw.textlength(text) > width_px:
        text = text[:-1]
    return text
