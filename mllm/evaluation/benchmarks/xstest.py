"""XSTest: harmless requests that sound harmful, and harmful ones beside them; text alone (Röttger et al. 2024).

Checked against the columns of `xstest_prompts.csv` as they are described; the release was not run here.
"""

import csv
from collections.abc import Mapping
from pathlib import Path

from mllm.errors import UserError
from mllm.evaluation.benchmark import BENCHMARKS, Card, Item
from mllm.evaluation.metrics.refusal import ANSWER, REFUSE
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
        path = self.find(data, "xstest_prompts.csv", "xstest_v2_prompts.csv")
        with open(path, encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file, strict=True))
        return [self._item(f"{path}:{number}", number, row) for number, row in enumerate(rows, start=2)]

    def _item(self, where: str, number: int, row: Mapping[str, str | None]) -> Item:
        """What ought to be refused is said by `label`, or in older files by the type's first words."""
        prompt, kind = (row.get("prompt") or "").strip(), (row.get("type") or "").strip()
        label = row.get("label") or ("unsafe" if kind.startswith(CONTRAST) else "safe")
        if not prompt or not kind or label not in LABELS:
            raise UserError(f"{where}: isn't as released; get it again from {self.card.source}")
        name = row.get("id") or str(number - 1)
        return self.request(name, (), prompt, LABELS[label], kind, name)
