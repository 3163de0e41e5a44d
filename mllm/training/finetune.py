"""The run behind `train/finetune.py`, from settings to a saved model."""

import json
import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from mllm.config import FinetuneSettings, dump_yaml, load_settings
from mllm.data.dataset import Mixture
from mllm.data.recipe import load_recipe
from mllm.errors import UserError
from mllm.files import atomic_directory, link_or_copy, write_text_atomically
from mllm.model import checkpoint
from mllm.model.attention import checkpoint_activations
from mllm.model.build import build
from mllm.model.fused_layers import fuse_layers
from mllm.model.lean_layers import use_lean_layers
from mllm.model.multimodal import MultimodalLM
from mllm.model.policy import apply_policy, policy_table
from mllm.model.rows.choice import KERNEL_NAMES, device_at_hand, first_that_works, gpu_capability, usable_kernels
from mllm.model.skeleton import text_config
from mllm.processor import Processor
from mllm.training.build_engine import build_engine, launched_rank, with_known_dtype
from mllm.training.calibration import calibrate_projector
from mllm.training.callback import Callback, CallbackFactory, RunContext
from mllm.training.callbacks import LogLine, MetricsFile, ProgressBar
from mllm.training.engine import Engine
from mllm.training.flops import unit_flops
from mllm.training.heldout import HeldOutLoss
from mllm.training.instruction import InstructionTask
from mllm.training.loop import Trainer
from mllm.training.optimizer import part_rates
from mllm.training.peak import device_peak_flops
from mllm.training.picture import CurvesPicture
from mllm.training.resume import latest_checkpoint
from mllm.training.trackers import build_trackers

logger = logging.getLogger(__name__)

WATCHING: dict[str, Any] = {
    "train": {
        *("save_every_steps", "save_every_minutes", "keep_checkpoints", "keep_best_by", "best_is"),
        *("log_every_steps", "trackers"),
    },
    "samples": True,
    "eval": True,
    "benchmarks": True,
}


def load_config(path: str, overrides: Sequence[str] = ()) -> FinetuneSettings:
    """The settings of a YAML file with `a.b=c` overrides applied. Raises UserError naming file, line and key."""
    return load_settings(FinetuneSettings, path, overrides)


def finetune(
    settings: FinetuneSettings, stop_after: int | None = None, more_callbacks: CallbackFactory | None = None
) -> Path | None:
    """Train as `settings` say, resuming from the run's latest checkpoint; returns `final/` once the run is complete.

    The resolved settings are saved first. With `stop_after`, the run ends (resumable) when that many steps are done.
    more_callbacks: builds callbacks that training can't know (`mllm.evaluation.callbacks.generating_callbacks`).
    """
    run_dir = Path(settings.run_dir)
    settings = settings.model_copy(update={"train": with_known_dtype(settings.train)})
    final = run_dir / "final"
    if final.is_dir():
        logger.info("%s is already there: nothing to do", final)
        return final
    words = text_config(settings.model)
    kernels = usable_kernels(settings.train.attention, settings.train.dtype, gpu_capability(), words)
    _save_settings(settings, run_dir)
    torch.manual_seed(settings.seed)
    mixture = Mixture(load_recipe(settings.data.recipe), settings.seed, settings.data.group_by_image)
    parts: dict[str, Any] = {}

    def build_module() -> MultimodalLM:
        kernel = first_that_works(kernels, words)
        model, processor = start_model(settings)
        model.attention_kernel = kernel
        parts.update(model=model, processor=processor)
        count = settings.model.projector.calibration_images
        if settings.model.init_from is None and count:
            calibrate_projector(model, processor, mixture, count)
        counts = apply_policy(model, settings.trainable)
        if settings.train.gradient_checkpointing:
            checkpoint_activations(model.language_model)
        model.neftune_alpha = settings.train.neftune_alpha
        logger.info("what learns:\n%s", policy_table(counts, part_rates(settings.optim)))
        return model.train()

    engine = build_engine(build_module, settings.engine, settings.optim, settings.train)
    processor: Processor = parts["processor"]
    logger.info("engine: %s; attention: %s", engine.description, KERNEL_NAMES[parts["model"].attention_kernel])
    task = InstructionTask(mixture, processor, settings.data, settings.train, unit_flops(parts["model"]))
    torch.manual_seed(settings.seed + engine.rank)  # dropout differs from rank to rank

    def write_model(directory: Path, state_dict: dict[str, torch.Tensor]) -> None:
        checkpoint.write(directory, parts["model"], processor, state_dict)
        (directory / "run_config.yaml").write_text(dump_yaml(settings), encoding="utf-8")

    context = RunContext(settings, run_dir, parts["model"], processor, engine)
    callbacks = _callbacks(context, more_callbacks)
    peak = device_peak_flops(engine.device, settings.train.dtype)
    trainer = Trainer(task, engine, settings.optim, settings.train, run_dir, write_model, callbacks, peak)
    logger.info(
        "%d samples an epoch, %d steps of %d", mixture.epoch_length, trainer.total, settings.train.global_batch_size
    )
    try:
        done = trainer.run(stop_after)
        if done == trainer.total:
            _publish_final(engine, run_dir)
    finally:
        if engine.rank == 0 and trainer.skipped:
            _list_skipped(run_dir, trainer.skipped)
    engine.close()
    return final if done == trainer.total else None


