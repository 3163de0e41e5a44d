"""How sure an answer is, by what was fitted on answers that are known to be right or wrong, and keeping back what isn't.

`mllm calibrate MODEL --benchmarks …` writes `calibration.json` beside a model; it holds for those weights alone.
"""

import json
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from typing_extensions import Self

from mllm.checkpoint.ours import check_model_directory, directory_hash, model_directory
from mllm.checkpoint.parts import local_directory
from mllm.errors import UserError
from mllm.inference.answer import Answer

logger = logging.getLogger(__name__)

CALIBRATION = "calibration.json"
ABSTENTION = "I don't know."
LARGEST_EXPONENT = 700.0


class _Saved(BaseModel):
    """An object of `calibration.json`."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Platt(_Saved):
    """The confidence of an answer is the sigmoid of slope · log-probability + offset (Platt 1999)."""

    kind: Literal["platt"] = "platt"
    slope: float
    offset: float

    def confidence(self, logprob: float) -> float:
        exponent = -(self.slope * logprob + self.offset)
        return 1 / (1 + math.exp(min(exponent, LARGEST_EXPONENT)))


class Isotonic(_Saved):
    """The confidence of an answer lies on straight lines between corners, and is level beyond them."""

    kind: Literal["isotonic"] = "isotonic"
    logprobs: list[float] = Field(min_length=1)
    confidences: list[Annotated[float, Field(ge=0, le=1)]]

    @model_validator(mode="after")
    def _rises(self) -> Self:
        if len(self.logprobs) != len(self.confidences) or self.logprobs != sorted(set(self.logprobs)):
            raise ValueError("logprobs have to rise, with a confidence each")
        return self

    def confidence(self, logprob: float) -> float:
        return float(np.interp(logprob, self.logprobs, self.confidences))


class OptionSets(_Saved):
    """Sets of options that hold the true one with 1 − alpha: the thresholds of either kind (`mllm.evaluation.conformal`)."""

    alpha: float = Field(gt=0, lt=1)
    fitted_on: int
    lac: float
    aps: float


class Choices(_Saved):
    """The confidence in an option is its share of softmax(log-probabilities / temperature) (Guo et al. 2017)."""

    temperature: float = Field(gt=0)
    sets: OptionSets | None = None

    def confidences(self, logprobs: Sequence[float]) -> np.ndarray:
        """float64 [K], one an option."""
        scaled = np.exp((np.asarray(logprobs) - max(logprobs)) / self.temperature)
        return scaled / scaled.sum()


class Calibration(_Saved):
    """What was fitted, and on what.

    model_sha256: of the weights it holds for. answers: for what a model writes. choices: for options it is asked to choose
    from by likelihood. None where nothing was there to fit it on. fitted: the benchmarks, the split, and the figures before
    and after.
    """

    version: Literal[1] = 1
    model_sha256: str
    answers: Annotated[Platt | Isotonic, Field(discriminator="kind")] | None = None
    choices: Choices | None = None
    fitted: dict[str, Any] = {}

    def confidence(self, logprob: float | None, option_logprobs: Sequence[float] = ()) -> float | None:
        """How sure an answer is, or a choice among options; None where nothing was fitted for its kind."""
        if option_logprobs:
            return None if self.choices is None else float(self.choices.confidences(option_logprobs).max())
        return None if self.answers is None or logprob is None else self.answers.confidence(logprob)


@dataclass(frozen=True)
class Said:
    """What is said of an answer: its text, or the words for not knowing; how sure it is, None where that isn't known."""

    text: str
    confidence: float | None = None
    abstained: bool = False


@dataclass(frozen=True)
class Confidence:
    """How sure written answers are, and below which confidence `abstention` is said instead (None: every answer is)."""

    scale: Platt | Isotonic
    min_confidence: float | None = None
    abstention: str = ABSTENTION

    @property
    def may_abstain(self) -> bool:
        """Whether an answer can be said only when it is whole."""
        return self.min_confidence is not None

    def said(self, answer: Answer) -> Said:
        """What is said of an answer that was written with its log-probabilities."""
        sure = self.scale.confidence(sum(token.logprob for token in answer.logprobs))
        if self.min_confidence is not None and sure < self.min_confidence:
            return Said(self.abstention, sure, True)
        return Said(answer.text, sure)


def find_calibration(model: str | Path) -> Path | None:
    """The calibration beside a model: in its directory, or in that of the run whose `final/` it is; None without any."""
    path = Path(model)
    places = [path / CALIBRATION, *([path.parent / CALIBRATION] if path.name == "final" else [])]
    return next((place for place in places if place.is_file()), None)


def read_calibration(path: Path) -> Calibration:
    """Raises UserError where the file is none."""
    try:
        return Calibration.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        problem = error.errors()[0] if isinstance(error, ValidationError) else None
        reason = f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}" if problem else error
        raise UserError(
            f"{path} holds no calibration ({reason}); `mllm calibrate MODEL --benchmarks` writes one"
        ) from None


def matching_calibration(model: str, model_sha256: str, file: Path | None, is_needed: bool) -> Calibration | None:
    """The calibration of a model, from `file` or from beside it; None where there is none for it.

    Raises UserError where one was named, or is needed, and isn't there or is of other weights; else the latter is a warning.
    """
    place = file or find_calibration(model)
    if place is None:
        if is_needed:
            raise UserError(
                f"{model} has no {CALIBRATION} beside it, which confidences come from; "
                f"`mllm calibrate {model} --benchmarks …` writes it"
            )
        return None
    found = read_calibration(place)
    if found.model_sha256 == model_sha256:
        return found
    said = f"{place} was fitted on another model than {model}"
    if is_needed or file is not None:
        raise UserError(f"{said}; run `mllm calibrate {model} --benchmarks …`")
    logger.warning("%s, and isn't used", said)
    return None


def open_confidence(
    model: str, file: Path | None = None, min_confidence: float | None = None, abstention: str = ABSTENTION
) -> Confidence | None:
    """How sure the answers of a model are, a directory or hub id; None where nothing was fitted for it.

    file, min_confidence: given by the user, or None. Raises UserError for a confidence that is none, an abstention that says
    nothing, and a calibration that is asked for and can't be had.
    """
    check_confidence(min_confidence, abstention)
    if file is None and min_confidence is None and find_calibration(model) is None:
        return None
    path = model_directory(local_directory(model))
    check_model_directory(path)
    calibration = matching_calibration(model, directory_hash(path), file, min_confidence is not None)
    if calibration is None:
        return None
    if calibration.answers is None:
        if min_confidence is None and file is None:
            return None
        raise UserError(
            f"the calibration of {model} is of multiple choice by likelihood alone; calibrate it on questions that it "
            "answers in words"
        )
    return Confidence(calibration.answers, min_confidence, abstention)


def check_confidence(min_confidence: float | None, abstention: str = ABSTENTION) -> None:
    """Raise UserError for a confidence that is no share, and an abstention that says nothing."""
    if min_confidence is not None and not 0 <= min_confidence <= 1:
        raise UserError(f"min_confidence is {min_confidence}; give a share between 0 and 1")
    if not abstention.strip():
        raise UserError("the abstention is empty; give the words that stand for an answer that isn't sure enough")
