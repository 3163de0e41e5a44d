"""The data sets of the hub that hold benchmarks, and what their columns mean.

Columns, splits and file names are those of the repositories' data set cards (`dataset_info`, `configs`), and of what
lmms-eval does with them. `lmms-lab/X` was renamed `lmms-lab-encoder/X`; a source may have either name.
"""

import re
from collections.abc import Sequence
from typing import Any

from mllm.errors import UserError
from mllm.evaluation.benchmark import Item
from mllm.evaluation.benchmarks import mmbench, scienceqa, textvqa
from mllm.evaluation.benchmarks.coco_captions import CocoCaptions
from mllm.evaluation.hub import GroupOf, HubLayout, Items, Record, Row
from mllm.evaluation.metrics.mmbench_circular import ROTATION
from mllm.evaluation.official import lettered, lettered_lines
from mllm.media.decode import read_image_size

_COCO_NUMBER = re.compile(r"COCO_\w+?_(\d{12})")


def _vqav2(row: Row) -> Sequence[Item]:
    kinds = {"question_type": row["question_type"], "answer_type": row["answer_type"]}
    answers = [answer["answer"] for answer in row["answers"]]
    return [row.item(str(row["question_id"]), row["question"], answers, row["answer_type"], **kinds)]


def _gqa(row: Row) -> Sequence[Item]:
    if not row["isBalanced"]:
        return []
    types = {name: row["types"][name] for name in ("structural", "semantic", "detailed")}
    return [row.item(row["id"], row["question"], [row["answer"]], types["structural"], **types)]


def _textvqa(row: Row) -> Sequence[Item]:
    return [row.item(str(row["question_id"]), row["question"], row["answers"])]


def _textvqa_ocr(row: Row) -> Sequence[Item]:
    question = textvqa.with_tokens(row["question"], row["ocr_tokens"])
    return [row.item(str(row["question_id"]), question, row["answers"])]


def _docvqa(row: Row) -> Sequence[Item]:
    kind = next(iter(row.record.get("question_types") or ()), "all")
    return [row.item(str(row["questionId"]), row["question"], row["answers"], kind)]


def _infovqa(row: Row) -> Sequence[Item]:
    return [row.item(str(row["questionId"]), row["question"], row["answers"])]


def _chartqa(row: Row) -> Sequence[Item]:
    kind = row["type"].removesuffix("_test")
    return [row.item(str(row.number), row["question"], [row["answer"]], kind, group=kind)]


def _chartqa_by_label(row: Row) -> Sequence[Item]:
    kind = ("human", "augmented")[row["human_or_machine"]]
    return [row.item(str(row.number), row["query"], row["label"], kind, group=kind)]


def _ocrbench(row: Row) -> Sequence[Item]:
    kind, dataset = row["question_type"], row["dataset"]
    return [row.item(str(row.number), row["question"], row["answer"], kind, dataset_name=dataset, type=kind)]


def _ai2d(row: Row) -> Sequence[Item]:
    options = lettered(row["options"])
    question = f"{row['question']}\n{lettered_lines(options)}"
    return [row.item(str(row.number), question, [list(options)[int(row["answer"])]], options=options)]


def _scienceqa(row: Row) -> Sequence[Item]:
    options, kind = lettered(row["choices"]), "text" if row.image is None else "image"
    question = scienceqa.question_text(row.record.get("hint", ""), row["question"], options)
    fields = {"has_image": row.image is not None, "subject": row["subject"], "options": options}
    return [row.item(str(row.number), question, [list(options)[row["answer"]]], kind, **fields)]


def _pope(row: Row) -> Sequence[Item]:
    kind = row["category"]
    return [row.item(f"{kind}-{row['question_id']}", row["question"].strip(), [row["answer"]], kind, group=kind)]


def _mme(row: Row) -> Sequence[Item]:
    task, image = row["category"], row["question_id"]
    return [row.item(f"{task}-{row.number}", row["question"], [row["answer"]], task, category=task, image=image)]


def _mmbench_circular(row: Row) -> Sequence[Item]:
    index, category = int(row["index"]), row["category"]
    fields: dict[str, Any] = {"index": index, "options": mmbench.options_of(row.record), "category": category}
    wider = row.record.get("L2-category", row.record.get("l2-category"))
    fields |= {"l2_category": wider} if wider else {}
    return [row.item(str(index), mmbench.question_text(row.record), [row["answer"]], category, **fields)]


def _mmbench(row: Row) -> Sequence[Item]:
    return _mmbench_circular(row) if int(row["index"]) < ROTATION else []


def _refcoco(row: Row) -> Sequence[Item]:
    if row.image is None:
        raise UserError(f"row {row.number} of {row.split} has no image")
    height, width = read_image_size(row.image)
    x, y, box_width, box_height = (float(value) for value in row["bbox"])
    corners = [x, y, x + box_width, y + box_height]
    fields = {"references": [corners], "width": width, "height": height}
    return [
        row.item(f"{row.number}-{place}", expression, (str(corners),), row.split, **fields)
        for place, expression in enumerate(row["answer"])
    ]


