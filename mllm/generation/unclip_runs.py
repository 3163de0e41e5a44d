"""The runs of a prior, of a decoder of image embeddings, and of pictures beside cues of neighbours."""

import logging
import random
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch

from mllm.data.readers.errors import raise_error
from mllm.data.readers.json_lines import read_json
from mllm.errors import UserError
from mllm.generation.clip_sides import ClipSides, load_sides
from mllm.generation.codec import Codec
from mllm.generation.cues import open_neighbours
from mllm.generation.data import Captioned, PictureLatents, PictureRows, of_sources, read_captioned
from mllm.generation.denoiser import build_denoiser
from mllm.generation.embeddings import Standardizer
from mllm.generation.generator import GeneratorConfig, save_generator
from mllm.generation.prior import build_prior
from mllm.generation.prior_model import prior_schedule, save_prior
from mllm.generation.run import (
    CACHE,
    build_codec,
    build_task,
    check_side,
    derived_keys,
    heldout_of,
    made_once,
    placed,
    train_task,
    unshuffle_of,
    with_portions,
)
from mllm.generation.schedule import Schedule, build_schedule
from mllm.generation.settings import DrawingSettings, GenerationDataSettings
from mllm.generation.task import Dropping
from mllm.generation.text_side import load_text_side
from mllm.generation.unclip_generators import DECODER, RETRIEVAL, standardizer_tensors
from mllm.generation.unclip_rows import CueRows, DecoderRows, Embeddings, PriorRows
from mllm.generation.unclip_settings import DecoderSettings, PriorSettings, RetrievalSettings
from mllm.training.build_engine import start_engine
from mllm.training.engine import Engine
from mllm.training.run import begin_run

logger = logging.getLogger(__name__)


def train_prior(settings: PriorSettings, stop_after: int | None = None) -> Path | None:
    """Train what samples image embeddings of captions; returns the directory `final/` of the run.

    Stopping and going on are as in `train_diffusion`. Raises UserError for a CLIP whose embeddings of texts say nothing.
    """
    given, settings = settings, with_portions(settings)
    run_dir = Path(settings.run_dir)
    if begin_run(settings, run_dir, derived_keys(given)):
        return run_dir / "final"

    torch.manual_seed(settings.seed)
    sides = load_sides(settings.text.clip)
    length = settings.text.length_tokens or sides.length_tokens
    pairs = read_captioned(settings.data, settings.seed)
    sides.check_one_width()
    sides.check_tells_apart(pairs.captions)

    wrap = start_engine(settings.engine, settings.optim, settings.train)
    net = settings.network
    denoiser = build_prior(sides.width, length, net.layers, net.heads, net.head_width)
    engine = wrap(denoiser)

    def rows_of(own: Captioned, standardizer: Standardizer | None = None) -> PriorRows:
        cache = run_dir / CACHE
        return PriorRows(own, sides, length, Embeddings(own.images, sides, cache, standardizer), cache)

    rows = made_once(engine, lambda: rows_of(pairs))
    denoiser.standardize_by(rows.standardizer)
    held = _heldout_pairs(settings.data)
    held_rows = None if held is None else made_once(engine, lambda: rows_of(held, rows.standardizer))
    learning = Learning(prior_schedule(settings.levels), Dropping(text=settings.caption_dropout), None)

    def save(directory: Path, weights: dict[str, torch.Tensor]) -> None:
        save_prior(directory, denoiser, weights, sides, learning.schedule, length)

    _log(pairs)
    return _train(settings, engine, learning, rows, held_rows, save, stop_after)


def train_decoder(settings: DecoderSettings, stop_after: int | None = None) -> Path | None:
    """Train what draws from an image embedding and text; returns the directory `final/` of the run.

    Stopping and going on are as in `train_diffusion`.
    """
    given, settings = settings, with_portions(settings)
    run_dir = Path(settings.run_dir)
    if begin_run(settings, run_dir, derived_keys(given)):
        return run_dir / "final"

    torch.manual_seed(settings.seed)
    sides, text = load_sides(settings.text.clip), load_text_side(settings.text.clip, settings.text.length_tokens)
    codec = build_codec(settings.pictures)
    check_side(settings.denoiser, codec)
    pairs = read_captioned(settings.data, settings.seed)

    wrap = start_engine(settings.engine, settings.optim, settings.train)
    denoiser = build_denoiser(settings.denoiser, codec.shape[0], codec.shape[1], text.width, image_width=sides.width)
    engine = wrap(denoiser)

    def rows_of(own: Captioned, standardizer: Standardizer | None = None) -> DecoderRows:
        cache = run_dir / CACHE
        embeddings = Embeddings(own.images, sides, cache, standardizer)
        return DecoderRows(own, text, PictureLatents(own.images, codec, cache), embeddings, cache)

    held = _heldout_pairs(settings.data)
    with placed(engine.device, text, codec):
        rows = made_once(engine, lambda: rows_of(pairs))
        held_rows = None if held is None else made_once(engine, lambda: rows_of(held, rows.standardizer))
    learning = _learning(settings, codec, Dropping(settings.caption_dropout, settings.image_dropout))
    config = _config(DECODER, settings, sides)

    def save(directory: Path, weights: dict[str, torch.Tensor]) -> None:
        further = standardizer_tensors(rows.standardizer)
        save_generator(directory, config, denoiser, weights, text, codec, learning.schedule, further)
        sides.copy(directory / "clip")

    text.warn_of_cut(pairs.captions)
    _log(pairs)
    return _train(settings, engine, learning, rows, held_rows, save, stop_after)


