"""Copies of the hub's data sets, small: the official releases of `releases` as the repositories' parquet files hold them."""

import io

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def picture(size=(20, 10), color="red"):
    buffer = io.BytesIO()
    Image.new("RGB", size, color).save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": None}


def write(path, rows, split=1):
    """The rows in `split` files, each with the columns of the first row."""
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = {name: None for name in rows[0]}
    for number in range(split):
        own = rows[number::split] if split > 1 else rows
        arrays = {
            name: pa.array([row[name] for row in own], type=IMAGE if _is_image(name, rows) else None)
            for name in columns
        }
        target = path if split == 1 else path.with_name(path.name.replace("00000-of", f"{number:05d}-of"))
        pq.write_table(pa.table(arrays), target)


def _is_image(name, rows):
    """Whether a column holds images, also where every row lacks its one."""
    held = [row[name] for row in rows if row[name] is not None]
    return any(isinstance(own, dict) and "bytes" in own for own in held) or (not held and name.startswith("image"))


def write_vqav2(root):
    def row(number, question, kind, answer_type, words):
        return {
            "question_type": kind,
            "multiple_choice_answer": words[0],
            "answers": [{"answer": w, "answer_confidence": "yes", "answer_id": n} for n, w in enumerate(words, 1)],
            "image_id": 262148,
            "answer_type": answer_type,
            "question_id": number,
            "question": question,
            "image": picture(),
        }

    rows = [
        row(262148000, "Where is he looking?", "where is the", "other", ["down"] * 8 + ["at table", "skateboard"]),
        row(262148001, "Is it day?", "is it", "yes/no", ["yes"] * 10),
    ]
    write(root / "data" / "validation-00000-of-00002.parquet", rows, split=2)


def write_gqa(root):
    def row(name, question, image, answer, structural, balanced=True):
        return {
            "id": name,
            "imageId": image,
            "question": question,
            "answer": answer,
            "fullAnswer": f"It is {answer}.",
            "isBalanced": balanced,
            "groups": {"global": None, "local": "13-x"},
            "types": {"structural": structural, "semantic": "obj", "detailed": "existThat"},
            "semanticStr": "select: x (1)",
        }

    rows = [
        row("201307251", "Is it overcast?", "n161313", "no", "verify"),
        row("201640614", "Who is wearing the dress?", "n235859", "woman", "query"),
        row("20", "Never asked?", "n161313", "no", "verify", balanced=False),
    ]
    write(root / "testdev_balanced_instructions" / "testdev-00000-of-00001.parquet", rows)
    images = [{"id": name, "image": picture()} for name in ("n235859", "n161313")]
    write(root / "testdev_balanced_images" / "testdev-00000-of-00001.parquet", images)


def write_textvqa(root):
    row = {
        "image_id": "003a8ae2ef43b901",
        "question_id": 34602,
        "question": "what is the brand of this camera?",
        "question_tokens": ["what"],
        "image": picture(),
        "image_width": 1024,
        "image_height": 664,
        "answers": ["nous les gosses", "dakota", "clos culombu", "dakota digital"] + ["dakota"] * 6,
        "image_classes": ["Camera"],
        "set_name": "val",
        "ocr_tokens": ["DAKOTA", "DIGITAL"],
    }
    write(root / "data" / "validation-00000-of-00001.parquet", [row])


def write_docvqa(root):
    row = {
        "questionId": "49153",
        "question": "What is the ‘actual’ value per 1000, during the year 1975?",
        "question_types": ["figure/diagram"],
        "image": picture(),
        "docId": 14465,
        "ucsf_document_id": "pybv0228",
        "ucsf_document_page_no": "81",
        "answers": ["0.28"],
        "data_split": "val",
    }
    write(root / "DocVQA" / "validation-00000-of-00001.parquet", [row])
    row = {
        "questionId": "98313",
        "question": "Which social platform has heavy female audience?",
        "answers": ["pinterest"],
        "answer_type": ["single span"],
        "image": picture(),
        "image_url": "https://example.org/37313.jpeg",
        "operation/reasoning": ["arithmetic"],
        "ocr": "{}",
        "data_split": "val",
    }
    write(root / "InfographicVQA" / "validation-00000-of-00001.parquet", [row])


CHARTS = [
    ("human_test", "How many food item is shown in the bar graph?", "14", picture()),
    ("augmented_test", "How many stores did Saint Laurent operate?", "267", picture(color="blue")),
]


def write_chartqa(root):
    rows = [{"type": kind, "question": q, "answer": a, "image": image} for kind, q, a, image in CHARTS]
    write(root / "data" / "test-00000-of-00001.parquet", rows)


def write_chartqa_by_label(root):
    rows = [
        {"image": image, "query": q, "label": [a], "human_or_machine": number}
        for number, (_, q, a, image) in enumerate(CHARTS)
    ]
    write(root / "data" / "test-00000-of-00001-e2cd0b7a0f9eb20d.parquet", rows)


