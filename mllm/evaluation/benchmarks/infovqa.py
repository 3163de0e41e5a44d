"""InfographicVQA, validation split: questions about infographics (Mathew et al. 2022)."""

from mllm.evaluation.benchmark import BENCHMARKS, Card, Columns, TableBenchmark, hub_layout
from mllm.evaluation.release import SHORT_ANSWER


@BENCHMARKS.register("infovqa")
class InfoVqa(TableBenchmark):
    folder = "infovqa"
    files = (("val", "infographicsVQA_val_v1.0_withQT.json", "infographicsVQA_val_v1.0.json"),)
    images = "infographicsvqa_images/{}"
    image = "image_local_name"
    asks = Columns("{questionId}")
    metric = "anls"
    suffix = SHORT_ANSWER
    max_new_tokens = 32
    card = Card(
        title="InfographicVQA val",
        questions="2,801 about 500 images",
        files=("infographicsVQA_val_v1.0_withQT.json or infographicsVQA_val_v1.0.json", "infographicsvqa_images/*"),
        source="https://rrc.cvc.uab.es/?ch=17 (free registration)",
        size="2 GB",
        licence="terms of the RRC portal, research",
        protocol="short-answer prompt as in lmms-eval; ANLS",
    )
    hub = (
        hub_layout(
            "lmms-lab/DocVQA",
            "InfographicVQA/validation-*.parquet",
            "questionId question answers image_url",
            asks,
            "{image_url}",
        ),
    )
