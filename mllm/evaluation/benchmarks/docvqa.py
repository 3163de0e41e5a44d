"""DocVQA, validation split: questions about scanned documents (Mathew et al. 2021)."""

from mllm.evaluation.benchmark import BENCHMARKS, Card, Columns, TableBenchmark, hub_layout
from mllm.evaluation.release import SHORT_ANSWER


@BENCHMARKS.register("docvqa")
class DocVqa(TableBenchmark):
    folder = "docvqa"
    files = (("val", "val_v1.0_withQT.json", "val_v1.0.json"),)
    image = "image"
    asks = Columns("{questionId}", type="{question_types[0]}")
    metric = "anls"
    suffix = SHORT_ANSWER
    max_new_tokens = 32
    card = Card(
        title="DocVQA val",
        questions="5,349 about 1,286 pages",
        files=("val_v1.0_withQT.json or val_v1.0.json", "documents/*.png"),
        source="https://rrc.cvc.uab.es/?ch=17 (free registration)",
        size="1 GB",
        licence="terms of the RRC portal, research",
        protocol="short-answer prompt as in lmms-eval; ANLS",
    )
    hub = (
        hub_layout(
            "lmms-lab/DocVQA",
            "DocVQA/validation-*.parquet",
            "questionId question answers ucsf_document_id ucsf_document_page_no",
            asks,
            "{ucsf_document_id}/{ucsf_document_page_no}",
        ),
    )