def _coco_captions(row: Row) -> Sequence[Item]:
    return [row.item(row.group, CocoCaptions.question, row["answer"])]


def _by(*columns: str) -> GroupOf:
    """What columns together say, as text."""
    return lambda record: "/".join(str(record[column]) for column in columns)


def _coco_number(record: Record) -> str:
    found = _COCO_NUMBER.search(record["file_name"])
    if found is None:
        raise ValueError(f"{record['file_name']!r} is no name of a COCO image")
    return str(int(found.group(1)))


def _mmbench_question(record: Record) -> str:
    return str(int(record["index"]) % ROTATION)


def _mmbench_layouts(items: Items) -> tuple[HubLayout, ...]:
    columns = ("index", "question", "hint", "A", "B", "C", "D", "answer", "category")
    return tuple(
        HubLayout(repository, {"dev": files}, columns, items, _mmbench_question)
        for repository, files in (("lmms-lab/MMBench", "en/dev-*.parquet"), ("lmms-lab/MMBench_EN", DEV))
    )


def _refcoco_layouts(repository: str, *splits: str) -> tuple[HubLayout, ...]:
    files = {split: f"data/{split}-*.parquet" for split in splits}
    return (HubLayout(repository, files, ("answer", "bbox", "file_name"), _refcoco, _coco_number),)


def _one(repository: str, pattern: str, columns: str, items: Items, group_of: GroupOf | None = None) -> HubLayout:
    split = pattern.rsplit("/", 1)[-1].split("-")[0]
    return HubLayout(repository, {split: pattern}, tuple(columns.split()), items, group_of)


DEV, TEST, VALIDATION = "data/dev-*.parquet", "data/test-*.parquet", "data/validation-*.parquet"
LAYOUTS: dict[str, tuple[HubLayout, ...]] = {
    "vqav2": (
        _one(
            "lmms-lab/VQAv2",
            VALIDATION,
            "question_id image_id question answers question_type answer_type",
            _vqav2,
            _by("image_id"),
        ),
    ),
    "gqa": (
        HubLayout(
            "lmms-lab/GQA",
            {"testdev": "testdev_balanced_instructions/testdev-*.parquet"},
            ("id", "imageId", "question", "answer", "isBalanced", "types"),
            _gqa,
            _by("imageId"),
            "testdev_balanced_images/testdev-*.parquet",
        ),
    ),
    "textvqa": (
        _one("lmms-lab/textvqa", VALIDATION, "question_id image_id question answers", _textvqa, _by("image_id")),
    ),
    "textvqa_ocr": (
        _one(
            "lmms-lab/textvqa",
            VALIDATION,
            "question_id image_id question answers ocr_tokens",
            _textvqa_ocr,
            _by("image_id"),
        ),
    ),
    "docvqa": (
        _one(
            "lmms-lab/DocVQA",
            "DocVQA/validation-*.parquet",
            "questionId question answers ucsf_document_id ucsf_document_page_no",
            _docvqa,
            _by("ucsf_document_id", "ucsf_document_page_no"),
        ),
    ),
    "infovqa": (
        _one(
            "lmms-lab/DocVQA",
            "InfographicVQA/validation-*.parquet",
            "questionId question answers image_url",
            _infovqa,
            _by("image_url"),
        ),
    ),
    "chartqa": (
        _one("lmms-lab/ChartQA", TEST, "type question answer", _chartqa),
        _one("HuggingFaceM4/ChartQA", TEST, "query label human_or_machine", _chartqa_by_label),
    ),
    "ocrbench": (_one("echo840/OCRBench", TEST, "dataset question question_type answer", _ocrbench),),
    "ai2d": (_one("lmms-lab/ai2d", TEST, "question options answer", _ai2d),),
    "scienceqa": (
        _one("lmms-lab/ScienceQA", "ScienceQA-FULL/test-*.parquet", "question choices answer hint subject", _scienceqa),
    ),
    "pope": (
        _one("lmms-lab/POPE", TEST, "question_id question answer category image_source", _pope, _by("image_source")),
    ),
    "mme": (_one("lmms-lab/MME", TEST, "question_id question answer category", _mme, _by("category", "question_id")),),
    "mmbench": _mmbench_layouts(_mmbench),
    "mmbench_circular": _mmbench_layouts(_mmbench_circular),
    # The splits that are those of the papers: val of RefCOCO and of RefCOCOg there holds Google's split beside UNC's
    # and UMD's (8,811 = 3,811 + 5,000 regions; 7,573 = 2,573 + 5,000).
    "refcoco": _refcoco_layouts("lmms-lab/RefCOCO", "testA", "testB"),
    "refcoco+": _refcoco_layouts("lmms-lab/RefCOCOplus", "val", "testA", "testB"),
    "refcocog": _refcoco_layouts("lmms-lab/RefCOCOg", "test"),
    "coco_captions": (
        _one("lmms-lab/COCO-Caption", "data/val-*.parquet", "answer file_name", _coco_captions, _coco_number),
    ),
}
