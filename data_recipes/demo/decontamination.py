"""Keeping test pictures out of training: dropped before sampling, and checked again on what was written."""

from collections.abc import Iterable
from pathlib import Path

from mllm.data.readers.errors import raise_error
from mllm.data.readers.json_lines import read_lines
from mllm.errors import UserError
from mllm.synthesis.picture import Picture, pixel_hash


def picture_hashes(pictures: Iterable[Picture]) -> set[str]:
    """Pixel hashes of the pictures."""
    return {pixel_hash(p.data, f"{p.source} {p.key}") for p in pictures}


def without_hashes(pictures: list[Picture], forbidden: set[str]) -> list[Picture]:
    """The pictures whose pixels are not among `forbidden`."""
    return [p for p in pictures if pixel_hash(p.data, f"{p.source} {p.key}") not in forbidden]


def check_no_leak(root: Path, training: list[Path], heldout: list[Path]) -> None:
    """Raise UserError naming both files if a picture of a held-out file is in a training file."""
    hash_of: dict[str, str] = {}

    def hashes(path: Path) -> dict[str, str]:
        found = {}
        for _, row in read_lines(path, raise_error):
            for image in row["images"] if "images" in row else [row["image"]]:
                if image not in hash_of:
                    hash_of[image] = pixel_hash((root / image).read_bytes(), image)
                found[hash_of[image]] = image
        return found

    held = {path: hashes(path) for path in heldout}
    for train_path in training:
        trained = hashes(train_path)
        for heldout_path, hidden in held.items():
            for leaked in sorted(trained.keys() & hidden.keys()):
                raise UserError(
                    f"{train_path.name} trains on {trained[leaked]}, which {heldout_path.relative_to(root)} holds out "
                    f"as {hidden[leaked]}; remove it from one of the two sources"
                )
