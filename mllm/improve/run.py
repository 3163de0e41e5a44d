"""The run behind `mllm improve`: sample → verify → select → train → score, round by round.

Each arrow leaves a file, and one whose file is whole isn't gone through again.
"""

import json
import logging
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from mllm.checkpoint.load import load, resolve_dtype
from mllm.data.dataset import Mixture
from mllm.data.recipe import load_recipe
from mllm.errors import UserError
from mllm.evaluation.run import evaluate
from mllm.files import write_json_atomically, write_text_atomically
from mllm.finetune.run import finetune
from mllm.finetune.settings import FinetuneSettings
from mllm.improve.answering import Opened, prompts_of_round, sample_round, verify_round, whole_records
from mllm.improve.report import write_improvement
from mllm.improve.selection import select_round
from mllm.improve.settings import ImproveSettings
from mllm.launch import launched_world_size
from mllm.outputs import check_files
from mllm.preference.run import train_preference
from mllm.preference.settings import PreferenceSettings
from mllm.rewards.asked import Asked, ask
from mllm.rewards.scoring import Rewards
from mllm.settings import dump_yaml, load_settings, read_yaml, validate_settings

logger = logging.getLogger(__name__)

BY = "mllm improve"
CONFIG, REPORT = "config.yaml", "report.html"
# What may change when a run goes on.
OPEN_ENDED = {"rounds", "max_answers", "benchmarks"}


