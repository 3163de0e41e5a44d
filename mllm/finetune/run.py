"""The run behind `train/finetune.py`, from settings to a saved model."""

import logging
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mllm.checkpoint.fill import Beginning, Place, fill
from mllm.checkpoint.start import begin_model, text_config
from mllm.checkpoint.write import read_day, write_directory
from mllm.data.dataset import Mixture
from mllm.data.recipe import load_recipe
from mllm.finetune.calibration import calibrate_projector
from mllm.finetune.flops import unit_flops
from mllm.finetune.settings import FinetuneSettings
from mllm.finetune.task import InstructionTask, length_multiple
from mllm.finetune.watching import HeldOutLoss, RunContext, SampleAnswers
from mllm.kernels.choice import (
    KERNEL_NAMES,
    Kernel,
    device_at_hand,
    first_that_works,
    gpu_capability,
    usable_kernels,
)
from mllm.kernels.fused_layers import fuse_layers
from mllm.kernels.lean_layers import use_lean_layers
from mllm.model.assemble import parameters_on_meta
from mllm.model.encoders import VisionEncoder
from mllm.model.fused_encoder import FusedEncoder
from mllm.model.interface import PARTS, VisionLanguageModel
from mllm.model.projectors import Projector
from mllm.model.trainable import apply_policy, idle_modules, policy_table, wanted_adapters
from mllm.processor import Processor
from mllm.settings import dump_yaml, load_settings
from mllm.training.build_engine import start_engine, with_known_dtype
from mllm.training.callbacks import Callback
from mllm.training.engine import Engine, Fill
from mllm.training.gpus import device_peak_flops
from mllm.training.loop import Trainer
from mllm.training.optimizer import PartOf, Rated, part_rate
from mllm.training.resume import latest_checkpoint
from mllm.training.run import begin_run, complete, recorders

logger = logging.getLogger(__name__)


def load_config(path: str, overrides: Sequence[str] = ()) -> FinetuneSettings:
    """The settings of a YAML file with `a.b=c` overrides applied. Raises UserError naming file, line and key."""
    return load_settings(FinetuneSettings, path, overrides)


MakeTask = Callable[[RunContext, Mixture], tuple[InstructionTask, Sequence[Callback]]]


def instruction_task(context: RunContext, mixture: Mixture) -> tuple[InstructionTask, Sequence[Callback]]:
    """The task of learning the answers of a mixture, which has no callbacks of its own."""
    settings, multiple = context.settings, length_multiple(context.engine.device)
    costs = unit_flops(context.model)
    return InstructionTask(mixture, context.processor, settings.data, settings.train, costs, multiple), ()


def finetune(
    settings: FinetuneSettings,
    stop_after: int | None = None,
    callbacks: Sequence[Callback] = (),
    make_task: MakeTask = instruction_task,
) -> Path | None:
    """Train as `settings` say, resuming from the run's latest checkpoint; returns `final/` once the run is complete.

    The resolved settings are saved first; a run that is finished with the same ones has nothing to do. With `stop_after`,
    the run ends (resumable) when that many steps are done. callbacks: further ones, the same on every rank. make_task: what
    is learned of the samples, and the callbacks that belong to it.
    """
    run_dir, train = Path(settings.run_dir), with_known_dtype(settings.train)
    derived = ("train.dtype",) if settings.train.dtype == "auto" else ()
    settings = settings.model_copy(update={"train": train})
    words = text_config(settings.model)
    kernels = usable_kernels(train.attention, train.dtype, gpu_capability(), words)
    if begin_run(settings, run_dir, derived):
        return run_dir / "final"

    torch.manual_seed(settings.seed)
    mixture = Mixture(load_recipe(settings.data.recipe), settings.seed, settings.data.group_by_image)

    wrap = start_engine(settings.engine, settings.optim, train)
    beginning = _begin_learning(settings, mixture, first_that_works(kernels, words))
    model, processor = beginning.model, beginning.processor

    part_of = parts_by_name(model, settings.optim.layer_decay_vision_encoder)
    engine = wrap(model.train(), filling(beginning), part_of)
    _use_one_day(processor, run_dir, engine)
    logger.info("engine: %s; attention: %s", engine.description, KERNEL_NAMES[model.attention_kernel])

    context = RunContext(settings, run_dir, model, processor, engine)
    task, own = make_task(context, mixture)
    task.prepare(engine.world_size)
    torch.manual_seed(settings.seed + engine.rank)  # dropout differs from rank to rank

    everything = [*own, *watchers(context), *callbacks, *recorders(settings, train, run_dir, engine)]
    peak_flops = device_peak_flops(engine.device, train.dtype)
    write = partial(write_model, model, processor, settings)
    trainer = Trainer(task, engine, settings.optim, train, run_dir, write, everything, peak_flops)
    logger.info("%d samples an epoch, %d steps of %d", mixture.epoch_length, trainer.total, train.global_batch_size)
    return complete(trainer, stop_after)


