"""The run behind `train/contrastive.py`: tokenizer, model, training, held-out retrieval, saved `CLIPModel`."""

import hashlib
import logging
from pathlib import Path
from typing import Any

import torch
from transformers import CLIPModel

from mllm.config import ContrastiveSettings, dump_yaml
from mllm.contrastive.data import PairBatcher, read_pairs
from mllm.contrastive.model import clip_config, image_processor, save_clip
from mllm.contrastive.retrieval import retrieval_recall
from mllm.contrastive.task import ContrastiveTask, initial_logit_scale
from mllm.contrastive.tokenizer import train_tokenizer
from mllm.files import atomic_directory, write_json_atomically, write_text_atomically
from mllm.images.prepare import ImagePreparer
from mllm.training.build_engine import build_engine, with_known_dtype
from mllm.training.callbacks import LogLine, MetricsFile, ProgressBar
from mllm.training.loop import Trainer
from mllm.training.picture import CurvesPicture
from mllm.training.trackers import build_trackers

logger = logging.getLogger(__name__)


def train_clip(settings: ContrastiveSettings) -> Path:
    """Train a CLIP from nothing; returns the directory `final/` of the run, readable by `CLIPModel`."""
    settings = settings.model_copy(update={"train": with_known_dtype(settings.train)})
    run_dir = Path(settings.run_dir)
    write_text_atomically(run_dir / "config.yaml", dump_yaml(settings))
    torch.manual_seed(settings.seed)
    pairs = read_pairs(settings.data.pairs, settings.data.image_root)
    tokenizer = train_tokenizer(
        (pair.caption for pair in pairs), settings.model.vocabulary_size, settings.model.text_length_tokens
    )
    processor = image_processor(settings.model)
    preparer = ImagePreparer(settings.model.image_size_px, tuple(processor.image_mean), tuple(processor.image_std))
    batcher = PairBatcher(pairs, tokenizer, preparer, settings.train.global_batch_size, settings.seed)

    def build_module() -> CLIPModel:
        model = CLIPModel(clip_config(settings.model, tokenizer))
        model.logit_scale.data.fill_(initial_logit_scale())
        return model

    engine = build_engine(build_module, settings.engine, settings.optim, settings.train)

    def write_model(directory: Path, state_dict: dict[str, torch.Tensor]) -> None:
        save_clip(directory, engine.module, state_dict, tokenizer, settings.model)

    callbacks = [
        MetricsFile(run_dir / "metrics.jsonl"),
        *build_trackers(settings.train.trackers, run_dir, settings.model_dump(mode="json")),
        ProgressBar("contrastive"),
        LogLine(settings.train.log_every_steps),
        CurvesPicture(run_dir),
    ]
    trainer = Trainer(ContrastiveTask(batcher), engine, settings.optim, settings.train, run_dir, write_model, callbacks)
    logger.info("%d pairs, %d steps of %d", len(pairs), trainer.total, settings.train.global_batch_size)
    trainer.run()
    with atomic_directory(run_dir / "final") as directory:
        save_clip(directory, engine.module, engine.full_state_dict(), tokenizer, settings.model, torch.float16)
        write_json_atomically(directory / "training_log.json", _training_log(settings, engine.module, batcher, trainer))
    engine.close()
    return run_dir / "final"


def _training_log(settings: ContrastiveSettings, model: Any, batcher: PairBatcher, trainer: Trainer) -> dict[str, Any]:
    log: dict[str, Any] = {
        "command": "python train/contrastive.py --config train/configs/demo_clip.yaml",
        "settings": settings.model_dump(mode="json"),
        "pairs_sha256": hashlib.sha256(Path(settings.data.pairs).read_bytes()).hexdigest(),
        "pairs": len(batcher.pairs),
        "steps": trainer.total,
        "parameters": sum(p.numel() for p in model.parameters()),
    }
    if settings.data.heldout:
        heldout = read_pairs(settings.data.heldout, settings.data.image_root)
        log["heldout"] = retrieval_recall(model, heldout, batcher)
        logger.info("held-out retrieval: %s", log["heldout"])
    return log
