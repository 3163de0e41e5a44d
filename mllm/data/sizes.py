"""How many image tokens the samples of a mixture have, by the sizes of their images, for who arranges samples by length."""

import logging
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from mllm.data.collate import usable_cores
from mllm.data.dataset import Mixture
from mllm.errors import ImageBudgetError, UserError
from mllm.media.decode import read_image_size
from mllm.media.visual import Size
from mllm.processor import Processor

logger = logging.getLogger(__name__)


def estimated_image_tokens(mixture: Mixture, processor: Processor) -> np.ndarray:
    """int64 image tokens of each of `mixture.samples`, from the headers of all their images, each read once.

    An estimate: which images belong to one turn isn't looked at, a file that is no image is taken for a video that shows as
    many frames as any does, and a sample over the model's budget of image tokens for one without. Raises UserError where a
    source is a stream.
    """
    planner = processor.planner
    if not planner.depends_on_size:
        return mixture.sizes()[1] * planner.longest().token_count
    started, paths = time.monotonic(), mixture.images()

    def size_of(path: str) -> Size | None:
        try:
            return read_image_size(path) if mixture.holds_image(path) else None
        except UserError:
            return None

    with ThreadPoolExecutor(usable_cores()) as pool:
        sizes = dict(zip(paths, pool.map(size_of, paths), strict=True))
    logger.info("read the sizes of %d images in %.1f s", len(paths), time.monotonic() - started)
    longest_clip = planner.longest_clip().token_count

    def tokens(images: list[str]) -> int:
        known = [size for image in images if (size := sizes[image]) is not None]
        try:
            planned = sum(visual.token_count for visual in planner.plan(known))
        except ImageBudgetError:
            planned = 0
        return planned + longest_clip * (len(images) - len(known))

    parts = mixture.indexed("the sizes of its images")
    return np.array([tokens(images) for part in parts for images in part.image_paths().to_pylist()], dtype=np.int64)
