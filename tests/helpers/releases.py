"""Small benchmark releases, shaped exactly as the official ones: same file names, same keys, same nesting."""

import base64
import io
import json
import pickle

from PIL import Image


def save_image(path, size=(20, 10), color="red"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, color).save(path)


def write_json(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")


def write_vqav2(data):
    root = data / "vqav2"
    questions = [(262148000, 262148, "Where is he looking?"), (262148001, 262148, "Is it day?")]
    header = {"info": {"version": "2.0"}, "task_type": "Open-Ended", "data_type": "mscoco", "license": {}}
    write_json(
        root / "v2_OpenEnded_mscoco_val2014_questions.json",
        header
        | {
            "data_subtype": "val2014",
            "questions": [{"image_id": i, "question": q, "question_id": n} for n, i, q in questions],
        },
    )

    def answers(words):
        return [{"answer": w, "answer_confidence": "yes", "answer_id": n} for n, w in enumerate(words, 1)]

    write_json(
        root / "v2_mscoco_val2014_annotations.json",
        header
        | {
            "annotations": [
                {
                    "question_id": 262148001,
                    "image_id": 262148,
                    "question_type": "is it",
                    "answer_type": "yes/no",
                    "multiple_choice_answer": "yes",
                    "answers": answers(["yes"] * 10),
                },
                {
                    "question_id": 262148000,
                    "image_id": 262148,
                    "question_type": "where is the",
                    "answer_type": "other",
                    "multiple_choice_answer": "down",
                    "answers": answers(["down"] * 8 + ["at table", "skateboard"]),
                },
            ]
        },
    )
    save_image(root / "val2014" / "COCO_val2014_000000262148.jpg")


def write_gqa(data):
    def question(text, image, answer, structural, balanced=True):
        return {
            "semantic": [{"operation": "select", "dependencies": [], "argument": "x (1)"}],
            "entailed": [],
            "equivalent": [],
            "question": text,
            "imageId": image,
            "isBalanced": balanced,
            "groups": {"global": None, "local": "13-x"},
            "answer": answer,
            "semanticStr": "select: x (1)",
            "annotations": {"answer": {}, "question": {}, "fullAnswer": {}},
            "types": {"detailed": "existThat", "semantic": "obj", "structural": structural},
            "fullAnswer": f"It is {answer}.",
        }

    write_json(
        data / "gqa" / "testdev_balanced_questions.json",
        {
            "201307251": question("Is it overcast?", "n161313", "no", "verify"),
            "201640614": question("Who is wearing the dress?", "n235859", "woman", "query"),
            "20": question("Never asked?", "n161313", "no", "verify", balanced=False),
        },
    )
    for name in ("n161313", "n235859"):
        save_image(data / "gqa" / "images" / f"{name}.jpg")


def write_textvqa(data):
    root = data / "textvqa"
    entry = {
        "question": "what is the brand of this camera?",
        "image_id": "003a8ae2ef43b901",
        "image_classes": ["Camera"],
        "flickr_original_url": "",
        "flickr_300k_url": "",
        "image_width": 1024,
        "image_height": 664,
        "answers": ["nous les gosses", "dakota", "clos culombu", "dakota digital"] + ["dakota"] * 6,
        "question_tokens": ["what"],
        "question_id": 34602,
        "set_name": "val",
    }
    write_json(
        root / "TextVQA_0.5.1_val.json",
        {"dataset_type": "val", "dataset_name": "textvqa", "dataset_version": "0.5.1", "data": [entry]},
    )
    tokens = {"image_id": "003a8ae2ef43b901", "ocr_tokens": ["DAKOTA", "DIGITAL"], "ocr_info": []}
    write_json(root / "TextVQA_Rosetta_OCR_v0.2_val.json", {"dataset_name": "TextVQA OCR", "data": [tokens]})
    save_image(root / "train_images" / "003a8ae2ef43b901.jpg")


def write_docvqa(data):
    entry = {
        "questionId": 49153,
        "question": "What is the ‘actual’ value per 1000, during the year 1975?",
        "question_types": ["figure/diagram"],
        "image": "documents/pybv0228_81.png",
        "docId": 14465,
        "ucsf_document_id": "pybv0228",
        "ucsf_document_page_no": "81",
        "answers": ["0.28"],
        "data_split": "val",
    }
    write_json(
        data / "docvqa" / "val_v1.0_withQT.json",
        {"dataset_name": "SP-DocVQA", "dataset_split": "val", "dataset_version": "1.0", "data": [entry]},
    )
    save_image(data / "docvqa" / "documents" / "pybv0228_81.png")


def write_infovqa(data):
    entry = {
        "questionId": 98313,
        "question": "Which social platform has heavy female audience?",
        "image_local_name": "37313.jpeg",
        "image_url": "https://example.org/37313.jpeg",
        "ocr_output_file": "37313.json",
        "answers": ["pinterest"],
        "data_split": "val",
    }
    write_json(
        data / "infovqa" / "infographicsVQA_val_v1.0.json",
        {"dataset_name": "infographicVQA", "dataset_version": "1.0", "dataset_split": "val", "data": [entry]},
    )
    save_image(data / "infovqa" / "infographicsvqa_images" / "37313.jpeg")


def write_stvqa(data):
    entry = {
        "question_id": 1,
        "question": "What is written on the bus?",
        "answers": ["school bus"],
        "image_classification": [{"class": "school bus", "confidence": 0.9}],
        "file_path": "coco-text/COCO_train2014_000000000001.jpg",
        "file_name": "COCO_train2014_000000000001.jpg",
        "dataset": "coco-text",
        "set_name": "train",
    }
    write_json(data / "stvqa" / "train_task_3.json", {"dataset_name": "st_vqa", "set_name": "train", "data": [entry]})
    save_image(data / "stvqa" / "coco-text" / "COCO_train2014_000000000001.jpg")


def write_chartqa(data):
    root = data / "chartqa" / "test"
    human = {"imgname": "41699051005347.png", "query": "How many food item is shown in the bar graph?", "label": "14"}
    augmented = {"imgname": "two_col_100037.png", "query": "How many stores did Saint Laurent operate?", "label": "267"}
    write_json(root / "test_human.json", [human])
    write_json(root / "test_augmented.json", [augmented])
    for entry in (human, augmented):
        save_image(root / "png" / entry["imgname"])


def write_ocrbench(data):
    entries = [
        {
            "dataset_name": "IIIT5K",
            "id": 0,
            "image_path": "IIIT5K/test/1002_2.png",
            "question": "what is written in the image?",
            "answers": ["CENTRE"],
            "type": "Regular Text Recognition",
        },
        {
            "dataset_name": "HME100k",
            "id": 0,
            "image_path": "HME100k/test_1.jpg",
            "question": "Please write out the expression of the formula in the image using LaTeX format.",
            "answers": "x ^ { 2 }",
            "type": "Handwritten Mathematical Expression Recognition",
        },
    ]
    write_json(data / "ocrbench" / "OCRBench.json", entries)
    for entry in entries:
        save_image(data / "ocrbench" / "OCRBench_Images" / entry["image_path"])


def write_ai2d(data):
    root = data / "ai2d"
    for number in (0, 7):
        questions = {
            "What is A in the diagram?": {
                "abcLabel": True,
                "answerTexts": ["ears", "nose", "mouth", "face"],
                "correctAnswer": 3,
                "questionId": f"{number}.png-0",
            }
        }
        write_json(root / "questions" / f"{number}.png.json", {"imageName": f"{number}.png", "questions": questions})
        save_image(root / "images" / f"{number}.png")
    (root / "ai2d_test_ids.csv").write_text("7\n9\n")


def write_scienceqa(data):
    def problem(image, split, answer, hint):
        return {
            "question": "Which of these states is farthest north?",
            "choices": ["West Virginia", "Louisiana", "Arizona"],
            "answer": answer,
            "hint": hint,
            "image": image,
            "task": "closed choice",
            "grade": "grade2",
            "subject": "social science",
            "topic": "geography",
            "category": "Geography",
            "skill": "Read a map",
            "lecture": "Maps have four cardinal directions.",
            "solution": "To find the answer, look at the compass rose.",
            "split": split,
        }

    root = data / "scienceqa"
    problems = {
        "1": problem("image.png", "train", 0, ""),
        "4": problem("image.png", "test", 0, ""),
        "5": problem(None, "test", 1, "Think of a map."),
    }
    write_json(root / "problems.json", problems)
    splits = {"train": ["1"], "val": [], "test": ["4", "5"], "trainval": ["1"], "minival": [], "minitest": ["4"]}
    write_json(root / "pid_splits.json", splits)
    save_image(root / "images" / "test" / "4" / "image.png")


def write_pope(data):
    root = data / "pope"
    root.mkdir(parents=True)
    for kind in ("random", "popular", "adversarial"):
        entries = [
            {
                "question_id": n,
                "image": "COCO_val2014_000000310196.jpg",
                "text": f"Is there a {thing} in the image?",
                "label": label,
            }
            for n, (thing, label) in enumerate([("snowboard", "yes"), ("fire hydrant", "no")], 1)
        ]
        (root / f"coco_pope_{kind}.json").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    save_image(data / "coco" / "val2014" / "COCO_val2014_000000310196.jpg")


def write_mme(data):
    from mllm.evaluation.benchmarks.mme import COGNITION, PERCEPTION

    for task in (*PERCEPTION, *COGNITION):
        rows = [
            f"1.jpg\tIs there a {thing} in this image? Please answer yes or no.\t{gold}"
            for thing, gold in (("dog", "Yes"), ("cat", "No"))
        ]
        path = data / "mme" / f"{task}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(rows) + "\n")
        # artwork, celebrity, landmark, posters and scene keep their images one folder deeper
        save_image(data / "mme" / task / ("images" if task in PERCEPTION[4:9] else "") / "1.jpg")


def write_mmbench(data):
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), "blue").save(buffer, "JPEG")
    picture = base64.b64encode(buffer.getvalue()).decode()
    columns = ["index", "question", "hint", "A", "B", "C", "answer", "category", "image", "source", "l2-category"]
    columns = [*columns[:6], "D", *columns[6:], "comment", "split"]
    options = ["leaf", "root", "stem"]
    rows = []
    for turn in range(3):
        turned = options[turn:] + options[:turn]
        answer = "ABC"[turned.index("root")]
        image = picture if turn == 0 else "241"
        row = [str(241 + turn * 10**6), "Which part is brown?", "", *turned, "", answer, "identity_reasoning", image]
        rows.append([*row, "scienceqa", "attribute_reasoning", "", "dev"])
    text = "\n".join("\t".join(row) for row in [columns, *rows])
    path = data / "mmbench" / "MMBench_DEV_EN.tsv"
    path.parent.mkdir(parents=True)
    path.write_text(text + "\n", encoding="utf-8")


