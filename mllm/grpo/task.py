"""Learning from the rewards of one's own answers as a task of the loop.

A step's prompts are fixed by (seed, step); its answers follow from these and the weights. Answers to a prompt are branches on
one trunk, so that the prompt and its images are computed once. S tokens of answers.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from mllm.batch import Batch
from mllm.conversation.tokenize import Tokens
from mllm.data.dataset import Mixture
from mllm.data.example import Example, uncut_spans
from mllm.data.packing import Row, pack_bundles
from mllm.data.settings import Packing
from mllm.errors import BadSampleError, UserError
from mllm.finetune.flops import unit_flops
from mllm.finetune.task import InstructionTask, Skips, deal, layout_number, length_multiple
from mllm.finetune.watching import RunContext, ranks_in_step
from mllm.grpo.objective import advantages, count_of, token_losses, token_weight
from mllm.grpo.rounds import Group, Sampler, bad_sample
from mllm.grpo.served import publish
from mllm.grpo.settings import GrpoSettings
from mllm.model.lora import without_updates
from mllm.model.multimodal import is_partitioned
from mllm.preference.reference import refuse_updates_that_go_on, second_model, told_by
from mllm.rewards.asked import Asked, ask
from mllm.rewards.scoring import Rewards
from mllm.training.task import MicroBatch, StepWindow, TaskOutput


@dataclass(frozen=True)
class AnswerExample(Example):
    """An answer to be learned from. place_in_step: its number among all of the step; weight: of each of its tokens."""

    place_in_step: int = 0
    advantage: float = 0.0
    weight: float = 0.0


@dataclass(frozen=True)
class AnswerBatch:
    """A batch, and of each of its targets the advantage, the weight and, unless they are those of now, the log-probability
    that it was sampled with, float32 [S]. owners: (place in step, tokens) of each answer, in order."""

    rows: Batch
    advantages: torch.Tensor
    weights: torch.Tensor
    old: torch.Tensor | None
    owners: tuple[tuple[int, int], ...]

    def to(self, device: torch.device) -> "AnswerBatch":
        return self._with(self.rows.to(device), [tensor.to(device, non_blocking=True) for tensor in self._own()])

    def pin_memory(self) -> "AnswerBatch":
        return self._with(self.rows.pin_memory(), [tensor.pin_memory() for tensor in self._own()])

    def tensors(self) -> list[torch.Tensor]:
        return [*self.rows.tensors(), *self._own()]

    def _own(self) -> list[torch.Tensor]:
        return [self.advantages, self.weights, *([] if self.old is None else [self.old])]

    def _with(self, rows: Batch, own: Sequence[torch.Tensor]) -> "AnswerBatch":
        return AnswerBatch(rows, own[0], own[1], own[2] if len(own) > 2 else None, self.owners)


@dataclass(frozen=True)
class Round:
    """What the answers of one sampling are: the steps number·updates to before (number + 1)·updates learn from it."""

    number: int
    ids: tuple[str, ...]
    asked: tuple[Asked, ...]
    groups: tuple[Group, ...]
    skipped: tuple[tuple[str, str, str], ...]


class GrpoTask(InstructionTask):
    """Prompts of a mixture are answered with the model as it is, and the answers become rows that it learns from."""

    depends_on_weights = True

    def __init__(self, context: RunContext, settings: GrpoSettings, mixture: Mixture, rewards: Rewards) -> None:
        costs, multiple = unit_flops(context.model), length_multiple(context.engine.device)
        super().__init__(mixture, context.processor, settings.data, settings.train, costs, multiple)
        self.settings, self.rewards = settings, rewards
        self.round: Round | None = None
        self.old: dict[int, torch.Tensor] = {}
        self.context = context
        self._reference = _reference_of(settings, context)
        self._sampler = Sampler(context.model, context.processor, rewards, settings)

    @property
    def steps_per_epoch(self) -> int:
        return self._rounds_per_epoch * self.settings.objective.updates

    @property
    def _rounds_per_epoch(self) -> int:
        return math.ceil(self.mixture.epoch_length / self.loop.global_batch_size)

    def sample_indices(self, step: int) -> list[int]:
        """Indices of the prompts of a step; `updates` steps have the same."""
        epoch, index = divmod(step // self.settings.objective.updates, self._rounds_per_epoch)
        if self._order[0] != epoch:
            self._order = (epoch, self._epoch_order(epoch))
        size = self.loop.global_batch_size
        return self._order[1][index * size : (index + 1) * size]

    def prepare(self, world_size: int) -> None:
        """Nothing is counted ahead: answers have no length yet."""

    def window(self, step: int, rank: int, world_size: int) -> StepWindow:
        number = step // self.settings.objective.updates
        if self.round is None or self.round.number != number:
            self.round, self.old = self._sampled(number, rank, world_size), {}
        skips = Skips(self.data.on_bad_sample == "error", list(self.round.skipped))
        bundles: list[list[Example]] = self.examples(self.round)
        packing: Packing = "none" if self.data.packing == "none" else "shared_prefix"
        rows = pack_bundles(bundles, packing, self.data.max_length_tokens, world_size, self.tile_cost)
        dealt = deal(rows, rank, world_size, self.loop.micro_batch_size, self.tile_cost)
        micro_batches = [
            self._with_figures(group, micro_batch)
            for group, micro_batch in zip(dealt, self.micro_batches(dealt, skips), strict=True)
        ]
        if rank == 0 and not any(isinstance(e, AnswerExample) and e.weight for bundle in bundles for e in bundle):
            # All answers were cut and are masked: a sum of zeros, over 1.
            micro_batches[0] = replace(micro_batches[0], target_count=1)
        return StepWindow(self.round.ids, micro_batches, tuple(dict.fromkeys(skips.found)), layout_number(rows))

    def _sampled(self, number: int, rank: int, world_size: int) -> Round:
        """The round of that number. Each rank answers its share of the prompts, and all ranks are told all answers."""
        skips = Skips(self.data.on_bad_sample == "error", [])
        ids, asked = self.used_in(number * self.settings.objective.updates, self._asked, skips)
        engine, model = self.context.engine, self.context.model
        # Where the weights are spread over ranks, all of them have to compute alike, and rank 0's answers count.
        together = is_partitioned(engine.module) and self.settings.rollouts is None
        share = slice(0, None) if together else slice(rank, None, world_size)
        if self.settings.rollouts is not None:
            publish(self.context, self.settings.rollouts)
        try:
            with engine.autocast(), ranks_in_step(model):
                own = self._sampler.round(number, list(enumerate(asked))[share])
        finally:
            model.train()
        gathered = engine.gather(own)
        groups = gathered[0] if together else [group for part in gathered for group in part]
        return self._usable_round(number, ids, asked, sorted(groups, key=lambda group: group.number), skips)

    def _usable_round(
        self, number: int, ids: tuple[str, ...], asked: Sequence[Asked], groups: Sequence[Group], skips: Skips
    ) -> Round:
        kept = []
        for group in groups:
            error = bad_sample(group, asked[group.number])
            if error is None:
                kept.append(group)
            else:
                skips(error)
        if not kept:
            raise UserError(f"step {number + 1}: none of its {len(ids)} prompts could be answered; see skipped.jsonl")
        return Round(number, ids, tuple(asked), tuple(kept), tuple(skips.found))

    def _asked(self, index: int) -> Asked:
        sample, leaving = self.mixture.unchecked(index)
        if leaving:
            raise sample.bad("image", next(iter(leaving.values())))
        asked = ask(sample, self.processor)
        longest = asked.length + self.settings.sampling.max_new_tokens
        if longest > self.data.max_length_tokens:
            reason = (
                f"its prompt of {asked.length} tokens and an answer of sampling.max_new_tokens may be {longest} tokens long, "
                f"data.max_length_tokens is {self.data.max_length_tokens}; raise it, or set data.on_too_long to drop"
            )
            raise BadSampleError(sample.id, "too_long", reason, sample.place)
        return asked

    def restore(self, number: int, groups: Sequence[Group], old: Mapping[int, torch.Tensor]) -> None:
        """Go on with the round that a checkpoint was written in."""
        skips = Skips(self.data.on_bad_sample == "error", [])
        ids, asked = self.used_in(number * self.settings.objective.updates, self._asked, skips)
        self.round = self._usable_round(number, ids, asked, groups, skips)
        self.old = dict(old)

    def examples(self, told: Round) -> list[list[Example]]:
        """For each prompt its answers, with what their tokens count."""
        objective, sampling = self.settings.objective, self.settings.sampling
        worth = advantages([group.rewards for group in told.groups], objective.scale)
        bundles = []
        for group, own in zip(told.groups, worth, strict=True):
            asked, examples = told.asked[group.number], list[Example]()
            for place, (answer, advantage) in enumerate(zip(group.answers, own, strict=True)):
                is_masked = answer.is_cut and objective.masks_cut_answers
                weight = token_weight(objective.normalization, len(answer.token_ids), sampling.max_new_tokens)
                tokens = answered(asked.prompt.tokens, answer.token_ids)
                examples.append(
                    AnswerExample(
                        f"{asked.sample_id}/{place}",
                        tokens,
                        asked.sample.images,
                        place=asked.sample.place,
                        uncut=uncut_spans(self.processor, tokens),
                        place_in_step=group.number * sampling.answers + place,
                        advantage=advantage,
                        weight=0.0 if is_masked else weight,
                    )
                )
            bundles.append(examples)
        return bundles

    def _with_figures(self, rows: Sequence[Row[Any]], micro_batch: MicroBatch) -> MicroBatch:
        """The micro-batch of `rows` with what its targets count; they stand in the order of rows and segments."""
        told: list[tuple[AnswerExample, int]] = []
        for segment in (segment for row in rows for segment in row.segments):
            count = sum(segment.example.tokens.supervised[segment.start + 1 : segment.stop])
            if count:
                assert isinstance(segment.example, AnswerExample)
                told.append((segment.example, count))
        repeats = torch.tensor([count for _, count in told], dtype=torch.int64)

        def each(values: Sequence[float]) -> torch.Tensor:
            return torch.tensor(values, dtype=torch.float32).repeat_interleave(repeats)

        old = [self.old[example.place_in_step] for example, _ in told] if self.old else None
        batch: Batch = micro_batch.inputs
        inputs = AnswerBatch(
            batch,
            each([example.advantage for example, _ in told]),
            each([example.weight for example, _ in told]),
            None if old is None else torch.cat([torch.zeros(0), *old]),
            tuple((example.place_in_step, count) for example, count in told),
        )
        if len(inputs.weights) != batch.target_count:
            raise UserError("an image of a prompt became unreadable while its answers were learned; run again to go on")
        tokens = sum(count for example, count in told if example.weight)
        count = count_of(self.settings.objective.normalization, len(told), tokens)
        return replace(micro_batch, inputs=inputs, target_count=count)

    def loss(self, module: nn.Module, micro_batch: MicroBatch) -> TaskOutput:
        """The loss sum, the share of tokens whose ratio was clipped, and the divergence where it is measured."""
        objective = self.settings.objective
        inputs: AnswerBatch = micro_batch.inputs.to(next(module.parameters()).device)
        # First, so that no adapter is off between the policy's forward and its backward.
        reference = self._reference_log_probs(module, inputs.rows) if objective.kl else None
        log_probs = module(inputs.rows, by_token=True, temperature=self.settings.sampling.temperature)
        old = log_probs.detach() if inputs.old is None else inputs.old
        if objective.updates > 1 and inputs.old is None:
            parts = log_probs.detach().cpu().split([count for _, count in inputs.owners])
            self.old |= {place: part.clone() for (place, _), part in zip(inputs.owners, parts, strict=True)}
        high = objective.epsilon if objective.epsilon_high is None else objective.epsilon_high
        found = token_losses(log_probs, old, inputs.advantages, reference, objective.epsilon, high, objective.kl)
        sums = {"clipped": (found.clipped * inputs.weights).sum()}
        if objective.kl:
            sums["kl"] = (found.divergence * inputs.weights).sum()
        return TaskOutput((found.loss * inputs.weights).sum(), {n: value.detach() for n, value in sums.items()})

    def _reference_log_probs(self, module: nn.Module, rows: Batch) -> torch.Tensor:
        """float32 [S], without a gradient."""
        if self._reference is not None:
            return told_by(self._reference, rows, self.settings.sampling.temperature)
        with without_updates(module):
            return told_by(module, rows, self.settings.sampling.temperature)


def _reference_of(settings: GrpoSettings, context: RunContext) -> nn.Module | None:
    """The model that the divergence is measured from; None for the one that learns without its updates, or where none is.

    Raises UserError for a model that isn't the one it would stand for.
    """
    if not settings.objective.kl:
        return None
    if settings.objective.reference is None:
        refuse_updates_that_go_on(context)
        return None
    return second_model(context, settings.objective.reference).model


def answered(prompt: Tokens, token_ids: Sequence[int]) -> Tokens:
    """The tokens of a prompt with those of an answer behind them, as it was sampled: only these are learned from."""
    return Tokens(
        (*prompt.input_ids, *token_ids),
        (False,) * len(prompt.input_ids) + (True,) * len(token_ids),
        prompt.image_spans,
        prompt.visuals,
    )


def state_of(task: GrpoTask) -> dict[str, Any]:
    """What a checkpoint in the middle of a round has to hold of it, as JSON."""
    told = task.round
    if told is None or task.settings.objective.updates == 1:
        return {}
    return {"number": told.number, "groups": [group.as_record() for group in told.groups]}
