"""How long a run will take here, from a few of its own micro-batches: `mllm estimate`."""

import time
from dataclasses import dataclass
from pathlib import Path

import torch

from mllm.checkpoint.start import text_config
from mllm.data.dataset import Mixture
from mllm.data.recipe import load_recipe
from mllm.finetune.flops import unit_flops
from mllm.finetune.run import start_model
from mllm.finetune.settings import FinetuneSettings
from mllm.finetune.task import TaskOf, length_multiple, task_of_samples
from mllm.kernels.choice import choose_kernel
from mllm.kernels.precision import cast_parameters
from mllm.model.planning import overlaid
from mllm.model.trainable import apply_policy
from mllm.training.build_engine import keep_freed_memory, with_known_dtype
from mllm.training.loop import total_steps
from mllm.training.resume import latest_checkpoint, read_progress
from mllm.training.task import MicroBatch

TIMED_MICRO_BATCHES = 3


@dataclass(frozen=True)
class Estimate:
    """What is left of a run. tokens_per_second is one rank's, forward and backward, as measured here."""

    run_dir: str
    steps_left: int
    tokens_per_step: int
    tokens_per_second: float

    def seconds(self, ranks: int) -> float:
        """Computation only: communication and saving come on top."""
        if not self.steps_left:
            return 0.0
        return self.steps_left * self.tokens_per_step / (self.tokens_per_second * ranks)


def estimate_runs(runs: list[FinetuneSettings], task_of: TaskOf = task_of_samples) -> list[Estimate]:
    """Estimates of runs that follow each other, where one may begin with the model that an earlier one will write.

    The whole model is put on one device, as at ZeRO 0 to 2, and the first step's micro-batches stand for all. A finished
    run counts as nothing left, a stopped one from its latest checkpoint. Raises UserError for missing files, except an
    model that an earlier run of the list will write.
    """
    estimates = []
    origins: dict[str, FinetuneSettings] = {}
    for run in runs:
        final = Path(run.run_dir) / "final"
        origins[str(final)] = run
        estimates.append(Estimate(run.run_dir, 0, 0, 0.0) if final.is_dir() else _measure(run, origins, task_of))
    return estimates


def _measure(run: FinetuneSettings, origins: dict[str, FinetuneSettings], task_of: TaskOf) -> Estimate:
    dtype, begun = with_known_dtype(run.train).dtype, startable(run, origins)
    kernel = choose_kernel(run.train.attention, dtype, text_config(begun.model))
    model, processor = start_model(begun, kernel)
    apply_policy(model, run.trainable)
    if run.train.gradient_checkpointing:
        model.checkpoint_activations()
    keep_freed_memory()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    cast_parameters(model.train(), torch.bfloat16 if dtype == "bfloat16" else torch.float32)
    model = model.to(device)
    mixture = Mixture(load_recipe(run.data.recipe), run.seed, run.data.group_by_image)
    multiple = length_multiple(model.device)
    task = task_of(run, mixture, processor, unit_flops(model), multiple)
    micro_batches = task.window(0, rank=0, world_size=1).micro_batches
    # The longest come first and the first run pays for warming up, so it is run once more than it counts.
    timed = micro_batches[:TIMED_MICRO_BATCHES]

    def run_once(micro_batch: MicroBatch) -> None:
        with torch.autocast(device, torch.bfloat16, enabled=dtype == "autocast"):
            loss = task.loss(model, micro_batch).loss_sum
        loss.backward()

    run_once(timed[0])
    _await(device)
    started = time.monotonic()
    for micro_batch in timed:
        run_once(micro_batch)
    _await(device)
    took = time.monotonic() - started
    checkpoint = latest_checkpoint(Path(run.run_dir))
    done = read_progress(checkpoint)["step"] if checkpoint is not None else 0
    return Estimate(
        run.run_dir,
        total_steps(task, run.train) - done,
        sum(m.token_count for m in micro_batches),
        sum(m.token_count for m in timed) / took,
    )


def _await(device: str) -> None:
    """Return when the device has done what it was given."""
    if device == "cuda":
        torch.cuda.synchronize()


def startable(run: FinetuneSettings, origins: dict[str, FinetuneSettings]) -> FinetuneSettings:
    """`run`; as long as the model that it begins with isn't written, with the parts of the run that will write it.

    origins: for each `final/` directory, the run that writes it.
    """
    model, words = run.model, run.model.language_model
    if model.init_from is not None and _is_to_come(model.init_from, origins):
        parts = startable(origins[model.init_from], origins).model
        changes: dict[str, object] = {
            "prompt_format": model.prompt_format,
            "image": overlaid(parts.image, model.image),
            "video": overlaid(parts.video, model.video),
        }
        return run.model_copy(update={"model": parts.model_copy(update=changes)})
    if words is not None and _is_to_come(words.path, origins):
        parts = startable(origins[words.path], origins).model
        return run.model_copy(update={"model": model.model_copy(update={"language_model": parts.language_model})})
    return run


def _is_to_come(path: str, origins: dict[str, FinetuneSettings]) -> bool:
    return path in origins and not Path(path).is_dir()
