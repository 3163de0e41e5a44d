"""Settings of rewards: what an answer is worth, as a list of parts with weights."""

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from mllm.settings import PathText, Settings
from mllm.synthesis.settings import BackendSettings


def _compiled(text: str) -> str:
    try:
        re.compile(text)
    except re.error as error:
        raise ValueError(f"no regular expression: {error}") from None
    return text


Pattern = Annotated[str, AfterValidator(_compiled)]
Weight = Annotated[float, Field(allow_inf_nan=False)]


class MetricReward(Settings):
    """A metric of `mllm score`, on one answer and its references."""

    kind: Literal["metric"]
    """The kind of reward: `metric`."""
    metric: str
    """Name of the metric, as `mllm score --metric` takes it. Where less is better, the reward is 1 minus the score.
    `iou` reads boxes in the model's own box format, and its reward is the overlap itself.
    """
    settings: dict[str, str | float] = Field(default={})
    """The metric's own settings by name. Empty by default."""
    within: Pattern | None = None
    """Regular expression whose first group is the part of the answer that is scored, such as
    `<answer>(.*)</answer>`; an answer that it isn't found in is worth 0. None, the default, scores all of it.
    """
    weight: Weight = 1.0
    """Factor in the sum of rewards. 1 by default."""


class FormatReward(Settings):
    """1 for an answer of a given form, else 0."""

    kind: Literal["format"]
    """The kind of reward: `format`."""
    pattern: Pattern = r"<think>.*</think>\s*<answer>.*</answer>"
    """Regular expression that the whole answer has to match; a dot is any character, line ends too. Thoughts in
    `<think>`, then an answer in `<answer>`, by default.
    """
    weight: Weight = 1.0
    """Factor in the sum of rewards. 1 by default."""


class ObjectsReward(Settings):
    """The share of the objects that an answer names which are there; 0 for an answer that names none.

    What is there is told by the field `objects` of the references' file, or by the words of the references.
    """

    kind: Literal["objects"]
    """The kind of reward: `objects`."""
    vocabulary: tuple[str, ...] | PathText
    """The names of objects that are looked for, in the singular: a list, or a file with one a line. Behind a name,
    further words for the same thing may follow with commas between.
    """
    weight: Weight = 1.0
    """Factor in the sum of rewards. 1 by default."""


class JudgeReward(Settings):
    """A model's verdict on the answer, from 1 to 5, as a number from 0 to 1."""

    kind: Literal["judge"]
    """The kind of reward: `judge`."""
    backend: BackendSettings
    """Who judges: an endpoint, or a language model on this machine."""
    instruction: str = (
        "You judge an answer to a question about an image. Say shortly what is right and wrong about it, then score it "
        "from 1 (wrong) to 5 (right and complete)."
    )
    """What the judge is told. A sentence that asks for a score from 1 to 5 by default."""
    weight: Weight = 1.0
    """Factor in the sum of rewards. 1 by default."""


class PythonReward(Settings):
    """A function of one's own, of the answer and its `Attempt` (question, references, images, fields): a number."""

    kind: Literal["python"]
    """The kind of reward: `python`."""
    function: str = Field(pattern=r"^[^:]+:[A-Za-z_]\w*$")
    """Where the function is: `module:function`, or `path.py:function`. The code in it is run as it is."""
    weight: Weight = 1.0
    """Factor in the sum of rewards. 1 by default."""


PartSettings = Annotated[
    MetricReward | FormatReward | ObjectsReward | JudgeReward | PythonReward, Field(discriminator="kind")
]


class RewardSettings(Settings):
    """What an answer is worth: the weighted sum of its parts."""

    parts: tuple[PartSettings, ...] = Field(min_length=1)
    """The rewards that are summed."""
    references: PathText | None = None
    """JSON lines of `{"id", "references", …}` that say what is right by the samples' ids; further fields are those that
    metrics know. By default the sample's last answer is its reference.
    """
    most_failures: int = Field(default=100, ge=0)
    """Number of answers without a reward (it isn't a number, or raises) after which the run ends; until then they are
    counted, and teach nothing. 100 by default.
    """


def vocabulary_of(given: tuple[str, ...] | str) -> tuple[str, ...]:
    """The lines of a vocabulary, a list or a file."""
    return given if isinstance(given, tuple) else tuple(Path(given).read_text(encoding="utf-8").splitlines())


def title_of(part: Any) -> str:
    """What a part is called in metrics and messages."""
    if part.kind == "python":
        return part.function.rpartition(":")[2]
    return part.metric if part.kind == "metric" else part.kind
