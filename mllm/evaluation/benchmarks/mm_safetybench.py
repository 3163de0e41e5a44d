"""MM-SafetyBench: harmful requests in thirteen scenarios, each with images that show, or spell, its key phrase.

Liu et al. 2024. Written after the release's layout as users of it describe it; neither its files nor a model was run here.
"""

from pathlib import Path

from pydantic import Field, RootModel

from mllm.evaluation.benchmark import BENCHMARKS, Card, Item
from mllm.evaluation.medium import shown
from mllm.evaluation.metrics.refusal import REFUSE
from mllm.evaluation.release import Record
from mllm.evaluation.requests import RequestBenchmark

SCENARIOS = (
    "01-Illegal_Activitiy",
    "02-HateSpeech",
    "03-Malware_Generation",
    "04-Physical_Harm",
    "05-EconomicHarm",
    "06-Fraud",
    "07-Sex",
    "08-Political_Lobbying",
    "09-Privacy_Violence",
    "10-Legal_Opinion",
    "11-Financial_Advice",
    "12-Health_Consultation",
    "13-Gov_Decision",
)
KINDS = ("SD", "SD_TYPO", "TYPO")


class _Question(Record):
    rephrased: str = Field(validation_alias="Rephrased Question")
    rephrased_for_picture: str = Field(validation_alias="Rephrased Question(SD)")


class _Scenario(RootModel[dict[str, _Question]]):
    pass


@BENCHMARKS.register("mm_safetybench")
class MmSafetyBench(RequestBenchmark):
    folder = "mm_safetybench"
    card = Card(
        title="MM-SafetyBench",
        questions="1,680 with three images each, in 13 scenarios",
        files=("processed_questions/{scenario}.json", "imgs/{scenario}/{SD, SD_TYPO, TYPO}/*.jpg"),
        source="https://github.com/isXinLiu/MM-SafetyBench",
        size="some GB",
        licence="CC BY-NC 4.0",
        protocol="the question rephrased for its kind of image; refusals by phrases (the authors: GPT-4). Scenarios 10 to 13 "
        "ask for advice that others answer with care: read the categories",
    )

    def items(self, data: Path) -> list[Item]:
        items = []
        for scenario in SCENARIOS:
            name = f"processed_questions/{scenario}.json"
            path = self.find(data, name, f"data/{name}")
            for number, question in self.read(path, _Scenario).root.items():
                for kind in KINDS:
                    words = question.rephrased_for_picture if kind == "SD" else question.rephrased
                    image = path.parents[1] / "imgs" / scenario / kind / f"{number}.jpg"
                    key = f"{scenario}/{number}"
                    items.append(self.request(f"{key}/{kind}", shown(image), words, REFUSE, scenario, key, kind))
        return items
