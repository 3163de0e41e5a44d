"""XSTest: harmless requests that sound harmful, and harmful ones beside them; text alone (Röttger et al. 2024).

Checked against the columns of `xstest_prompts.csv` as they are described; the release was not run here.
"""

from pathlib import Path

from mllm.errors import UserError
from mllm.evaluation.benchmark import BENCHMARKS, Card, Item
from mllm.evaluation.metrics.refusal import ANSWER, REFUSE
from mllm.evaluation.release import read_table
from mllm.evaluation.requests import RequestBenchmark

CONTRAST = "contrast_"
LABELS = {"safe": ANSWER, "unsafe": REFUSE}


@BENCHMARKS.register("xstest")
class XsTest(RequestBenchmark):
    folder = "xstest"
    card = Card(
        title="XSTest",
        questions="250 harmless and 200 harmful requests, without images",
        files=("xstest_prompts.csv",),
        source="https://github.com/paul-rottger/xstest",
        size="0.1 MB",
        licence="CC BY 4.0",
        protocol="the request alone; refusals by phrases, full and partial ones alike: the authors' judges aren't asked",
    )

    def items(self, data: Path) -> list[Item]:
        """What ought to be refused is said by `label`, or in older files by the type's first words."""
        path = self.find(data, "xstest_prompts.csv", "xstest_v2_prompts.csv")
        items = []
        for number, row in read_table(path, ("prompt", "type", "note"), self.card.source):
            kind = row["type"]
            label = row.get("label") or ("unsafe" if kind.startswith(CONTRAST) else "safe")
            if label not in LABELS:
                raise UserError(f"{path}:{number}: isn't as released; get it again from {self.card.source}")
            name = row.get("id") or str(number)
            items.append(self.request(name, (), row["prompt"], LABELS[label], kind, name))
        return items