def train_retrieval(settings: RetrievalSettings, stop_after: int | None = None) -> Path | None:
    """Train what draws beside the embeddings of a picture's neighbours, without captions; returns `final/` of the run.

    Stopping and going on are as in `train_diffusion`. Raises UserError for an index of another CLIP.
    """
    given, settings = settings, with_portions(settings)
    run_dir = Path(settings.run_dir)
    if begin_run(settings, run_dir, derived_keys(given)):
        return run_dir / "final"

    torch.manual_seed(settings.seed)
    sides, k = load_sides(settings.clip), settings.neighbours
    neighbours = open_neighbours(settings.index, sides.encoder)
    codec = build_codec(settings.pictures)
    check_side(settings.denoiser, codec)
    images = read_images(settings.data, settings.seed)

    wrap = start_engine(settings.engine, settings.optim, settings.train)
    denoiser = build_denoiser(settings.denoiser, codec.shape[0], codec.shape[1], sides.width, cue_width=sides.width)
    engine = wrap(denoiser)

    def rows_of(own: list[Path], standardizer: Standardizer | None = None) -> CueRows:
        cache = run_dir / CACHE
        embeddings = Embeddings(own, sides, cache, standardizer)
        return CueRows(own, PictureLatents(own, codec, cache), embeddings, neighbours, k, cache)

    held = _heldout_images(settings.data)
    with placed(engine.device, None, codec):
        rows = made_once(engine, lambda: rows_of(images))
        held_rows = None if held is None else made_once(engine, lambda: rows_of(held, rows.standardizer))
    learning = _learning(settings, codec, Dropping(0.0, settings.cue_dropout))
    config = _config(RETRIEVAL, settings, sides, neighbours=k)

    def save(directory: Path, weights: dict[str, torch.Tensor]) -> None:
        further = standardizer_tensors(rows.standardizer)
        save_generator(directory, config, denoiser, weights, None, codec, learning.schedule, further)
        sides.copy(directory / "clip")

    logger.info("%d pictures, each beside %d neighbours of %d", len(images), k, len(neighbours.index.paths))
    return _train(settings, engine, learning, rows, held_rows, save, stop_after)


class Learning(NamedTuple):
    """What is learned of rows: levels of noise, what is dropped, and how levels weigh."""

    schedule: Schedule
    dropping: Dropping
    min_snr_gamma: float | None


def _learning(settings: DrawingSettings, codec: Codec, dropping: Dropping) -> Learning:
    return Learning(build_schedule(settings.schedule, codec.is_pixels), dropping, settings.schedule.min_snr_gamma)


def _train(
    settings: PriorSettings | DrawingSettings,
    engine: Engine,
    learning: Learning,
    rows: PictureRows,
    held_rows: PictureRows | None,
    save: Callable[[Path, dict[str, torch.Tensor]], None],
    stop_after: int | None,
) -> Path | None:
    """Train the engine's module on rows, and measure its loss on held-out ones where there are some."""
    task = build_task(settings, rows, *learning)
    heldout = None
    if held_rows is not None:
        heldout = heldout_of(settings.heldout, build_task(settings, held_rows, *learning, batch_size=1))
    return train_task(settings, engine, task, save, heldout, stop_after)


def _config(kind: str, settings: DrawingSettings, sides: ClipSides, **further: int) -> GeneratorConfig:
    pictures = settings.pictures
    known = {"clip_fingerprint": sides.fingerprint, **further}
    return GeneratorConfig(kind, pictures.image_size_px, unshuffle_of(pictures), known)


def _heldout_pairs(data: GenerationDataSettings) -> Captioned | None:
    if data.heldout is None:
        return None
    return Captioned.of(of_sources(data.heldout, data.image_root, data.sources))


def _heldout_images(data: GenerationDataSettings) -> list[Path] | None:
    if data.heldout is None:
        return None
    return read_images(data.model_copy(update={"pairs": data.heldout, "max_pairs": None}), 0)


def read_images(data: GenerationDataSettings, seed: int) -> list[Path]:
    """Read the different images of a file of JSON lines whose records may have captions, which aren't read.

    Raises UserError for a record without an image, and where something is withheld, of which only captions would tell.
    """
    if data.withheld:
        raise UserError("data.withheld goes by captions, which are not read here; leave it out")
    images: dict[Path, None] = {}
    for place, record in read_json(Path(data.pairs), raise_error):
        image = record.get("image")
        if not isinstance(image, str):
            raise UserError(f"{place}: expected an object with image (a path)")
        if not data.sources or record.get("source") in data.sources:
            images[Path(data.image_root) / image] = None
    found = list(images)
    if not found:
        raise UserError(f"{data.pairs}: data.sources leaves no image to train on")
    if data.max_pairs and data.max_pairs < len(found):
        found = random.Random(f"{seed}/pairs").sample(found, data.max_pairs)
    return found


def _log(pairs: Captioned) -> None:
    logger.info("%d pairs of %d images, %d captions", len(pairs), len(pairs.images), len(pairs.captions))
