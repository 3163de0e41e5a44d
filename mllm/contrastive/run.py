"""The run behind `train/contrastive.py`: tokenizer, model, training, held-out retrieval, a saved dual encoder."""

import logging
import random
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from mllm.checkpoint.dual import build_dual, image_processor, save_clip
from mllm.checkpoint.parts import vision_config
from mllm.contrastive.data import Pair, PairBatcher, read_pairs, spoil_captions
from mllm.contrastive.retrieval import retrieval_recall
from mllm.contrastive.settings import ContrastiveSettings
from mllm.contrastive.task import ContrastiveTask
from mllm.errors import UserError
from mllm.files import atomic_directory, write_json_atomically
from mllm.media.prepare import ImagePreparer
from mllm.model.dual_encoder import too_long, train_tokenizer
from mllm.outputs import hash_file
from mllm.training.build_engine import build_engine, launched_world_size, with_known_dtype
from mllm.training.callback import Callback
from mllm.training.callbacks import LogLine, MetricsFile, ProgressBar
from mllm.training.engine import Engine
from mllm.training.loop import Trainer
from mllm.training.picture import CurvesPicture
from mllm.training.resume import BY
from mllm.training.run_settings import begin_run
from mllm.training.trackers import build_trackers

logger = logging.getLogger(__name__)


def train_clip(settings: ContrastiveSettings) -> Path:
    """Train a dual encoder; returns the directory `final/` of the run, readable by `CLIPModel` or `SiglipModel`.

    A run that was stopped goes on; one that is finished with the same settings has nothing to do. Raises UserError where
    they differ.
    """
    derived = {"train.dtype"} if settings.train.dtype == "auto" else set()
    if "micro_batch_size" not in settings.train.model_fields_set:
        derived.add("train.micro_batch_size")
    settings = with_portions(settings, launched_world_size())
    settings = settings.model_copy(update={"train": with_known_dtype(settings.train)})
    run_dir = Path(settings.run_dir)
    if begin_run(settings, run_dir, derived):
        logger.info("%s is already there, of these settings: nothing to do", run_dir / "final")
        return run_dir / "final"
    torch.manual_seed(settings.seed)
    batcher, spoilt = _build_batcher(settings)
    engine = build_engine(
        lambda: build_dual(settings.model, batcher.tokenizer, settings.loss.kind == "sigmoid"),
        settings.engine,
        settings.optim,
        settings.train,
    )

    def write_model(directory: Path, state_dict: dict[str, torch.Tensor]) -> None:
        save_clip(directory, engine.module, state_dict, batcher.tokenizer, settings.model)

    chunk_size = settings.train.micro_batch_size if settings.loss.grad_cache else None
    task = ContrastiveTask(batcher, settings.loss.kind, chunk_size)
    callbacks = _callbacks(settings, run_dir) if engine.rank == 0 else []
    trainer = Trainer(task, engine, settings.optim, settings.train, run_dir, write_model, callbacks)
    logger.info(
        "%s; %d pairs, %d steps of %d", engine.description, len(batcher.pairs), trainer.total, batcher.batch_size
    )
    trainer.run()
    _finish(settings, engine, batcher, {"steps": trainer.total, "spoilt_captions": spoilt})
    engine.close()
    return run_dir / "final"


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


def _callbacks(settings: ContrastiveSettings, run_dir: Path) -> list[Callback]:
    return [
        MetricsFile(run_dir / "metrics.jsonl"),
        *build_trackers(settings.train.trackers, run_dir, settings.model_dump(mode="json")),
        ProgressBar("contrastive"),
        LogLine(settings.train.log_every_steps),
        CurvesPicture(run_dir),
    ]


def _build_batcher(settings: ContrastiveSettings) -> tuple[PairBatcher, dict[str, int]]:
    """Pairs, spoilt as the settings say, with a tokenizer learned from them; and how many captions were spoilt how."""
    pairs = read_pairs(settings.data.pairs, settings.data.image_root)
    if settings.data.max_pairs and settings.data.max_pairs < len(pairs):
        pairs = random.Random(f"{settings.seed}/pairs").sample(pairs, settings.data.max_pairs)
    pairs, spoilt = spoil_captions(pairs, settings.data.noise, settings.seed)
    if any(spoilt.values()):
        logger.info("spoilt captions: %s", ", ".join(f"{count} {kind}" for kind, count in spoilt.items()))
    tokenizer = train_tokenizer(
        (pair.caption for pair in pairs),
        settings.model.vocabulary_size,
        settings.model.text_length_tokens,
        pads_to_full_length=settings.model.layout == "siglip",
    )
    processor = image_processor(settings.model)
    size = processor.size.get("shortest_edge") or processor.size["height"]
    preparer = ImagePreparer(size, tuple(processor.image_mean), tuple(processor.image_std))
    return PairBatcher(pairs, tokenizer, preparer, settings.train.global_batch_size, settings.seed), spoilt


def _finish(settings: ContrastiveSettings, engine: Engine, batcher: PairBatcher, facts: dict[str, Any]) -> None:
    """Write `final/`: the model in float16 and its training log (called on every rank)."""
    state_dict = engine.full_state_dict()
    if engine.rank == 0:
        with atomic_directory(Path(settings.run_dir) / "final", BY) as directory:
            save_clip(directory, engine.module, state_dict, batcher.tokenizer, settings.model, torch.float16)
            log = _training_log(settings, batcher) | facts | {"parameters": _count(state_dict)}
            if settings.data.heldout:
                log["heldout"] = _heldout_recall(settings, batcher, state_dict)
            write_json_atomically(directory / "training_log.json", log)


def _count(state_dict: dict[str, torch.Tensor]) -> int:
    return sum(tensor.numel() for name, tensor in state_dict.items() if not name.endswith("position_ids"))


def _training_log(settings: ContrastiveSettings, batcher: PairBatcher) -> dict[str, Any]:
    long = too_long(batcher.tokenizer, [pair.caption for pair in batcher.pairs])
    if long:
        logger.warning("%d captions are longer than %d tokens", long, settings.model.text_length_tokens)
    return {
        "settings": settings.model_dump(mode="json"),
        "pairs_sha256": hash_file(settings.data.pairs),
        "pairs": len(batcher.pairs),
        "truncated_captions": long,
    }


def _heldout_recall(
    settings: ContrastiveSettings, batcher: PairBatcher, state_dict: dict[str, torch.Tensor]
) -> dict[str, float]:
    heldout: list[Pair] = read_pairs(settings.data.heldout or "", settings.data.image_root)
    model: PreTrainedModel = build_dual(settings.model, batcher.tokenizer, False)
    model.load_state_dict(state_dict)  # whole on this rank, whatever the ZeRO stage
    recall = retrieval_recall(model, heldout, batcher)
    logger.info("held-out retrieval: %s", recall)
    return recall
