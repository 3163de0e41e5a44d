"""One model through all checks: a family's tiny one, or the one of a directory."""

import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mllm.checkpoint import public
from mllm.checkpoint.parts import first_line
from mllm.conformance.checks import Subject, holds, measured
from mllm.conformance.families import Family, families
from mllm.conformance.samples import trial
from mllm.conformance.tiny import Tiny
from mllm.errors import UserError
from mllm.model.public import PublicModel, PublicProcessor, wrap


@dataclass(frozen=True)
class Conformance:
    """What came of a model. refused: why it isn't carried; failed: what went wrong while it was tried; figures: by check."""

    family: str
    refused: str | None = None
    failed: str | None = None
    figures: dict[str, float] = field(default_factory=dict)

    @property
    def conforms(self) -> bool:
        return bool(self.figures) and all(holds(check, figure) for check, figure in self.figures.items())

    @property
    def broken(self) -> list[str]:
        """The checks that don't hold."""
        return [check for check, figure in self.figures.items() if not holds(check, figure)]

    def line(self) -> dict[str, Any]:
        """What `--json` prints."""
        state = {"family": self.family, "conforms": self.conforms, "refused": self.refused, "failed": self.failed}
        return state | self.figures


def conformance_of(subject: str) -> Conformance:
    """Try a family of the list, by name, or the model of a directory. Raises UserError for what is neither."""
    if subject in families():
        return of_family(families()[subject])
    if not Path(subject).is_dir():
        raise UserError(f"{subject!r} is no model directory and none of the families of `mllm conformance --list`")
    try:
        model, processor = public.load(subject)
    except UserError as error:
        return Conformance(subject, refused=str(error))
    return _tried(subject, model, processor)


def of_family(family: Family) -> Conformance:
    """Try the tiny model of a family. What it is refused for is seen on a model without contents, before its processor."""
    try:
        tiny = Tiny.of(family)
        PublicModel(tiny.shadow())
        model, processor = wrap(*tiny.peer())
    except UserError as error:
        return Conformance(family.name, refused=str(error))
    except Exception as error:  # transformers' own classes, with numbers that they may never have met.
        return Conformance(family.name, failed=f"no tiny model can be made: {first_line(error)}")
    return _tried(family.name, model, processor)


def _tried(name: str, model: PublicModel, processor: PublicProcessor) -> Conformance:
    with tempfile.TemporaryDirectory() as folder:
        try:
            return Conformance(name, figures=measured(Subject(model.eval(), processor, trial(Path(folder)))))
        except Exception as error:  # Whatever a model does is what is to be told of it.
            return Conformance(name, failed=f"{type(error).__name__}: {first_line(error)}")