def start_model(settings: FinetuneSettings) -> tuple[MultimodalLM, Processor]:
    """The model that a run begins with, and its processor: put together from parts, or its `init_from`."""
    origin = settings.model.init_from
    if origin is None:
        model, processor = build(settings.model, settings.seed)
    else:
        model, processor = checkpoint.load(origin, settings.model.prompt_format, settings.model.image)
    use_lean_layers(model.language_model)
    dtype = torch.float32 if with_known_dtype(settings.train).dtype == "float32" else torch.bfloat16
    fuse_layers(model.language_model, settings.train.fused_layers, dtype, device_at_hand())
    return model, processor


def _save_settings(settings: FinetuneSettings, run_dir: Path) -> None:
    """Write `config.yaml`. Raises UserError when the run has begun with settings that train otherwise."""
    path = run_dir / "config.yaml"
    if launched_rank() != 0:
        return
    if path.is_file() and (run_dir / "checkpoints").is_dir():
        begun = load_config(str(path))
        changed = [
            name for name in FinetuneSettings.model_fields if _training(begun)[name] != _training(settings)[name]
        ]
        if changed:
            raise UserError(
                f"{path} holds other settings ({', '.join(changed)}) and the run has begun; "
                f"use another run_dir, or remove {run_dir}"
            )
    write_text_atomically(path, dump_yaml(settings))


def _training(settings: FinetuneSettings) -> dict[str, Any]:
    """The settings without those that only watch and save: these may change when a run goes on."""
    values = settings.model_dump(exclude=WATCHING)
    return {name: values.get(name) for name in FinetuneSettings.model_fields}


def _callbacks(context: RunContext, more_callbacks: CallbackFactory | None) -> list[Callback]:
    settings, run_dir = context.settings, context.run_dir
    generating = [name for name in ("samples", "benchmarks") if getattr(settings, name) is not None]
    if generating and more_callbacks is None:
        raise UserError(f"{generating[0]}: needs callbacks that generate; start the run by train/finetune.py")
    measuring = [HeldOutLoss(context, settings.eval)] if settings.eval is not None else []
    everywhere = [*measuring, *(more_callbacks(context) if more_callbacks else ())]
    if context.engine.rank != 0:
        return everywhere
    return [
        *everywhere,
        MetricsFile(run_dir / "metrics.jsonl"),
        *build_trackers(settings.train.trackers, run_dir, settings.model_dump(mode="json")),
        ProgressBar(run_dir.name),
        LogLine(settings.train.log_every_steps),
        CurvesPicture(run_dir),
    ]


def _publish_final(engine: Engine, run_dir: Path) -> None:
    """Give the model of the last step's checkpoint the name `final`."""
    last = latest_checkpoint(run_dir)
    if engine.rank == 0 and last is not None:
        with atomic_directory(run_dir / "final") as directory:
            shutil.copytree(last / "model", directory, copy_function=link_or_copy, dirs_exist_ok=True)
    engine.barrier()


def _list_skipped(run_dir: Path, skipped: dict[str, tuple[str, str]]) -> None:
    lines = [
        json.dumps({"id": sample_id, "kind": kind, "reason": reason}, ensure_ascii=False)
        for sample_id, (kind, reason) in skipped.items()
    ]
    write_text_atomically(run_dir / "skipped.jsonl", "\n".join(lines) + "\n")
    logger.warning("%d sample(s) were skipped or cut; %s lists them", len(skipped), run_dir / "skipped.jsonl")
