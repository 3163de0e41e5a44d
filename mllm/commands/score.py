"""`mllm score`: a file of predictions, scored without a model."""

import argparse
import json
from pathlib import Path

from mllm.commands.arguments import describe
from mllm.settings import expanded

SETTINGS = ("bins", "norm", "convention", "reference_convention", "threshold", "parse", "synonyms")
JUDGE = ("judge", "judge_url", "judge_prompt", "judge_log")


def add(parser: argparse.ArgumentParser) -> None:
    describe(
        parser,
        run,
        'Score a file of predictions, without a model. A line is {"prediction": ..., "references": ...}.',
        "mllm score --metric vqa predictions.jsonl --per-sample scores.jsonl",
        "mllm score --metric iou boxes.jsonl --convention 0-1000",
        "mllm score --metric mmmu runs/demo/stage2/eval/answers.jsonl --parse vlmevalkit",
    )
    parser.add_argument(
        "predictions",
        type=expanded,
        help="A file of JSON lines, whose fields docs tell for each metric, or the answers.jsonl of an evaluation.",
    )
    parser.add_argument("--metric", required=True, help="Name of the metric; an unknown one lists them.")
    parser.add_argument("--per-sample", type=expanded, metavar="OUT.jsonl", help="Where each line's score is written.")
    parser.add_argument(
        "--benchmark", help="Whose answers of an answers.jsonl are scored. By default those that the metric scores."
    )
    settings = parser.add_argument_group("settings of single metrics")
    settings.add_argument("--bins", help="For ece: number of bins. 15 by default.")
    settings.add_argument("--norm", help="For ece: l1, l2 or max. It is l1 by default.")
    settings.add_argument(
        "--convention",
        help="For iou: coordinates of predictions, which are pixels, 0-1, 0-1000 or 0-1024. They are pixels by default.",
    )
    settings.add_argument(
        "--reference-convention", help="For iou: coordinates of references. They are pixels by default."
    )
    settings.add_argument(
        "--parse",
        help="For metrics that publishers read by rules of their own, such as mmmu: official, lmms_eval or vlmevalkit. It "
        "is official by default, where there is an official one.",
    )
    settings.add_argument(
        "--synonyms",
        help="For object_hallucination: a YAML or JSON file of the words of each object. COCO's classes by default.",
    )
    _add_judge(parser)
    settings.add_argument("--threshold", help="For iou: the overlap from which a box counts as found. 0.5 by default.")


def _add_judge(parser: argparse.ArgumentParser) -> None:
    judge = parser.add_argument_group("a judge, for metrics that may have one: mmhal, object_halbench")
    judge.add_argument("--judge", metavar="openai:NAME", help="Model behind an endpoint that judges. None by default.")
    judge.add_argument("--judge-url", metavar="URL", help="Address of the judge's OpenAI-compatible endpoint.")
    judge.add_argument(
        "--judge-prompt",
        type=expanded,
        metavar="FILE",
        help="Words to ask the judge with, {} for each thing that they hold. Ours by default.",
    )
    judge.add_argument(
        "--judge-log",
        type=expanded,
        metavar="DIR",
        help="Directory where what the judge said is kept, so that it is asked once. judged/ beside the predictions by "
        "default.",
    )


def run(options: argparse.Namespace) -> None:
    from mllm.evaluation.predictions import score_file

    settings = {name: getattr(options, name) for name in SETTINGS if getattr(options, name) is not None}
    if options.judge:
        settings |= {name: getattr(options, name) for name in JUDGE if getattr(options, name) is not None}
        settings.setdefault("judge_log", str(Path(options.predictions).parent / "judged"))
    per_sample = Path(options.per_sample) if options.per_sample else None
    found = score_file(options.metric, Path(options.predictions), settings, per_sample, options.benchmark)
    print(json.dumps(found, ensure_ascii=False))