def improve(settings: ImproveSettings) -> Path:
    """Go through the rounds that aren't done, and write the report, whose path is returned.

    Raises UserError for settings other than those that the run began with, for a round that teaches nothing, and for what
    its arrows raise; what was done is kept, and the same call goes on from there.
    """
    if launched_world_size() > 1:
        raise UserError("mllm improve runs in one process: start it without a launcher")
    run_dir = Path(settings.run_dir)
    check_files(run_dir, (CONFIG, REPORT), BY)
    _check_same(settings, run_dir / CONFIG)
    training_values(
        settings, "none", run_dir, run_dir / "recipe.yaml"
    )  # a mistake in it is said before anything is asked
    Rewards(settings.rewards, run_dir / "verdicts").close()
    write_text_atomically(run_dir / CONFIG, dump_yaml(settings), BY)
    mixture = Mixture(load_recipe(settings.prompts.recipe), settings.seed, group_by_image=False)
    model, left = settings.model, settings.max_answers
    _score(settings, model, run_dir / "start")
    done = 0
    for number in range(1, settings.rounds + 1):
        wanted = settings.prompts.count or mixture.epoch_length
        count = wanted if left is None else min(wanted, left // settings.sampling.answers)
        if not count:
            logger.info("round %d: max_answers (%d) are sampled", number, settings.max_answers)
            break
        left = None if left is None else left - count * settings.sampling.answers
        one = Round(settings, mixture, number, prompts_of_round(mixture, (number - 1) * wanted, count), model)
        try:
            model = str(one.finish())
        finally:
            write_improvement(run_dir, settings, done, REPORT, BY)
        done = number
    write_improvement(run_dir, settings, done, REPORT, BY)
    return run_dir / REPORT


def _check_same(settings: ImproveSettings, path: Path) -> None:
    """Raise UserError where the run began with settings that sample, verify, select or train otherwise."""
    if not path.is_file():
        return
    before = load_settings(ImproveSettings, path).model_dump(mode="json", exclude=OPEN_ENDED)
    now = settings.model_dump(mode="json", exclude=OPEN_ENDED)
    changed = [name for name in now if now[name] != before[name]]
    if changed:
        raise UserError(f"{path} holds other settings of {', '.join(changed)}: put them back, or use another run_dir")


@dataclass
class Round:
    """Round `number` (from 1), which begins with `model`; indices: of its prompts. Its files lie in `round_NUMBER/`."""

    settings: ImproveSettings
    mixture: Mixture
    number: int
    indices: list[int]
    model: str

    @property
    def directory(self) -> Path:
        return Path(self.settings.run_dir) / f"round_{self.number}"

    def finish(self) -> Path:
        """Go through what isn't done; returns the directory of the round's model."""
        self.directory.mkdir(parents=True, exist_ok=True)
        final = self.directory / "training" / "final"
        if not (final / "config.json").is_file():
            recipe = self._learnable()
            self.__dict__.pop("_opened", None)  # the model that answered makes room for the one that learns
            final = self._train(recipe)
        _score(self.settings, str(final), self.directory)
        return final

    def _learnable(self) -> Path:
        """The recipe of what is learned in the round."""
        recipe = self.directory / "recipe.yaml"
        if recipe.is_file():
            return recipe
        answers_file, rewards_file = self.directory / "answers.jsonl", self.directory / "rewards.jsonl"
        sample_round(answers_file, self.settings, self.mixture, self.number, self.indices, lambda: self._opened)
        answers = whole_records(answers_file)
        skipped = [record for record in answers if "problem" in record]
        if skipped:
            lines = [json.dumps({"id": r["id"], "reason": r["problem"]}, ensure_ascii=False) for r in skipped]
            write_text_atomically(self.directory / "skipped.jsonl", "\n".join(lines) + "\n", BY)
            logger.warning("round %d: %d prompt(s) can't be asked; skipped.jsonl lists them", self.number, len(skipped))
        verify_round(rewards_file, answers, self._asked, lambda: self._opened[1], self._rewards)
        worth = whole_records(rewards_file)
        return select_round(
            self.directory,
            answers,
            worth,
            lambda place: self.mixture.samples[self.indices[place]],
            self.settings.selection,
            BY,
        )

    @cached_property
    def _opened(self) -> Opened:
        device = "cuda" if torch.cuda.is_available() else "cpu"
        return load(self.model, dtype=resolve_dtype(self.settings.dtype, device), device=device)

    def _asked(self, place: int) -> Asked:
        return ask(self.mixture.samples[self.indices[place]], self._opened[1])

    def _rewards(self) -> Rewards:
        # One place for all rounds, so that no answer is paid for twice.
        return Rewards(self.settings.rewards, Path(self.settings.run_dir) / "verdicts")

    def _train(self, recipe: Path) -> Path:
        run_dir = self.directory / "training"
        values = training_values(self.settings, self.model, run_dir, recipe)
        logger.info("round %d: training in %s", self.number, run_dir)
        final = _trained(values, self.settings.training)
        assert final is not None, "a run without an end that is set comes to its end"
        return final


def training_values(settings: ImproveSettings, model: str, run_dir: Path, recipe: Path) -> dict[str, Any]:
    """The training config's values with what is the round's own. Raises UserError where they are for another way to learn."""
    values = read_yaml(settings.training)
    learns_pairs, wants_pairs = "preference" in values, settings.selection.learn_from == "pairs"
    if learns_pairs != wants_pairs:
        has, mend = ("has", "best") if learns_pairs else ("has no", "pairs")
        other = "pairs" if learns_pairs else "best"
        raise UserError(
            f"training {settings.training} {has} a group `preference`, and selection.learn_from is "
            f"{settings.selection.learn_from}: set selection.learn_from to {other}, or name a config that learns from {mend}"
        )
    values["run_dir"] = str(run_dir)
    values["model"] = {**values.get("model", {}), "init_from": model}
    values["data"] = {**values.get("data", {}), "recipe": str(recipe)}
    _validated(values, settings.training)
    return values


def _validated(values: dict[str, Any], origin: str) -> FinetuneSettings | PreferenceSettings:
    return validate_settings(PreferenceSettings if "preference" in values else FinetuneSettings, values, origin)


def _trained(values: dict[str, Any], origin: str) -> Path | None:
    settings = _validated(values, origin)
    return train_preference(settings) if isinstance(settings, PreferenceSettings) else finetune(settings)


def _score(settings: ImproveSettings, model: str, directory: Path) -> None:
    """Score a model, and write `scores.json` to `directory`; nothing where it is there of the same benchmarks."""
    wanted = settings.benchmarks
    if wanted is None:
        return
    path, asked = directory / "scores.json", wanted.model_dump(mode="json")
    if path.is_file() and json.loads(path.read_text(encoding="utf-8"))["benchmarks"] == asked:
        return
    outcome = evaluate(
        model,
        list(wanted.names),
        wanted.data,
        output=directory / "eval",
        limit=wanted.limit,
        seed=settings.seed,
        batch_size=wanted.batch_size,
        conditions=("model",),
        dtype=settings.dtype,
    )
    scores = {
        name: {"score": s.score, "low": s.low, "high": s.high, "count": s.count}
        for name in outcome.scores
        for s in [outcome[name]]
    }
    write_json_atomically(path, {"benchmarks": asked, "scores": scores}, BY)
