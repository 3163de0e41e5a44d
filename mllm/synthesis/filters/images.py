"""Images seen before, in this run or in an evaluation set, by what they show; decided before anything is paid for."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from mllm.data.readers import READERS
from mllm.data.recipe import SourceSettings
from mllm.data.samples import with_resolved_images
from mllm.errors import UserError
from mllm.media.decode import read_image
from mllm.synthesis.context import Context
from mllm.synthesis.filters.base import Candidate
from mllm.synthesis.filters.duplicates import Seen, normalized
from mllm.synthesis.settings import EvaluationSettings, FilterSettings

COLOR_TOLERANCE = 12
# How many bits are set in each number of 16 bits (numpy counts them itself only from 2.0 on).
BITS_SET = np.unpackbits(np.arange(1 << 16, dtype=np.uint16).view(np.uint8).reshape(-1, 2), axis=1).sum(1, np.uint8)


class HashSet:
    """Perceptual hashes (64 bits) with mean colours, searched within a distance in bits."""

    def __init__(self, distance: int) -> None:
        """Raises UserError without imagehash."""
        try:
            from imagehash import phash
        except ImportError:
            raise UserError("filters of images need imagehash; pip install 'mllm[synth]', or skip them") from None
        self._phash = phash
        self._distance = distance
        self._bits, self._colors, self._count = np.zeros(64, np.uint64), np.zeros((64, 3), np.int16), 0

    def signature(self, image: Image.Image) -> tuple[np.uint64, np.ndarray]:
        """The hash and the mean RGB: the hash is of brightness alone, and blank or recoloured images share theirs."""
        bits = np.packbits(self._phash(image).hash.flatten()).view(np.uint64)[0]
        return bits, np.asarray(image.resize((1, 1), Image.Resampling.BOX), np.int16).reshape(3)

    def holds(self, signature: tuple[np.uint64, np.ndarray]) -> bool:
        bits, color = signature
        differing = BITS_SET[(self._bits[: self._count] ^ bits).view(np.uint16).reshape(-1, 4)]
        near = differing.sum(axis=1, dtype=np.uint8) <= self._distance
        return bool((np.abs(self._colors[: self._count][near] - color).max(axis=1, initial=0) <= COLOR_TOLERANCE).any())

    def add(self, signature: tuple[np.uint64, np.ndarray]) -> None:
        if self._count == len(self._bits):
            self._bits, self._colors = (
                np.resize(self._bits, 2 * self._count),
                np.resize(self._colors, (2 * self._count, 3)),
            )
        self._bits[self._count], self._colors[self._count] = signature
        self._count += 1


class ImageFilters:
    """`bad_image`, `evaluation_image` and `duplicate_image`, in this order."""

    names = ("bad_image", "evaluation_image", "duplicate_image")

    def __init__(self, settings: FilterSettings) -> None:
        self._active = [name for name in self.names if name not in settings.skip]
        self._is_needed = bool({"evaluation_image", "duplicate_image"} & set(self._active))
        if self._is_needed:
            self._earlier, self._evaluation = HashSet(settings.image_distance), HashSet(settings.image_distance)
            if "evaluation_image" in self._active:
                for image in evaluation_images(settings.evaluation):
                    self._evaluation.add(self._evaluation.signature(read_image(image)))

    def refusal(self, context: Context) -> tuple[str, str] | None:
        """(name of the filter, why) for an image that isn't to be used."""
        if not self._active:
            return None
        try:
            image = read_image(context.location)
        except UserError as error:
            return ("bad_image", str(error)) if "bad_image" in self._active else None
        if not self._is_needed:
            return None
        signature = self._earlier.signature(image)
        if "evaluation_image" in self._active and self._evaluation.holds(signature):
            return "evaluation_image", "an evaluation set has this image"
        if "duplicate_image" in self._active and self._earlier.holds(signature):
            return "duplicate_image", "an earlier image looks the same"
        self._earlier.add(signature)
        return None


def evaluation_images(sets: tuple[EvaluationSettings, ...]) -> Iterator[str]:
    """The images of evaluation sets, each once."""
    found: dict[str, None] = {}
    for settings in sets:
        for sample_images, _ in _samples(settings):
            found.update(dict.fromkeys(sample_images))
    return iter(found)


class EvaluationQuestion:
    """A question that an evaluation set asks in the same words, if it is long enough not to be anyone's."""

    def __init__(self, settings: FilterSettings) -> None:
        self._fewest = settings.question_words
        self._seen = Seen()
        for evaluation in settings.evaluation:
            for _, questions in _samples(evaluation):
                for question in questions:
                    self._seen.add("question", normalized(question))

    def __call__(self, candidate: Candidate) -> str | None:
        for question, _ in candidate.turns:
            text = normalized(question)
            if len(text.split()) >= self._fewest and self._seen.value("question", text) is not None:
                return f"an evaluation set asks {question!r}"
        return None


def _samples(settings: EvaluationSettings) -> Iterator[tuple[tuple[str, ...], list[str]]]:
    """(images, questions) of each sample; lines after a question's first are how to answer it, and left out."""
    source = SourceSettings(path=settings.path, reader=settings.reader, image_root=settings.image_root)
    files = source.files()
    for file in files:
        for sample in READERS.get(settings.reader)(Path(file)):
            resolved = with_resolved_images(sample, Path(settings.image_root), files)
            questions = [message.text.strip().split("\n")[0] for message in sample.messages if message.role == "user"]
            yield resolved.images, [question for question in questions if question]
