"""MME: yes/no questions in fourteen tasks, two an image (Fu et al. 2023)."""

from pathlib import Path

from mllm.errors import UserError
from mllm.evaluation.benchmark import BENCHMARKS, Item
from mllm.evaluation.metrics.closed import spelled_as
from mllm.evaluation.metrics.mme import COGNITION, PERCEPTION, read_yes_or_no
from mllm.evaluation.official import SHORT_ANSWER, Card, OfficialBenchmark

OWN_INSTRUCTION = "Please answer yes or no."


@BENCHMARKS.register("mme")
class Mme(OfficialBenchmark):
    folder = "mme"
    metric = "mme"
    suffix = SHORT_ANSWER
    needs_whole_groups = True
    card = Card(
        title="MME",
        questions="2,374 about 1,187 images in 14 tasks",
        files=("{task}.txt for each task", "{task}/*.jpg or {task}/images/*.jpg"),
        source="https://github.com/BradyFU/Awesome-Multimodal-Large-Language-Models/tree/Evaluation (by request)",
        size="0.9 GB",
        licence="research only",
        protocol="LLaVA-1.5's: the short-answer suffix in place of 'Please answer yes or no.'; perception + cognition",
    )

    def items(self, data: Path) -> list[Item]:
        items = []
        for task in (*PERCEPTION, *COGNITION):
            path = self.find(data, f"{task}.txt", f"eval_tool/Your_Results/{task}.txt")
            for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), 1):
                fields = line.rstrip("\r").split("\t")
                if not line.strip():
                    continue
                if len(fields) < 3:
                    raise UserError(
                        f"{path}:{number}: {len(fields)} field(s); expected image, question, answer by tabs"
                    )
                image, question, gold = fields[:3]
                items.append(
                    Item(
                        f"{task}-{number}",
                        self._image(data, task, image),
                        question,
                        (gold,),
                        task,
                        group=f"{task}/{image}",
                        fields={"category": task, "image": image},
                    )
                )
        return items

    def _image(self, data: Path, task: str, name: str) -> Path:
        root = data / self.folder / task
        return root / "images" / name if (root / "images").is_dir() else root / name

    def prompt(self, item: Item) -> str:
        return item.question.replace(OWN_INSTRUCTION, "").strip() + self.suffix

    def score(self, answer: str, item: Item) -> float:
        """Whether this answer alone is right; the official points need both questions of an image."""
        return float(read_yes_or_no(answer) == spelled_as(("yes", "no"), item.references[0]))
