"""The run behind `mllm calibrate MODEL --benchmarks …`: ask, split by image, fit, and say what it was worth on the rest."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np

from mllm.errors import UserError
from mllm.evaluation.asking import AnswerLog, Subject, answer_all
from mllm.evaluation.benchmarks import metric_of
from mllm.evaluation.compare import MODEL
from mllm.evaluation.conformal import SetKind, aps_scores, conformal_threshold, lac_scores
from mllm.evaluation.fitting import fit_isotonic, fit_platt, fit_temperature
from mllm.evaluation.medium import source_hash
from mllm.evaluation.plan import Setup, questions_of_plan
from mllm.evaluation.reliability import BY, Figures, figures, is_judged, judge, raw_confidence
from mllm.evaluation.results import ASKED
from mllm.evaluation.scoring import Answer, score_plan
from mllm.files import write_text_atomically
from mllm.inference.confidence import Calibration, Choices, Isotonic, OptionSets, Platt
from mllm.outputs import check_file, check_files

logger = logging.getLogger(__name__)

Method = Literal["platt", "isotonic"]
METHODS: tuple[Method, ...] = ("platt", "isotonic")
FEWEST_GROUPS = 10
FIT, SETS, TEST = range(3)
SHARES = (0.25, 0.25, 0.5)
_KINDS: tuple[SetKind, ...] = ("lac", "aps")


@dataclass(frozen=True)
class Wish:
    """What is fitted: `method` of free answers, and sets of options that hold the true one with 1 − alpha."""

    method: Method = "platt"
    alpha: float = 0.1


@dataclass(frozen=True)
class Known:
    """One answer to a benchmark, its part of the split, and the index of the true option where it was a choice of one."""

    benchmark: str
    answer: Answer
    part: int
    true: int | None

    def by(self, calibration: Calibration) -> float | None:
        """How sure it is by what was fitted; None where nothing was for its kind."""
        return calibration.confidence(self.answer.logprob, self.answer.option_logprobs)

    @property
    def raw(self) -> float:
        assert self.answer.logprob is not None
        return raw_confidence(self.answer.logprob, self.answer.option_logprobs)


def calibrate_model(
    setup: Setup, open_subject: Callable[[], tuple[Subject, Any, Any]], wish: Wish, file: Path
) -> Calibration:
    """Ask a model the questions of a setup, fit on a half of their images, and write `calibration.json` to `file`.

    Answers are kept in `asked/` of the setup's output, as those of an evaluation, which share them. Raises UserError as an
    evaluation does, for a model without a directory, for answers that aren't right or wrong, and for too few images.
    """
    check_file(file, BY)
    check_files(setup.output / ASKED, (), BY)
    plan = setup.plan()
    for chosen in plan:
        if not is_judged(chosen.name):
            raise UserError(f"{chosen.name}: its answers aren't right or wrong, so no confidence can be fitted to them")
    subject = open_subject()[0]
    hash_of = cache(source_hash)
    log = AnswerLog(setup.output / ASKED, 0, subject.identity, hash_of)
    try:
        replies = answer_all(questions_of_plan(plan), subject, log)
    finally:
        log.close()
    outcome = score_plan(plan, replies, setup.seed, subject)
    answers = {name: [a for a in own if a.condition == MODEL] for name, own in outcome.answers.items()}
    known = split(answers, setup.seed, hash_of)
    how = {
        "benchmarks": list(answers),
        "limit": setup.limit,
        "seed": setup.seed,
        "choice_by": setup.choice_by,
        **{name: subject.identity.get(name) for name in ("prompt_format", "dtype")},
    }
    calibration = fit(known, str(subject.identity["model_sha256"]), wish, how, setup.seed)
    write_text_atomically(file, calibration.model_dump_json(indent=2) + "\n", BY)
    logger.info("wrote %s", file)
    return calibration


def split(answers: Mapping[str, Sequence[Answer]], seed: int, hash_of: Callable[[str], str]) -> list[Known]:
    """Deal answers to the parts FIT, SETS and TEST by `SHARES`, so that no image and no group of a benchmark is in two.

    Images are the same where their bytes are. Raises UserError for an answer without a log-probability, and where there are
    fewer than `FEWEST_GROUPS` images to deal.
    """
    keys = [
        (name, answer, [f"{name}\n{answer.group}", *(hash_of(medium.source) for medium in answer.media)])
        for name, own in answers.items()
        for answer in own
    ]
    root = _joined([own for _, _, own in keys])
    sizes: dict[str, int] = {}
    for _, _, own in keys:
        sizes[root[own[0]]] = sizes.get(root[own[0]], 0) + 1
    if len(sizes) < FEWEST_GROUPS:
        raise UserError(
            f"the questions are about {len(sizes)} image(s); a split by image needs {FEWEST_GROUPS} or more"
        )
    names = list(sizes)
    bounds = np.cumsum(SHARES) * len(keys)
    part_of, dealt = dict[str, int](), 0
    for index in np.random.default_rng(seed).permutation(len(names)):
        middle = dealt + sizes[names[index]] / 2
        part_of[names[index]] = int(np.searchsorted(bounds, middle, side="right"))
        dealt += sizes[names[index]]
    return [_known(name, answer, part_of[root[own[0]]]) for name, answer, own in keys]


def _joined(keys: Sequence[Sequence[str]]) -> dict[str, str]:
    """Each key → one that stands for all keys that it is joined with, directly or over others."""
    root: dict[str, str] = {}

    def find(key: str) -> str:
        while root.setdefault(key, key) != key:
            root[key] = key = root[root[key]]
        return key

    for own in keys:
        for other in own[1:]:
            root[find(other)] = find(own[0])
    return {key: find(key) for own in keys for key in own}


def _known(name: str, answer: Answer, part: int) -> Known:
    if answer.logprob is None:
        raise UserError(f"question {answer.item_id!r} of {name} was answered without a log-probability")
    said = {reference.strip().casefold() for reference in answer.references}
    options = list(answer.fields.get("options") or ()) if answer.option_logprobs else []
    true = [index for index, option in enumerate(options) if str(option).strip().casefold() in said]
    return Known(name, answer, part, true[0] if len(true) == 1 else None)


def fit(known: Sequence[Known], model_sha256: str, wish: Wish, how: Mapping[str, Any], seed: int) -> Calibration:
    """Fit what the answers allow: free ones on the parts FIT and SETS, choices on FIT and their sets on SETS.

    The figures, before and after, are of the part TEST.
    """
    free = [one for one in known if not one.answer.option_logprobs]
    choices = [one for one in known if one.true is not None]
    scale = _fit_answers([one for one in free if one.part != TEST], wish.method) if free else None
    chosen = _fit_choices(choices, wish.alpha, seed) if choices else None
    calibration = Calibration(model_sha256=model_sha256, answers=scale, choices=chosen)
    tested = [one for one in known if one.part == TEST and one.by(calibration) is not None]
    found = {
        name: _before_and_after([one for one in tested if one.benchmark == name], calibration)
        for name in dict.fromkeys(one.benchmark for one in tested)
    }
    report = {
        **how,
        "method": wish.method,
        "questions": len(known),
        "split_by_image": {
            name: sum(one.part == part for one in known)
            for name, part in (("fit", FIT), ("sets", SETS), ("test", TEST))
        },
        "test_figures": found,
    }
    if chosen is not None:
        report["test_sets"] = sets_found([one for one in choices if one.part == TEST], chosen, seed)
    return calibration.model_copy(update={"fitted": report})


def _fit_answers(known: Sequence[Known], method: Method) -> Platt | Isotonic:
    _check_some(known)
    logprobs = np.array([one.answer.logprob for one in known])
    right = np.array([bool(metric_of(one.benchmark).is_right(one.answer.score)) for one in known])
    if method == "isotonic":
        corners, shares = fit_isotonic(logprobs, right)
        return Isotonic(logprobs=corners, confidences=shares)
    slope, offset = fit_platt(logprobs, right)
    return Platt(slope=slope, offset=offset)


def _fit_choices(known: Sequence[Known], alpha: float, seed: int) -> Choices:
    own = [one for one in known if one.part == FIT]
    _check_some(own)
    temperature = fit_temperature([np.array(one.answer.option_logprobs) for one in own], [_true(one) for one in own])
    choices = Choices(temperature=temperature)
    others = [one for one in known if one.part == SETS]
    thresholds = {kind: conformal_threshold(_strangeness(others, choices, kind, seed), alpha) for kind in _KINDS}
    return choices.model_copy(update={"sets": OptionSets(alpha=alpha, fitted_on=len(others), **thresholds)})


def _check_some(known: Sequence[Known]) -> None:
    if not known:
        raise UserError("none of the answers of a kind are about images to fit on; raise --limit")


def _true(one: Known) -> int:
    assert one.true is not None
    return one.true


def _scores(known: Sequence[Known], choices: Choices, kind: SetKind, seed: int) -> list[np.ndarray]:
    """How strange each option of each question is; APS draws for each."""
    draws = np.random.default_rng(seed).random(len(known))
    each = [choices.confidences(one.answer.option_logprobs) for one in known]
    return [lac_scores(own) if kind == "lac" else aps_scores(own, draw) for own, draw in zip(each, draws, strict=True)]


def _strangeness(known: Sequence[Known], choices: Choices, kind: SetKind, seed: int) -> np.ndarray:
    """How strange the true options are, float64 [n]."""
    return np.array([own[_true(one)] for own, one in zip(_scores(known, choices, kind, seed), known, strict=True)])


def sets_found(known: Sequence[Known], choices: Choices, seed: int) -> dict[str, dict[str, float]]:
    """How often sets hold the true option, how many options they have, and how many sets have none or all."""
    assert choices.sets is not None
    out: dict[str, dict[str, float]] = {}
    for kind in _KINDS:
        threshold = choices.sets.lac if kind == "lac" else choices.sets.aps
        # Other draws than those that the thresholds were fitted with.
        sets = [own <= threshold for own in _scores(known, choices, kind, seed + 1)]
        out[kind] = {
            "coverage": float(np.mean([own[_true(one)] for own, one in zip(sets, known, strict=True)])),
            "mean_size": float(np.mean([own.sum() for own in sets])),
            "empty": float(np.mean([not own.any() for own in sets])),
            "full": float(np.mean([own.all() for own in sets])),
        }
    return out


def _before_and_after(known: Sequence[Known], calibration: Calibration) -> dict[str, Figures]:
    scores = [one.answer.score for one in known]
    groups = [one.answer.group for one in known]
    metric = metric_of(known[0].benchmark)
    after = [one.by(calibration) or 0.0 for one in known]
    before = [one.raw for one in known]
    return {
        "before": figures(judge(metric, scores, before, groups)),
        "after": figures(judge(metric, scores, after, groups)),
    }