def _begin_learning(settings: FinetuneSettings, mixture: Mixture, kernel: Kernel) -> Beginning:
    """The model that a run begins with, told what learns and how; the log says it. kernel: computes attention."""
    beginning = build_beginning(settings, mixture, kernel)
    model = beginning.model
    with parameters_on_meta():
        counts = apply_policy(model, settings.trainable)
    if settings.train.gradient_checkpointing:
        model.checkpoint_activations()
    rates = {part: part_rate(settings.optim, part) for part in PARTS}
    logger.info("what learns:\n%s", policy_table(counts, rates))
    if idle := idle_modules(model, settings.trainable):
        logger.info("no feature depends on these of the encoder, so they stay as they are: %s", ", ".join(idle))
    if (decay := settings.optim.layer_decay_vision_encoder) != 1.0:
        logger.info("a layer of the encoder learns at %g of the rate of the one behind it", decay)
    return beginning


def build_beginning(
    settings: FinetuneSettings, mixture: Mixture | None = None, attention_kernel: Kernel = "segments"
) -> Beginning:
    """The model that a run begins with, before any weight is read, and its processor: from parts, or its `init_from`.

    A projector that is new is calibrated on images of `mixture`, if the settings say so.
    """
    count = settings.model.projector.calibration_images

    def calibrate(
        projector: Projector, encoder: VisionEncoder | FusedEncoder, embeddings: torch.Tensor, processor: Processor
    ) -> None:
        if mixture is not None and count:
            calibrate_projector(projector, encoder, embeddings, processor, mixture, settings.model.projector)

    beginning = begin_model(
        settings.model,
        wanted_adapters(settings.trainable),
        settings.seed,
        calibrate if mixture and count else None,
        attention_kernel,
        settings.train.neftune_alpha,
    )
    beginning.model.tiles_together = settings.train.tiles_together
    decoder = beginning.model.adapted_module("language_model")
    use_lean_layers(decoder)
    dtype = torch.float32 if with_known_dtype(settings.train).dtype == "float32" else torch.bfloat16
    fuse_layers(decoder, settings.train.fused_layers, dtype, device_at_hand())
    return beginning


def start_model(
    settings: FinetuneSettings, attention_kernel: Kernel = "segments"
) -> tuple[VisionLanguageModel, Processor]:
    """The model that a run begins with, its projector not calibrated, in float32 on the CPU, and its processor."""
    return build_beginning(settings, attention_kernel=attention_kernel).filled()


def _use_one_day(processor: Processor, run_dir: Path, engine: Engine) -> None:
    """Let prompts that print the date print one: the day that the run began with, the same on all ranks."""
    if processor.day is not None:
        last = latest_checkpoint(run_dir)
        begun = read_day(last / "model") if last else None
        processor.use_day(engine.gather(begun or processor.day)[0])


def filling(beginning: Beginning) -> Fill:
    """What gives the model of `beginning` its contents, where an engine wants them."""

    def fill_there(module: nn.Module, dtype: torch.dtype, *place: Any, **named: Any) -> None:
        fill(module, beginning.open_contents, dtype, Place(*place, **named))

    return fill_there


def parts_by_name(model: VisionLanguageModel, layer_decay: float = 1.0) -> PartOf:
    """The part that a parameter is rated by: token_embeddings, or the part that it is of.

    layer_decay: `optim.layer_decay_vision_encoder`, which makes of the encoder's rate that of each of its layers.
    """
    embeddings = {id(parameter) for parameter in model.token_embeddings()}
    names = {name for name, parameter in model.named_parameters() if id(parameter) in embeddings}

    def part_of(name: str) -> Rated:
        if name in names:
            return Rated("token_embeddings")
        part = model.part_of(name)
        is_layered = part == "vision_encoder" and layer_decay != 1.0
        return Rated(part, layer_decay ** model.encoder_height_of(name)) if is_layered else Rated(part)

    return part_of


def watchers(context: RunContext) -> list[Callback]:
    """The callbacks that measure what the run's settings ask for, on every rank."""
    asked, found = context.settings, list[Callback]()
    if asked.eval is not None:
        found.append(HeldOutLoss.of_samples(context, asked.eval))
    if asked.samples is not None:
        found.append(SampleAnswers(context, asked.samples))
    if asked.benchmarks is not None:
        # Imported where it is used: evaluation takes seconds to import.
        from mllm.finetune.benchmark_scores import BenchmarkScores

        found.append(BenchmarkScores(context, asked.benchmarks))
    return found


def write_model(
    model: VisionLanguageModel,
    processor: Processor,
    settings: FinetuneSettings,
    directory: Path,
    state_dict: dict[str, torch.Tensor],
) -> None:
    """Write a model directory with weights of `state_dict`, and the settings of the run that it is of."""
    write_directory(directory, model, processor, state_dict)
    (directory / "run_config.yaml").write_text(dump_yaml(settings), encoding="utf-8")
