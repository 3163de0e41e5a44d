"""The run behind `train/contrastive.py`: tokenizer, model, training, held-out retrieval, a saved dual encoder."""

import logging
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mllm.checkpoint.dual import build_dual, image_processor, load_dual, save_clip
from mllm.checkpoint.parts import vision_config
from mllm.contrastive.caption_prompts import Prompter
from mllm.contrastive.data import PairBatcher, spoil_captions
from mllm.contrastive.decoding import PairDecoder
from mllm.contrastive.left_out import LeftOut
from mllm.contrastive.mixture import PairMixture
from mllm.contrastive.pairs import read_pairs
from mllm.contrastive.rates import dual_parts
from mllm.contrastive.retrieval import retrieval_recall
from mllm.contrastive.settings import CaptionNoiseSettings, ContrastiveLossSettings, ContrastiveSettings, Ignored
from mllm.contrastive.sources import PairSource, open_sources
from mllm.contrastive.task import ContrastiveTask
from mllm.contrastive.teacher import Teacher
from mllm.contrastive.watching import SharedEncoder, Watcher
from mllm.errors import UserError
from mllm.files import write_json_atomically
from mllm.inference.dual_features import DualEncoder, load_encoder
from mllm.launch import launched_world_size
from mllm.media.prepare import ImagePreparer
from mllm.model.dual_encoder import too_long, train_tokenizer
from mllm.model.dual_settings import ClipModelSettings
from mllm.outputs import hash_file
from mllm.training.averages import Averages, check_whole
from mllm.training.build_engine import start_engine, with_known_dtype
from mllm.training.callbacks import Callback
from mllm.training.loop import Trainer
from mllm.training.run import begin_run, complete, recorders

logger = logging.getLogger(__name__)

# A tokenizer learns from so many captions at most, and so many are looked at for their lengths.
CAPTIONS_LEARNED = 200_000


def train_clip(settings: ContrastiveSettings, stop_after: int | None = None) -> Path | None:
    """Train a dual encoder; returns the directory `final/` of the run, readable by `CLIPModel` or `SiglipModel`.

    A run that was stopped goes on; one that is finished with the same settings has nothing to do. With `stop_after`, it
    ends, resumable, when that many steps are done, and None is returned. Raises UserError where settings differ from those
    that the run began with.
    """
    run_dir = Path(settings.run_dir)
    derived = {"train.dtype"} if settings.train.dtype == "auto" else set()
    if "micro_batch_size" not in settings.train.model_fields_set:
        derived.add("train.micro_batch_size")
    settings = with_portions(settings, launched_world_size())
    train = with_known_dtype(settings.train)
    settings = settings.model_copy(update={"train": train})
    if begin_run(settings, run_dir, derived):
        return run_dir / "final"

    torch.manual_seed(settings.seed)
    begun = load_encoder(settings.model.init_from) if settings.model.init_from else None
    batcher, spoilt = _build_batcher(settings, begun)
    teacher = _hired(settings, batcher)

    wrap = start_engine(settings.engine, settings.optim, train)
    loaded = None if begun is None else begun.model
    model = build_dual(settings.model, batcher.tokenizer, settings.loss.kind == "sigmoid", loaded)
    if train.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    engine = wrap(model, part_of=dual_parts(model.config, settings.optim))
    logger.info("engine: %s", engine.description)

    chunk = train.micro_batch_size if settings.loss.grad_cache else None
    task = ContrastiveTask(batcher, settings.loss.kind, chunk, teacher, settings.loss.teacher_weight)

    average = None
    if settings.average_decay is not None:
        check_whole(engine.module, "average_decay")
        average = Averages(engine.module, settings.average_decay) if engine.rank == 0 else None
    watchers: list[Callback] = [] if average is None else [average]
    if settings.eval is not None:
        encoder = SharedEncoder(engine.module, batcher.tokenizer, batcher.preparer, engine)
        watchers.append(Watcher(settings.eval, encoder, settings.data.image_root))
    write = partial(_write_model, settings, batcher, model)
    callbacks = [*watchers, *recorders(settings, train, run_dir, engine)]
    trainer = Trainer(task, engine, settings.optim, train, run_dir, write, callbacks, counted="pairs")
    logger.info("%d pairs, %d steps of %d", len(batcher.pairs), trainer.total, batcher.batch_size)
    facts = {"steps": trainer.total, "spoilt_captions": spoilt}
    return complete(trainer, stop_after, partial(_write_final, settings, batcher, facts, average))


