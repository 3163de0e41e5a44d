"""SugarCrepe: a true caption of a photo against one that differs in a word or in the order of words (Hsieh et al. 2023).

Checked against the authors' `main_eval.py`, and the reader on their seven files; no model was run on the photos here.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import AliasChoices, Field, RootModel

from mllm.errors import UserError
from mllm.evaluation.benchmark import BENCHMARKS, Card, Item
from mllm.evaluation.measure import BY_CAPTION, FitBenchmark, FitLine
from mllm.evaluation.medium import shown
from mllm.evaluation.metric import METRICS, Id, Metric, Result, mean, means_by
from mllm.evaluation.release import Record, shared_image

KINDS = ("add_obj", "add_att", "replace_obj", "replace_att", "replace_rel", "swap_obj", "swap_att")


class SugarCrepeLine(FitLine):
    """`category` is the file, `pair` the pair of captions in it; `references` tells the true one."""

    category: str = Field(validation_alias=AliasChoices("category", "type"))
    pair: Id


@METRICS.register("sugarcrepe")
class SugarCrepeScore(Metric):
    """The share of pairs whose true caption has the strictly greater number, the mean over files.

    `prediction` is a number, such as a log-probability. A line scores as its pair.
    """

    line = SugarCrepeLine
    right_at = None

    def score(self, lines: Sequence[SugarCrepeLine]) -> Result:
        pairs: dict[tuple[str, str], dict[str, float]] = {}
        for line in lines:
            own = pairs.setdefault((line.category, line.pair), {})
            if line.references[0] in own:
                raise UserError(f"SugarCrepe {line.category} {line.pair}: two captions are {line.references[0]!r}")
            own[line.references[0]] = line.fit
        single = next((pair for pair, own in pairs.items() if len(own) != 2), None)
        if single is not None:
            raise UserError(f"SugarCrepe {single[0]} {single[1]}: one caption; expected a true and a false one")
        found = {pair: float(own["yes"] > own["no"]) for pair, own in pairs.items()}
        by_file = means_by("category", [category for category, _ in found], found.values())
        scores: dict[str, Any] = {"score": mean(list(by_file["by_category"].values()))}
        scores |= {"accuracy": mean(list(found.values())), "pairs": len(found)} | by_file
        return Result(scores, [found[line.category, line.pair] for line in lines])


class _Pair(Record):
    filename: str
    caption: str
    negative_caption: str


class _Pairs(RootModel[dict[str, _Pair]]):
    pass


@BENCHMARKS.register("sugarcrepe")
class SugarCrepe(FitBenchmark):
    """Both captions of each pair; the fit is how sure the model is that the photo shows it."""

    folder = "sugarcrepe"
    metric = "sugarcrepe"
    card = Card(
        title="SugarCrepe, by P(yes)",
        questions="7,511 pairs of captions in seven files",
        files=(*(f"{kind}.json" for kind in KINDS), "val2017/*.jpg"),
        source="https://github.com/RAIVNLab/sugar-crepe (data/; images are COCO's val2017)",
        size="2 MB of text, 0.8 GB of images",
        licence="MIT; images by their Flickr terms",
        protocol="measured: log P(Yes) to 'Does this figure show …?'; the true caption strictly first, mean over files",
    )

    def items(self, data: Path) -> list[Item]:
        found = []
        for kind in KINDS:
            path = self.find(data, f"{kind}.json", f"data/{kind}.json")
            for name, pair in self.read(path, _Pairs).root.items():
                media = shown(shared_image(data / self.folder, "val2017", pair.filename))
                for caption, is_true in ((pair.caption, True), (pair.negative_caption, False)):
                    item_id = f"{kind}-{name}-{'true' if is_true else 'false'}"
                    fields = {"category": kind, "pair": name}
                    found.append(self.fit_item(item_id, media, caption, is_true, kind, pair.filename, **fields))
        return found


@BENCHMARKS.register("sugarcrepe_caption")
class SugarCrepeCaption(SugarCrepe):
    """The same by the likelihood of the caption as an answer."""

    way = BY_CAPTION
    card = replace(
        SugarCrepe.card,
        title="SugarCrepe, by the caption's likelihood",
        protocol="measured: log P(caption) to LLaVA's caption prompt; the true caption strictly first, mean over files",
    )