def write_refcoco(data, folder="refcoco", name="refs(unc).p"):
    root = data / folder

    def reference(number, split):
        return {
            "sent_ids": [number],
            "file_name": "COCO_train2014_000000581857_16.jpg",
            "ann_id": 1719310,
            "ref_id": number,
            "image_id": 581857,
            "split": split,
            "sentences": [
                {
                    "tokens": ["the", "lady"],
                    "raw": "THE LADY",
                    "sent_id": number,
                    "sent": "the lady with the blue shirt",
                }
            ],
            "category_id": 1,
        }

    root.mkdir(parents=True)
    references = [reference(0, "train"), reference(1, "val"), reference(2, "testA")]
    (root / name).write_bytes(pickle.dumps(references, protocol=2))
    image = {"id": 581857, "width": 100, "height": 50, "file_name": "COCO_train2014_000000581857.jpg", "license": 1}
    annotation = {"id": 1719310, "image_id": 581857, "bbox": [20.0, 10.0, 40.0, 20.0], "category_id": 1, "iscrowd": 0}
    content = {"info": {}, "licenses": [], "images": [image], "annotations": [annotation], "categories": []}
    write_json(root / "instances.json", content)
    save_image(root / "train2014" / "COCO_train2014_000000581857.jpg", (100, 50))