def _hired(settings: ContrastiveSettings, batcher: PairBatcher) -> Teacher | None:
    """The teacher that the settings name; the batches are then made for it, too."""
    if settings.loss.teacher is None:
        return None
    teacher = Teacher(settings.loss.teacher, batcher.preparer)
    batcher.teacher = teacher.inputs
    return teacher


def with_portions(settings: ContrastiveSettings, world_size: int) -> ContrastiveSettings:
    """`settings` with a micro-batch of a rank's whole share where they name none.

    Raises UserError when micro-batches would be accumulated without GradCache, or dropout would belie it.
    """
    share = max(1, settings.train.global_batch_size // world_size)
    if "micro_batch_size" not in settings.train.model_fields_set:
        train = settings.train.model_copy(update={"micro_batch_size": share})
        settings = settings.model_copy(update={"train": train})
    if settings.train.micro_batch_size < share and not settings.loss.grad_cache:
        raise UserError(
            f"train.micro_batch_size {settings.train.micro_batch_size} of {share} pairs a rank: accumulated losses of "
            "parts are another loss, with fewer negatives; set loss.grad_cache: true, which is exact, or leave "
            "micro_batch_size out"
        )
    encoder = settings.model.image_encoder
    if settings.loss.grad_cache and encoder and vision_config(encoder).attention_dropout > 0:
        raise UserError(f"model.image_encoder {encoder} has dropout: loss.grad_cache computes features twice, alike")
    return settings


def _build_batcher(
    settings: ContrastiveSettings, begun: DualEncoder | None = None
) -> tuple[PairBatcher, dict[str, int]]:
    """Pairs, spoilt as the settings say, with the tokenizer of what is begun with or one learned from them; and how many
    captions were spoilt how."""
    data = settings.data
    sources = open_sources(data, settings.seed)
    sources, spoilt = _spoilt(sources, data.noise, settings.seed)
    mixture = PairMixture(sources, settings.seed)
    tokenizer, preparer = _reading(settings, mixture) if begun is None else (begun.tokenizer, begun.preparer)
    if not isinstance(preparer, ImagePreparer):
        raise UserError(
            f"model.init_from {settings.model.init_from} prepares images its own way; it can't be trained on"
        )
    batcher = PairBatcher(
        mixture,
        tokenizer,
        preparer,
        settings.train.global_batch_size,
        settings.seed,
        data.augment,
        data.prompts,
        _listed(settings.loss),
        PairDecoder(data.workers, LeftOut(data.on_bad_sample == "error", data.max_bad_share)),
        _kept_patches(settings.model, None if begun is None else begun.model.config.vision_config, preparer.side_px),
    )
    return batcher, spoilt


def _reading(settings: ContrastiveSettings, pairs: PairMixture) -> tuple[PreTrainedTokenizerBase, ImagePreparer]:
    """A tokenizer learned from the captions, and the preparation of the model's image processor."""
    prompter = Prompter(settings.data.prompts, settings.seed)
    tokenizer = train_tokenizer(
        (prompter(caption, 0, n) for n, caption in enumerate(pairs.captions(CAPTIONS_LEARNED))),
        settings.model.vocabulary_size,
        settings.model.text_length_tokens,
        pads_to_full_length=settings.model.layout == "siglip",
    )
    processor = image_processor(settings.model)
    size = processor.size.get("shortest_edge") or processor.size["height"]
    return tokenizer, ImagePreparer(size, tuple(processor.image_mean), tuple(processor.image_std))


def _kept_patches(model: ClipModelSettings, begun: Any, side_px: int) -> tuple[int, int] | None:
    """How many patches of an image are kept, and how many it has; None where none is dropped. begun: config of the sides'."""
    if not model.patch_dropout:
        return None
    taken = begun or (vision_config(model.image_encoder) if model.image_encoder else None)
    count = (side_px // (model.patch_size_px if taken is None else taken.patch_size)) ** 2
    return max(1, int(count * (1 - model.patch_dropout))), count


def _listed(loss: ContrastiveLossSettings) -> Ignored:
    """Which places of a batch are listed; of what are `same`, multi_positive makes positives."""
    return "same" if (loss.kind, loss.ignore) == ("multi_positive", "none") else loss.ignore


def _spoilt(
    sources: list[PairSource], noise: CaptionNoiseSettings, seed: int
) -> tuple[list[PairSource], dict[str, int]]:
    """`sources` with their captions spoilt, which takes all of them into memory, and how many were how."""
    if noise == CaptionNoiseSettings():
        return sources, dict.fromkeys(CaptionNoiseSettings.model_fields, 0)
    if len(sources) > 1 or sources[0].is_stream:
        raise UserError("data.noise spoils captions of one source that is no stream; leave it out for these")
    pairs, spoilt = spoil_captions(list(sources[0].pairs), noise, seed)
    if any(spoilt.values()):
        logger.info("spoilt captions: %s", ", ".join(f"{count} {kind}" for kind, count in spoilt.items()))
    return [replace(sources[0], pairs=pairs)], spoilt


def _write_model(
    settings: ContrastiveSettings,
    batcher: PairBatcher,
    model: PreTrainedModel,
    directory: Path,
    state_dict: dict[str, torch.Tensor],
) -> None:
    processor = image_processor(settings.model, batcher.preparer.fit)
    save_clip(directory, model, state_dict, batcher.tokenizer, processor)


def _write_final(
    settings: ContrastiveSettings,
    batcher: PairBatcher,
    facts: dict[str, Any],
    average: Averages | None,
    trained: Path,
    final: Path,
) -> None:
    """Write the model of the directory `trained`, or its average, to `final` in float16, and the log of its training."""
    model, _ = load_dual(trained)
    if average is not None:
        averages = {name: weight.reshape(model.get_parameter(name).shape) for name, weight in average.weights().items()}
        model.load_state_dict(averages, strict=False)
    weights = model.state_dict()
    processor = image_processor(settings.model, batcher.preparer.fit)
    save_clip(final, model, weights, batcher.tokenizer, processor, torch.float16)
    parameters = sum(tensor.numel() for name, tensor in weights.items() if not name.endswith("position_ids"))
    log = _training_log(settings, batcher) | facts | {"parameters": parameters}
    if settings.data.heldout:
        heldout = read_pairs(settings.data.heldout, settings.data.image_root)
        log["heldout"] = retrieval_recall(model, heldout, batcher)
        logger.info("held-out retrieval: %s", log["heldout"])
    write_json_atomically(final / "training_log.json", log)


def _training_log(settings: ContrastiveSettings, batcher: PairBatcher) -> dict[str, Any]:
    long = too_long(batcher.tokenizer, list(batcher.pairs.captions(CAPTIONS_LEARNED)))
    if long:
        logger.warning("%d captions are longer than %d tokens", long, batcher.tokenizer.model_max_length)
    pairs = settings.data.pairs
    return {
        "settings": settings.model_dump(mode="json"),
        "pairs_sha256": hash_file(pairs) if isinstance(pairs, str) and Path(pairs).is_file() else None,
        "pairs": len(batcher.pairs),
        "truncated_captions": long,
        "left_out": {source.name: dict(source.left_out.counts) for source in batcher.pairs.sources},
    }