def write_ocrbench(root):
    rows = [
        {
            "dataset": "IIIT5K",
            "question": "what is written in the image?",
            "question_type": "Regular Text Recognition",
            "answer": ["CENTRE"],
            "image": picture(),
        },
        {
            "dataset": "HME100k",
            "question": "Please write out the expression of the formula in the image using LaTeX format.",
            "question_type": "Handwritten Mathematical Expression Recognition",
            "answer": ["x ^ { 2 }"],
            "image": picture(color="blue"),
        },
    ]
    write(root / "data" / "test-00000-of-00001.parquet", rows)


def write_ai2d(root):
    row = {
        "question": "What is A in the diagram?",
        "options": ["ears", "nose", "mouth", "face"],
        "answer": "3",
        "image": picture(),
    }
    write(root / "data" / "test-00000-of-00001.parquet", [row])


def write_scienceqa(root):
    def row(image, answer, hint):
        return {
            "image": image,
            "question": "Which of these states is farthest north?",
            "choices": ["West Virginia", "Louisiana", "Arizona"],
            "answer": answer,
            "hint": hint,
            "task": "closed choice",
            "grade": "grade2",
            "subject": "social science",
        }

    rows = [row(picture(), 0, ""), row(None, 1, "Think of a map.")]
    write(root / "ScienceQA-FULL" / "test-00000-of-00001.parquet", rows)


def write_pope(root):
    rows = [
        {
            "id": str(place),
            "question_id": str(number),
            "question": f"Is there a {thing} in the image?",
            "answer": label,
            "image_source": "COCO_val2014_000000310196",
            "image": picture(),
            "category": kind,
        }
        for place, (kind, (number, thing, label)) in enumerate(
            (kind, question)
            for kind in ("random", "popular", "adversarial")
            for question in ((1, "snowboard", "yes"), (2, "fire hydrant", "no"))
        )
    ]
    write(root / "data" / "test-00000-of-00001.parquet", rows)


def write_mme(root):
    from mllm.evaluation.benchmarks.mme import COGNITION, PERCEPTION

    rows = [
        {
            "question_id": f"{task}/1.jpg",
            "image": picture(),
            "question": f"Is there a {thing} in this image? Please answer yes or no.",
            "answer": gold,
            "category": task,
        }
        for task in (*PERCEPTION, *COGNITION)
        for thing, gold in (("dog", "Yes"), ("cat", "No"))
    ]
    write(root / "data" / "test-00000-of-00001.parquet", rows)


def write_mmbench(root, folder="en", wider="L2-category"):
    options = ["leaf", "root", "stem"]
    rows = []
    for turn in range(3):
        turned = options[turn:] + options[:turn]
        rows.append(
            {
                "index": 241 + turn * 10**6,
                "question": "Which part is brown?",
                "hint": "nan",
                "answer": "ABC"[turned.index("root")],
                **dict(zip("ABC", turned, strict=True)),
                "D": "nan",
                "category": "identity_reasoning",
                "image": picture(color="blue"),
                "source": "scienceqa",
                wider: "attribute_reasoning",
                "comment": "nan",
                "split": "dev",
            }
        )
    write(root / folder / "dev-00000-of-00001.parquet", rows)


def write_refcoco(root, splits=("testA",)):
    for split in splits:
        row = {
            "question_id": "1719310",
            "image": picture((100, 50)),
            "question": "Please carefully observe the area circled in the image.",
            "answer": ["the lady with the blue shirt"],
            "segmentation": [1.0, 2.0],
            "bbox": [20.0, 10.0, 40.0, 20.0],
            "iscrowd": 0,
            "file_name": "COCO_train2014_000000581857_16.jpg",
        }
        write(root / "data" / f"{split}-00000-of-00001.parquet", [row])


def write_coco(root):
    texts = {42: ["A dog on a couch.", "A puppy sleeps"], 73: ["A red bike.", "a bicycle"]}
    rows = [
        {
            "question_id": f"COCO_val2014_{number:012d}.jpg",
            "image": picture(),
            "question": "Please carefully observe the image and come up with a caption for the image",
            "answer": captions,
            "id": number,
            "file_name": f"COCO_val2014_{number:012d}.jpg",
        }
        for number, captions in texts.items()
    ]
    write(root / "data" / "val-00000-of-00001.parquet", rows)


COPIES = {
    "vqav2": write_vqav2,
    "gqa": write_gqa,
    "textvqa": write_textvqa,
    "textvqa_ocr": write_textvqa,
    "docvqa": write_docvqa,
    "infovqa": write_docvqa,
    "chartqa": write_chartqa,
    "ocrbench": write_ocrbench,
    "ai2d": write_ai2d,
    "scienceqa": write_scienceqa,
    "pope": write_pope,
    "mme": write_mme,
    "mmbench": write_mmbench,
    "mmbench_circular": write_mmbench,
    "refcoco": lambda root: write_refcoco(root, ("val", "testA", "testB")),
    "refcoco+": lambda root: write_refcoco(root, ("val", "testA")),
    "refcocog": lambda root: write_refcoco(root, ("val", "test")),
    "coco_captions": write_coco,
}