def write_coco(data):
    root = data / "coco"
    images = [{"id": n, "file_name": f"COCO_val2014_{n:012d}.jpg", "width": 20, "height": 10} for n in (42, 73)]
    texts = {42: ["A dog on a couch.", "A puppy sleeps"], 73: ["A red bike.", "a bicycle"]}
    captions = [
        {"image_id": n, "id": 10 * n + k, "caption": text} for n, own in texts.items() for k, text in enumerate(own)
    ]
    write_json(
        root / "annotations" / "captions_val2014.json",
        {"info": {}, "licenses": [], "images": images, "annotations": captions},
    )
    instances = [{"id": 1, "image_id": 42, "category_id": 72, "bbox": [0, 0, 5, 5], "iscrowd": 0}]
    write_json(
        root / "annotations" / "instances_val2014.json",
        {
            "info": {},
            "licenses": [],
            "images": images,
            "annotations": instances,
            "categories": [{"supercategory": "electronic", "id": 72, "name": "tv"}],
        },
    )
    for image in images:
        save_image(root / "val2014" / image["file_name"])


def write_flickr30k_entities(data):
    root = data / "flickr30k_entities"
    (root / "Annotations").mkdir(parents=True)
    (root / "Sentences").mkdir()
    boxes = {"283585": [(0, 0, 20, 40), (60, 0, 80, 40)], "283586": [(20, 10, 60, 30)], "283587": []}
    objects = "".join(
        f"<object><name>{chain}</name><bndbox><xmin>{a}</xmin><ymin>{b}</ymin><xmax>{c}</xmax><ymax>{d}</ymax></bndbox></object>"
        for chain, own in boxes.items()
        for a, b, c, d in own
    )
    scene = "<object><name>283587</name><scene>1</scene><nobndbox>0</nobndbox></object>"
    size = "<size><width>100</width><height>50</height><depth>3</depth></size>"
    for split, name in (("val", "1000092795"), ("test", "10002456")):
        (root / f"{split}.txt").write_text(f"{name}\n")
        (root / f"Annotations/{name}.xml").write_text(f"<annotation>{size}{objects}{scene}</annotation>")
        (root / f"Sentences/{name}.txt").write_text(
            "[/EN#283585/people Two young guys] with [/EN#283586/bodyparts/other shaggy hair] look in "
            "[/EN#283587/scene a yard] .\n"
            + ("A sentence with [/EN#0/notvisual nothing] to see .\n" if split == "test" else "")
        )
        save_image(root / "flickr30k-images" / f"{name}.jpg", (100, 50))


WRITERS = {
    "vqav2": write_vqav2,
    "gqa": write_gqa,
    "textvqa": write_textvqa,
    "textvqa_ocr": write_textvqa,
    "docvqa": write_docvqa,
    "infovqa": write_infovqa,
    "stvqa": write_stvqa,
    "chartqa": write_chartqa,
    "ocrbench": write_ocrbench,
    "ai2d": write_ai2d,
    "scienceqa": write_scienceqa,
    "pope": write_pope,
    "mme": write_mme,
    "mmbench": write_mmbench,
    "mmbench_circular": write_mmbench,
    "refcoco": write_refcoco,
    "refcoco+": lambda data: write_refcoco(data, "refcoco+"),
    "refcocog": lambda data: write_refcoco(data, "refcocog", "refs(umd).p"),
    "flickr30k_entities": write_flickr30k_entities,
    "coco_captions": write_coco,
    "coco_chair": write_coco,
}
