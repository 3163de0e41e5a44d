"""What an evaluation says of confidences: those of its answers, whether they are abstained from, and what they are worth."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from mllm.errors import UserError
from mllm.evaluation.asking import Subject
from mllm.evaluation.benchmarks import metric_of
from mllm.evaluation.compare import MODEL
from mllm.evaluation.plan import Setup
from mllm.evaluation.reliability import Figures, Judged, figures, is_judged, judge, raw_confidence
from mllm.evaluation.scoring import Answer, Outcome
from mllm.inference.confidence import Calibration, check_confidence, matching_calibration


def calibration_of(setup: Setup, subject: Subject, model: str) -> Calibration | None:
    """What says how sure the answers of a model under test are; None without a calibration of it.

    Raises UserError where one is asked for and can't be had, as of a model behind an endpoint.
    """
    check_confidence(setup.min_confidence)
    sha256 = subject.identity.get("model_sha256")
    if sha256 is None:
        if setup.min_confidence is not None or setup.calibration is not None:
            raise UserError(f"{model} has no calibration: one is fitted to the weights of a model, which aren't here")
        return None
    return matching_calibration(model, str(sha256), setup.calibration, setup.min_confidence is not None)


def with_confidences(outcome: Outcome, calibration: Calibration | None, min_confidence: float | None) -> Outcome:
    """The outcome with the confidence of each of the model's own answers, and whether it is abstained from."""
    if calibration is None:
        return outcome

    def told(answer: Answer) -> Answer:
        confidence = calibration.confidence(answer.logprob, answer.option_logprobs)
        if answer.condition != MODEL or confidence is None:
            return answer
        abstained = None if min_confidence is None else confidence < min_confidence
        return replace(answer, confidence=confidence, abstained=abstained)

    answers = {
        name: [told(answer) for answer in own] if is_judged(name) else own for name, own in outcome.answers.items()
    }
    return replace(outcome, answers=answers)


def judged_answers(name: str, answers: Sequence[Answer], is_calibrated: bool) -> Judged | None:
    """The model's own answers with the confidences that it gives, or with the calibrated ones; None where they have none."""
    own = [answer for answer in answers if answer.condition == MODEL]
    said = [answer.confidence if is_calibrated else _said(answer) for answer in own]
    confidences = [confidence for confidence in said if confidence is not None]
    if not own or len(confidences) < len(own) or not is_judged(name):
        return None
    return judge(metric_of(name), [answer.score for answer in own], confidences, [answer.group for answer in own])


def _said(answer: Answer) -> float | None:
    return None if answer.logprob is None else raw_confidence(answer.logprob, answer.option_logprobs)


def reliability_of(outcome: Outcome) -> dict[str, dict[str, Figures]]:
    """benchmark → `as_said` and, with a calibration, `calibrated` → `figures`; without what has no confidences."""
    out: dict[str, dict[str, Figures]] = {}
    for name, answers in outcome.answers.items():
        for kind, is_calibrated in (("as_said", False), ("calibrated", True)):
            judged = judged_answers(name, answers, is_calibrated)
            if judged is not None:
                out.setdefault(name, {})[kind] = figures(judged)
    return out


def abstention_remark(answers: Sequence[Answer], min_confidence: float | None) -> list[str]:
    """What is left of a benchmark's answers, and what they score, where those that aren't sure enough aren't given."""
    own = [answer for answer in answers if answer.abstained is not None]
    if not own:
        return []
    given = [answer.score for answer in own if not answer.abstained]
    silent = 100 * (1 - len(given) / len(own))
    rest = f"the others score {100 * np.mean(given):.1f}" if given else "none is left"
    everything = 100 * np.mean([answer.score for answer in own])
    return [
        f"Below a confidence of {min_confidence:g} the model abstains: {silent:.1f} % of {len(own)} answers; {rest} "
        f"(all: {everything:.1f})."
    ]
