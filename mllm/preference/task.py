"""Preference tuning as a task of the loop: its targets are pairs, which rows and micro-batches never part.

What is said of the rows of instruction tuning (`mllm.finetune.task`) holds of these, but every rank renders all pairs of a
step: their tokens aren't counted before.
"""

from collections.abc import Sequence

import torch
from torch import nn

from mllm.conversation.schema import Sample
from mllm.data.dataset import Mixture
from mllm.data.example import Example
from mllm.data.packing import Row, pack_bundles
from mllm.finetune.flops import UnitFlops
from mllm.finetune.task import InstructionTask, Skips, deal, layout_number
from mllm.kernels.log_probs import answer_sums
from mllm.preference.damage import Damaging
from mllm.preference.losses import Answers, Scores, pair_losses, rewards
from mllm.preference.pairs import WITHOUT_LESSON, PairBatch, RenderedPair, pair_batch, render_pair
from mllm.preference.reference import Reference
from mllm.preference.reward_mean import RewardMean
from mllm.preference.settings import PreferenceSettings
from mllm.processor import Processor
from mllm.training.task import MicroBatch, StepWindow, TaskOutput


class PreferenceTask(InstructionTask):
    """Pairs of a mixture through a processor into micro-batches, and their loss against a reference."""

    listed_kinds = WITHOUT_LESSON

    def __init__(
        self,
        mixture: Mixture,
        processor: Processor,
        settings: PreferenceSettings,
        reference: Reference,
        costs: UnitFlops | None = None,
        length_multiple: int = 1,
    ) -> None:
        """costs, length_multiple: as `InstructionTask` takes them."""
        objective = settings.preference
        super().__init__(mixture, processor, settings.data, settings.train, costs, length_multiple)
        self.objective, self.reference, self.reward_mean = objective, reference, RewardMean()
        self.has_second_model = objective.needs_reference and objective.reference.kind == "model"
        self._damaging = Damaging(objective.damage, settings.seed) if objective.damages_images else None

    def prepare(self, world_size: int) -> None:
        """Do nothing: pairs are rendered on every rank."""

    def window(self, step: int, rank: int, world_size: int) -> StepWindow:
        skips, refused = self._begun()
        ids, pairs = self.used_in(step, lambda index: self._render(index, refused), skips)
        groups, layout = self.laid_out(pairs, rank, world_size)
        micro_batches = self.pair_batches(groups, pairs, skips, refused)
        known = [self._with_reference(made, group) for made, group in zip(micro_batches, groups, strict=True)]
        return StepWindow(ids, known, tuple(dict.fromkeys(skips.found)), layout)

    def bundle(self, sample: Sample) -> tuple[Example, ...]:
        """The sides of a pair. Raises BadSampleError when it can't be learned from."""
        return render_pair(sample, self.processor, self.data, self._damaging).sides

    def render_all(self, indices: Sequence[int], skips: Skips, refused: dict[str, str]) -> list[RenderedPair]:
        """The pairs of `indices` that can be learned from; refused: is told which images may not be opened, and why."""
        return self.usable(indices, lambda index: self._render(index, refused), skips)[1]

    def laid_out(self, pairs: list[RenderedPair], rank: int, world_size: int) -> tuple[list[list[Row]], int]:
        """The rank's micro-batches as groups of rows, and the number of the layout of all ranks."""
        data = self.data
        bundles = [pair.sides for pair in pairs]
        rows = pack_bundles(bundles, data.packing, data.max_length_tokens, world_size, self.tile_cost)
        return deal(rows, rank, world_size, self.loop.micro_batch_size, self.tile_cost), layout_number(rows)

    def pair_batches(
        self, groups: Sequence[list[Row]], pairs: Sequence[RenderedPair], skips: Skips, refused: dict[str, str]
    ) -> list[MicroBatch]:
        """The micro-batches of groups of rows, in which all of `pairs` stand that are in them."""
        home = {id(side): number for number, pair in enumerate(pairs) for side in pair.sides}
        barred = dict(refused)
        if self._damaging is not None:
            barred |= {self._damaging.reference(path): reason for path, reason in refused.items()}
        made = []
        for group, plain in zip(groups, self.micro_batches(groups, skips, barred), strict=True):
            here = dict.fromkeys(home[id(segment.example)] for row in group for segment in row.segments)
            batch = pair_batch(
                plain.inputs, group, [pairs[number] for number in here], 2 if self._damaging is None else 3
            )
            made.append(MicroBatch(batch, batch.sides.shape[1], plain.token_count, plain.flops))
        return made

    def _begun(self) -> tuple[Skips, dict[str, str]]:
        return Skips(self.data.on_bad_sample == "error", []), {}

    def _render(self, index: int, refused: dict[str, str]) -> RenderedPair:
        sample, leaving = self.mixture.unchecked(index)
        if leaving and self.processor.measures(sample.messages):
            raise sample.bad("image", next(iter(leaving.values())))
        refused.update(leaving)
        return render_pair(sample, self.processor, self.data, self._damaging)

    def _with_reference(self, made: MicroBatch, rows: Sequence[Row]) -> MicroBatch:
        batch = self.reference.known(made.inputs, rows)
        return MicroBatch(batch, made.target_count, made.token_count, made.flops)

    def loss(self, module: nn.Module, micro_batch: MicroBatch) -> TaskOutput:
        pairs: PairBatch = micro_batch.inputs.to(next(module.parameters()).device)
        known = self.reference.log_probs(module, pairs)
        scores = scores_of(module(pairs.rows, by_token=True), known, pairs, self.reward_mean.value)
        return TaskOutput(pair_losses(scores, self.objective).sum().float(), self._sums(scores, pairs))

    def _sums(self, scores: Scores, pairs: PairBatch) -> dict[str, torch.Tensor]:
        """What is logged of each pair, summed."""
        chosen, rejected = (values.detach() for values in rewards(scores, self.objective))
        lengths = pairs.lengths[pairs.sides]
        told = {
            "reward_accuracy": chosen > rejected,
            "reward_margin": chosen - rejected,
            "reward_chosen": chosen,
            "reward_rejected": rejected,
            "chosen_log_prob_gain": scores.chosen.gain.detach(),
            "chosen_tokens": lengths[0],
            "rejected_tokens": lengths[1],
        }
        if scores.damaged is not None:
            told["image_accuracy"] = scores.chosen.log_prob.detach() > scores.damaged.log_prob.detach()
        return {name: values.double().sum() for name, values in told.items()}


def scores_of(
    log_probs: torch.Tensor, reference: torch.Tensor | None, pairs: PairBatch, reward_mean: float = 0.0
) -> Scores:
    """The scores of a batch's pairs from the log-probabilities of its targets, float32 [S], and the reference's of these."""
    counted = pairs.weights * log_probs
    # Differences are taken token by token: those of sums would be lost in rounding.
    gained = counted if reference is None else pairs.weights * (log_probs - reference)
    sums = [answer_sums(values, pairs.lengths)[pairs.sides] for values in (counted, gained, pairs.weights)]
    sides = [Answers(*of_side) for of_side in zip(*sums, strict=True)]
    return Scores(sides[0], sides[1], sides[2] if len(sides) > 2 else None, reward_mean)
