"""The run behind `train/finetune.py`, from settings to a saved model."""

import json
import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from mllm.checkpoint import ours as checkpoint
from mllm.checkpoint.fill import Beginning
from mllm.checkpoint.start import begin_model, text_config
from mllm.data.dataset import Mixture
from mllm.data.recipe import load_recipe
from mllm.errors import UserError
from mllm.files import atomic_directory, link_or_copy, write_text_atomically
from mllm.finetune.flops import unit_flops
from mllm.finetune.heldout import HeldOutLoss
from mllm.finetune.projector_scale import calibrate_projector
from mllm.finetune.settings import FinetuneSettings
from mllm.finetune.task import InstructionTask, length_multiple
from mllm.kernels.choice import KERNEL_NAMES, Kernel, device_at_hand, first_that_works, gpu_capability, usable_kernels
from mllm.kernels.fused_layers import fuse_layers
from mllm.kernels.lean_layers import use_lean_layers
from mllm.model.assemble import parameters_on_meta
from mllm.model.encoders import VisionEncoder
from mllm.model.multimodal import MultimodalLM, checkpoint_activations
from mllm.model.projectors import Projector
from mllm.model.trainable import apply_policy, policy_table, wanted_adapters
from mllm.processor import Processor
from mllm.settings import dump_yaml, load_settings
from mllm.training.build_engine import build_engine, with_known_dtype
from mllm.training.callback import Callback, CallbackFactory, RunContext
from mllm.training.callbacks import LogLine, MetricsFile, ProgressBar
from mllm.training.engine import Engine
from mllm.training.loop import Trainer
from mllm.training.optimizer import part_rates
from mllm.training.peak import device_peak_flops
from mllm.training.picture import CurvesPicture
from mllm.training.resume import BY, latest_checkpoint
from mllm.training.run_settings import begin_run
from mllm.training.trackers import build_trackers

logger = logging.getLogger(__name__)


def load_config(path: str, overrides: Sequence[str] = ()) -> FinetuneSettings:
    """The settings of a YAML file with `a.b=c` overrides applied. Raises UserError naming file, line and key."""
    return load_settings(FinetuneSettings, path, overrides)


def finetune(
    settings: FinetuneSettings, stop_after: int | None = None, more_callbacks: CallbackFactory | None = None
) -> Path | None:
    """Train as `settings` say, resuming from the run's latest checkpoint; returns `final/` once the run is complete.

    The resolved settings are saved first; a run that is finished with the same ones has nothing to do. With `stop_after`,
    the run ends (resumable) when that many steps are done.
    more_callbacks: builds callbacks that training can't know (`mllm.finetune.watching.generating_callbacks`).
    """
    run_dir = Path(settings.run_dir)
    derived = ("train.dtype",) if settings.train.dtype == "auto" else ()
    settings = settings.model_copy(update={"train": with_known_dtype(settings.train)})
    final = run_dir / "final"
    words = text_config(settings.model)
    kernels = usable_kernels(settings.train.attention, settings.train.dtype, gpu_capability(), words)
    if begin_run(settings, run_dir, derived):
        logger.info("%s is already there, of these settings: nothing to do", final)
        return final
    torch.manual_seed(settings.seed)
    mixture = Mixture(load_recipe(settings.data.recipe), settings.seed, settings.data.group_by_image)
    parts: dict[str, Any] = {}

    def build_module() -> MultimodalLM:
        kernel = first_that_works(kernels, words)
        beginning = build_beginning(settings, mixture, kernel)
        model = beginning.model
        parts.update(model=model, processor=beginning.processor, contents=beginning.open_contents)
        with parameters_on_meta():
            counts = apply_policy(model, settings.trainable)
        if settings.train.gradient_checkpointing:
            checkpoint_activations(model)
        logger.info("what learns:\n%s", policy_table(counts, part_rates(settings.optim)))
        return model.train()

    engine = build_engine(build_module, settings.engine, settings.optim, settings.train, lambda: parts["contents"]())
    processor: Processor = parts["processor"]
    _use_one_day(processor, run_dir, engine)
    logger.info("engine: %s; attention: %s", engine.description, KERNEL_NAMES[parts["model"].attention_kernel])
    costs, multiple = unit_flops(parts["model"]), length_multiple(engine.device)
    task = InstructionTask(mixture, processor, settings.data, settings.train, costs, multiple)
    task.prepare(engine.world_size)
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


def build_beginning(
    settings: FinetuneSettings, mixture: Mixture | None = None, attention_kernel: Kernel = "segments"
) -> Beginning:
    """The model that a run begins with, before any weight is read, and its processor: from parts, or its `init_from`.

    A projector that is new is calibrated on images of `mixture`, if the settings say so.
    """
    count = settings.model.projector.calibration_images

    def calibrate(projector: Projector, encoder: VisionEncoder, embeddings: torch.Tensor, processor: Processor) -> None:
        if mixture is not None and count:
            calibrate_projector(projector, encoder, embeddings, processor, mixture, count)

    beginning = begin_model(
        settings.model,
        wanted_adapters(settings.trainable),
        settings.seed,
        calibrate if mixture and count else None,
        attention_kernel,
        settings.train.neftune_alpha,
    )
    use_lean_layers(beginning.model.language_model)
    dtype = torch.float32 if with_known_dtype(settings.train).dtype == "float32" else torch.bfloat16
    fuse_layers(beginning.model.language_model, settings.train.fused_layers, dtype, device_at_hand())
    return beginning


def start_model(settings: FinetuneSettings, attention_kernel: Kernel = "segments") -> tuple[MultimodalLM, Processor]:
    """The model that a run begins with, its projector not calibrated, in float32 on the CPU, and its processor."""
    return build_beginning(settings, attention_kernel=attention_kernel).filled()


def _use_one_day(processor: Processor, run_dir: Path, engine: Engine) -> None:
    """Let prompts that print the date print one: the day that the run began with, the same on all ranks."""
    if processor.day is not None:
        last = latest_checkpoint(run_dir)
        begun = checkpoint.read_day(last / "model") if last else None
        processor.use_day(engine.gather(begun or processor.day)[0])


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
        with atomic_directory(run_dir / "final", BY, is_hashed=False) as directory:
            shutil.copytree(last / "model", directory, copy_function=link_or_copy, dirs_exist_ok=True)
    engine.barrier()


def _list_skipped(run_dir: Path, skipped: dict[str, tuple[str, str]]) -> None:
    lines = [
        json.dumps({"id": sample_id, "kind": kind, "reason": reason}, ensure_ascii=False)
        for sample_id, (kind, reason) in skipped.items()
    ]
    write_text_atomically(run_dir / "skipped.jsonl", "\n".join(lines) + "\n")
    logger.warning("%d sample(s) were skipped or cut; %s lists them", len(skipped), run_dir / "skipped.jsonl")
