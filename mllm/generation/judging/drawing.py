"""Pictures drawn to a directory, a batch at a time: what is there isn't drawn again, and a stop loses one batch at most.

A directory: `made.json`, the settings that it was begun with; `pictures.jsonl`, a line a picture; and `images/`.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from mllm.errors import UserError
from mllm.files import write_json_atomically
from mllm.generation.judging.drawn import PICTURES, Drawn
from mllm.inference.sampling import seed_of
from mllm.outputs import check_files, free_name

MADE = "made.json"
IMAGES = "images"
Paint = Callable[[Sequence[str], Sequence[int]], list[Image.Image]]
"""Draws a picture of each prompt by its seed; which others are drawn along changes none."""
Look = Callable[[Sequence[Drawn]], list[dict[str, Any]]]
"""Says of each picture what its line holds besides."""


class PictureFolder:
    """Pictures on the disk, in the order that they were drawn in."""

    def __init__(self, directory: Path, made: Mapping[str, Any], by: str) -> None:
        """made: what decides about the pictures. Raises UserError for a directory that was begun with other settings, or
        isn't one of pictures."""
        self.directory = directory
        settings = json.loads(json.dumps(made))
        file = directory / MADE
        if file.is_file():
            _check_same(file, settings)
        else:
            check_files(directory, (MADE, PICTURES), by)
            if (directory / IMAGES).exists():
                raise UserError(f"{directory / IMAGES} is in the way; write to {free_name(directory)}")
            directory.mkdir(parents=True, exist_ok=True)
            write_json_atomically(file, settings, by)
        (directory / IMAGES).mkdir(exist_ok=True)
        self.records = whole_records(directory / PICTURES)

    @property
    def pictures(self) -> list[Drawn]:
        return [self._drawn(record) for record in self.records]

    def _drawn(self, record: Mapping[str, Any]) -> Drawn:
        made = {name: value for name, value in record.items() if name not in ("image", "caption")}
        return Drawn(self.directory / record["image"], record["caption"], made)

    def draw(
        self,
        paint: Paint,
        wanted: Sequence[tuple[str, int]],
        seed: int,
        noted: Mapping[str, Any],
        look: Look | None = None,
    ) -> None:
        """Draw one batch: of each (prompt, number) a picture, whose own seed is a function of both and of `seed`.

        noted: what each line holds besides. The lines are written once all the images and what `look` says are there.
        """
        seeds = [seed_of(seed, prompt, number) % 2**63 for prompt, number in wanted]
        records: list[dict[str, Any]] = []
        images = paint([prompt for prompt, _ in wanted], seeds)
        for (prompt, number), own_seed, image in zip(wanted, seeds, images, strict=True):
            name = f"{IMAGES}/{len(self.records) + len(records):06d}.png"
            image.save(self.directory / name)
            records.append({"image": name, "caption": prompt, "number": number, "seed": own_seed, **noted})
        told = look([self._drawn(record) for record in records]) if look is not None else [{}] * len(records)
        records = [record | more for record, more in zip(records, told, strict=True)]
        with open(self.directory / PICTURES, "a", encoding="utf-8") as file:
            file.write("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))
        self.records += records


def draw_all(
    folder: PictureFolder,
    paint: Paint,
    prompts: Sequence[str],
    count: int,
    seed: int,
    noted: Mapping[str, Any],
    batch: int,
) -> Iterator[int]:
    """Draw `count` pictures of each prompt, as far as they aren't there; yields how many were drawn, after each batch."""
    done = {(record["caption"], record["number"]) for record in folder.records}
    wanted = [(prompt, number) for number in range(count) for prompt in prompts if (prompt, number) not in done]
    for start in range(0, len(wanted), batch):
        some = wanted[start : start + batch]
        folder.draw(paint, some, seed, noted)
        yield len(some)


def whole_records(path: Path) -> list[dict[str, Any]]:
    """The lines of a file; one that was cut short at its end is taken off it. None where there is no file."""
    if not path.is_file():
        return []
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if len(whole) < len(content):
        path.write_bytes(whole)
    try:
        return [json.loads(line) for line in whole.decode("utf-8").splitlines()]
    except ValueError as error:
        raise UserError(f"{path} isn't a file of pictures ({error}); move it away") from None


def _check_same(file: Path, made: Mapping[str, Any]) -> None:
    try:
        before = json.loads(file.read_text(encoding="utf-8"))
        changes = [f"{name} is {before.get(name)} there and {value} here" for name, value in made.items()
                   if before.get(name) != value]  # fmt: skip
    except (ValueError, AttributeError):
        raise UserError(f"{file} doesn't say how pictures were made; write to {free_name(file.parent)}") from None
    if changes:
        raise UserError(f"{file} holds other settings: {'; '.join(changes)}; write to {free_name(file.parent)}")
