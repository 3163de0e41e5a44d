"""The run behind `train/preference.py`: that of `mllm.finetune.run`, which is given pairs and a reference to learn from."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from mllm.data.dataset import Mixture
from mllm.errors import UserError
from mllm.finetune.flops import UnitFlops, unit_flops
from mllm.finetune.run import finetune
from mllm.finetune.settings import FinetuneSettings
from mllm.finetune.task import InstructionTask, length_multiple, task_of_samples
from mllm.finetune.watching import HeldOutLoss, RunContext, held_out_mixture
from mllm.preference.cache import AnswerKeys
from mllm.preference.cached import CachedReference, ReferencePass
from mllm.preference.reference import (
    NoReference,
    Reference,
    WithoutUpdates,
    refuse_updates_that_go_on,
    second_model,
)
from mllm.preference.settings import PreferenceSettings
from mllm.preference.task import PreferenceTask
from mllm.processor import Processor
from mllm.training.callbacks import Callback

CACHE = "reference.safetensors"


def train_preference(
    settings: PreferenceSettings, stop_after: int | None = None, callbacks: Sequence[Callback] = ()
) -> Path | None:
    """Learn from pairs as `settings` say: `finetune` of them, with the same ways to stop, resume and end."""
    if settings.model.projector.calibration_images and settings.model.init_from is None:
        raise UserError(
            "model.projector.calibration_images is for a new projector, and pairs teach a model that has answers: train "
            "it first, and begin with it (model.init_from)"
        )
    return finetune(settings, stop_after, callbacks, preference_task)


def preference_task(context: RunContext, mixture: Mixture) -> tuple[PreferenceTask, Sequence[Callback]]:
    """The task of learning from the pairs of a mixture, and the callbacks that it needs."""
    settings = context.settings
    assert isinstance(settings, PreferenceSettings)
    reference = build_reference(settings, context)
    multiple = length_multiple(context.engine.device)
    task = PreferenceTask(mixture, context.processor, settings, reference, unit_flops(context.model), multiple)
    own: list[Callback] = [task.reward_mean]
    epochs_of = [(task, settings.train.epochs)]
    if settings.eval_pairs is not None:
        mixture = held_out_mixture(settings, settings.eval_pairs)
        heldout = PreferenceTask(mixture, context.processor, settings, reference, length_multiple=multiple)
        heldout.reward_mean = task.reward_mean
        epochs_of.append((heldout, 1.0))
        own.append(HeldOutPairs(context.engine, heldout, settings.eval_pairs.every_steps))
    if isinstance(reference, CachedReference):
        own.append(ReferencePass(epochs_of, reference, context.engine))
    return task, own


class HeldOutPairs(HeldOutLoss):
    """The mean loss of a recipe's pairs, the share whose chosen answer gained more, and by how much."""

    told: Mapping[str, str] = {
        "heldout_pair_loss": "loss",
        "heldout_reward_accuracy": "reward_accuracy",
        "heldout_reward_margin": "reward_margin",
    }
    measures = tuple(told)


def foreseen_task(
    run: FinetuneSettings, mixture: Mixture, processor: Processor, costs: UnitFlops | None, length_multiple: int
) -> InstructionTask:
    """The task of a run of samples or pairs that isn't there yet; a reference in the step is computed by the model itself."""
    if not isinstance(run, PreferenceSettings):
        return task_of_samples(run, mixture, processor, costs, length_multiple)
    is_in_step = run.preference.needs_reference and run.preference.reference.kind != "cached"
    reference = WithoutUpdates() if is_in_step else NoReference()
    return PreferenceTask(mixture, processor, run, reference, costs, length_multiple)


def build_reference(settings: PreferenceSettings, context: RunContext) -> Reference:
    """What the settings compare with. Raises UserError for a model that isn't the one it would stand for."""
    objective, asked = settings.preference, settings.preference.reference
    if not objective.needs_reference:
        return NoReference()
    if asked.kind == "adapters_off":
        refuse_updates_that_go_on(context)
        return WithoutUpdates()
    if asked.kind == "model":
        return second_model(context, asked.model)
    path = Path(asked.cache) if asked.cache else context.run_dir / CACHE
    return CachedReference(path, AnswerKeys(context.processor))
