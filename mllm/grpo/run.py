"""The run behind `train/grpo.py`: a model that learns from the rewards of its own answers."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mllm.data.dataset import Mixture
from mllm.finetune.run import finetune
from mllm.finetune.watching import RunContext, forget_later_lines
from mllm.grpo.objective import deviation, is_flat
from mllm.grpo.rounds import Group
from mllm.grpo.settings import GrpoSettings
from mllm.grpo.task import GrpoTask, Round, state_of
from mllm.rewards.scoring import Rewards
from mllm.training.callbacks import Callback


def learn_from_rewards(settings: GrpoSettings, stop_after: int | None = None) -> Path | None:
    """Train as `settings` say; see `mllm.finetune.run.finetune`. Raises UserError for rewards that can't be had."""

    def make_task(context: RunContext, mixture: Mixture) -> tuple[GrpoTask, Sequence[Callback]]:
        run_dir, rank = Path(settings.run_dir), context.engine.rank
        rewards = Rewards(settings.rewards, run_dir / "verdicts" / str(rank))
        task = GrpoTask(context, settings, mixture, rewards)
        return task, (RoundFigures(task, run_dir / "answers.jsonl", rank == 0),)

    return finetune(settings, stop_after, make_task=make_task)


class RoundFigures(Callback):
    """What came of the answers that a step learned from, as metrics and as lines of `answers.jsonl`; and of a round that
    several steps learn from, what a checkpoint has to hold."""

    def __init__(self, task: GrpoTask, path: Path, writes: bool) -> None:
        self._task, self._path, self._writes = task, path, writes
        parts = tuple(f"reward/{title}" for title in task.rewards.titles)
        self.measures = (
            "reward",
            "reward_std",
            *parts,
            "flat_groups",
            "cut_answers",
            "answer_tokens",
            "failed_rewards",
        )

    def on_start(self, step: int, total_steps: int) -> None:
        if self._writes:
            forget_later_lines(self._path, step)

    def measure(self, step: int) -> Mapping[str, float | str]:
        told = self._task.round
        assert told is not None, "a step has its answers"
        if self._writes and (step - 1) % self._task.settings.objective.updates == 0:
            with open(self._path, "a", encoding="utf-8") as file:
                file.write("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in _lines(step, told)))
        return _figures(told.groups, self._task.rewards)

    def on_end(self, step: int) -> None:
        self._task.rewards.close()

    def state(self) -> dict[str, Any]:
        return state_of(self._task)

    def restore(self, state: Mapping[str, Any]) -> None:
        if state:
            groups = [Group.of_record(record) for record in state["groups"]]
            self._task.restore(state["number"], groups, {})

    def state_dict(self) -> dict[str, Any]:
        return {str(place): log_probs for place, log_probs in self._task.old.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._task.old = {int(place): log_probs for place, log_probs in state.items()}


def _lines(step: int, told: Round) -> list[dict[str, Any]]:
    """The answers of a round, a line a prompt."""
    return [
        {
            "step": step,
            "id": told.asked[group.number].sample_id,
            "question": told.asked[group.number].asked_messages[-1].text,
            "tries": group.tries,
            "answers": [
                {"text": answer.text, "reward": answer.reward, "parts": answer.parts, "cut": answer.is_cut}
                for answer in group.answers
            ],
        }
        for group in told.groups
    ]


def _figures(groups: Sequence[Group], rewards: Rewards) -> dict[str, float | str]:
    answers = [answer for group in groups for answer in group.answers]
    known = [answer.reward for answer in answers if answer.reward is not None]
    figures: dict[str, float | str] = {}
    if known:
        figures |= {"reward": math.fsum(known) / len(known), "reward_std": deviation(known)}
    for title in rewards.titles:
        own = [value for answer in answers if (value := answer.parts[title]) is not None]
        if own:
            figures[f"reward/{title}"] = math.fsum(own) / len(own)
    return figures | {
        "flat_groups": sum(is_flat(group.rewards) for group in groups) / len(groups),
        "cut_answers": sum(answer.is_cut for answer in answers) / len(answers),
        "answer_tokens": sum(len(answer.token_ids) for answer in answers) / len(answers),
        "failed_rewards": float(rewards.failed),
    }
