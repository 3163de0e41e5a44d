"""Winoground: two images and two captions of the same words, to be told apart (Thrush et al. 2022).

Checked against the release's description of its three scores; the release is gated, and its reader was tried on a file of
that shape alone.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from pydantic import AliasChoices, Field

from mllm.errors import UserError
from mllm.evaluation.benchmark import BENCHMARKS, Card, Item
from mllm.evaluation.measure import BY_CAPTION, FitBenchmark, FitLine
from mllm.evaluation.medium import shown
from mllm.evaluation.metric import METRICS, Id, Metric, Result, mean, means_by
from mllm.evaluation.release import Record, read_lines_as

SCORES = ("text", "image", "group")


class WinogroundLine(FitLine):
    """`caption` and `image` say which of the two of example `group` this is the fit of; `tag` is its kind."""

    group: Id = Field(validation_alias=AliasChoices("group", "example"))
    caption: Literal[0, 1]
    image: Literal[0, 1]
    tag: str | None = None


def _scores(fits: Mapping[tuple[int, int], float]) -> dict[str, float]:
    """fits: by (caption, image). A tie is lost."""
    by_text = fits[0, 0] > fits[1, 0] and fits[1, 1] > fits[0, 1]
    by_image = fits[0, 0] > fits[0, 1] and fits[1, 1] > fits[1, 0]
    return dict(zip(SCORES, map(float, (by_text, by_image, by_text and by_image)), strict=True))


@METRICS.register("winoground")
class WinogroundScore(Metric):
    """Shares of examples whose captions, images or both are told apart; `score` is both.

    `prediction` is a number, such as a log-probability. A line scores as its example.
    """

    line = WinogroundLine
    right_at = None

    def score(self, lines: Sequence[WinogroundLine]) -> Result:
        examples: dict[str, list[WinogroundLine]] = {}
        for line in lines:
            examples.setdefault(line.group, []).append(line)
        found, tags = {}, []
        for name, own in examples.items():
            fits: dict[tuple[int, int], float] = {(line.caption, line.image): line.fit for line in own}
            if len(own) != 4 or len(fits) != 4:
                raise UserError(f"Winoground example {name} has {len(own)} line(s); expected two captions × two images")
            found[name] = _scores(fits)
            tags.append(own[0].tag)
        scores: dict[str, Any] = {kind: mean([own[kind] for own in found.values()]) for kind in SCORES}
        by_tag = means_by("tag", tags, [own["group"] for own in found.values()])
        per_line = [found[line.group]["group"] for line in lines]
        return Result({"score": scores["group"]} | scores | {"examples": len(found)} | by_tag, per_line)


class _Example(Record):
    id: int
    image_0: str
    image_1: str
    caption_0: str
    caption_1: str
    collapsed_tag: str


@BENCHMARKS.register("winoground")
class Winoground(FitBenchmark):
    """Each caption with each image; the fit is how sure the model is that the image shows it."""

    folder = "winoground"
    metric = "winoground"
    card = Card(
        title="Winoground, by P(yes)",
        questions="400 examples of two images and two captions",
        files=("examples.jsonl", "images/ex_{id}_img_{n}.png"),
        source="https://huggingface.co/datasets/facebook/winoground (gated; unpack images.zip)",
        size="0.4 GB",
        licence="Meta's research licence",
        protocol="measured: log P(Yes) to 'Does this figure show …?'; text, image and group score, ties lose",
    )

    def items(self, data: Path) -> list[Item]:
        path = self.find(data, "examples.jsonl", "data/examples.jsonl")
        return [
            item for own in read_lines_as(_Example, path, self.card.source) for item in self._items(path.parent, own)
        ]

    def _items(self, root: Path, example: _Example) -> list[Item]:
        captions, images = (example.caption_0, example.caption_1), (example.image_0, example.image_1)
        return [
            self.fit_item(
                f"{example.id}-c{c}-i{i}",
                shown(root / "images" / f"{images[i]}.png"),
                captions[c],
                c == i,
                example.collapsed_tag,
                str(example.id),
                **{"group": str(example.id), "caption": c, "image": i, "tag": example.collapsed_tag},
            )
            for i in range(2)
            for c in range(2)
        ]


@BENCHMARKS.register("winoground_caption")
class WinogroundCaption(Winoground):
    """The same by the likelihood of the caption as an answer."""

    way = BY_CAPTION
    card = replace(
        Winoground.card,
        title="Winoground, by the caption's likelihood",
        protocol="measured: log P(caption) to LLaVA's caption prompt; text, image and group score, ties lose",
    )
