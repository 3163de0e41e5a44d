"""ST-VQA, open dictionary (task 3): questions about scene text (Biten et al. 2019)."""

from mllm.evaluation.benchmark import BENCHMARKS, Card, Columns, TableBenchmark
from mllm.evaluation.release import SHORT_ANSWER


@BENCHMARKS.register("stvqa")
class StVqa(TableBenchmark):
    """The answers to the test set are withheld, so this is the training set: not for a model that trained on it."""

    folder = "stvqa"
    files = (("train", "train_task_3.json"),)
    image = "file_path"
    asks = Columns("{question_id}", type="{dataset}")
    metric = "anls"
    suffix = SHORT_ANSWER
    max_new_tokens = 32
    card = Card(
        title="ST-VQA task 3, training set",
        questions="26,308 about 19,027 images",
        files=("train_task_3.json", "{dataset}/*.jpg as its file_path says"),
        source="https://rrc.cvc.uab.es/?ch=11 (free registration)",
        size="5 GB",
        licence="terms of the RRC portal, research",
        protocol="short-answer prompt; ANLS",
    )
