"""Small releases, shaped as the official ones, of benchmarks about places and composition; and what comes out of them."""

import csv
import json

from tests.helpers.hub_copies import picture, write
from tests.helpers.releases import save_image, write_json

LETTER = "\nAnswer with the option's letter from the given choices directly."
FIGURE = 'Does this figure show "{}"? Please answer yes or no.'
CAPTION = "Provide a one-sentence caption for the provided image."


def write_json_lines(path, records):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


def write_vsr(data):
    def line(image, caption, label, relation, split="train2017"):
        return {
            "image": image,
            "image_link": f"http://images.cocodataset.org/{split}/{image}",
            "caption": caption,
            "label": label,
            "relation": relation,
            "subj": "car",
            "obj": "suitcase",
            "annotator_id": 2,
            "vote_true_validator_id": "[18, 2]",
            "vote_false_validator_id": "[1]",
        }

    lines = [
        line("000000017697.jpg", "The car is behind the suitcase.", 1, "behind"),
        line("000000017697.jpg", "The suitcase contains the {red} car.", 0, "contains"),
        line("000000001675.jpg", "The cat is on the keyboard.", 0, "behind", "val2017"),
    ]
    for split in ("random", "zeroshot"):
        write_json_lines(data / "vsr" / "splits" / split / "test.jsonl", lines)
    save_image(data / "vsr" / "images" / "000000017697.jpg")
    save_image(data / "coco" / "val2017" / "000000001675.jpg")


def write_whatsup(data):
    root = data / "whatsup"

    def controlled(folder, places, first, second):
        said = {place: f"A {first} {place.replace('_', ' ').replace('-', ' ')} a {second}" for place in places}
        return [
            {
                "image_path": f"data/{folder}/{first}_{place}_{second}.jpeg",
                "caption_options": [said[place], *(said[other] for other in places if other != place)],
            }
            for place in places
        ]

    sides = ["left_of", "right_of"]
    files = {
        "controlled_images_dataset.json": [
            *controlled("controlled_images", [*sides, "on", "under"], "beer-bottle", "armchair"),
            *controlled("controlled_images", [*sides, "on", "under"], "mug", "table"),
        ],
        "controlled_clevr_dataset.json": controlled(
            "controlled_clevr", [*sides, "in-front_of", "behind"], "cap", "fork"
        ),
    }
    for name, records in files.items():
        write_json(root / name, records)
        for record in records:
            save_image(root / record["image_path"].removeprefix("data/"))


def write_whatsup_photos(data):
    root = data / "whatsup"
    one = ["A photo of a dog on the left", "A photo of a dog on the right"]
    two = ["A photo of a cat above a bed", "A photo of a cat below a bed"]
    write_json(root / "coco_qa_one_obj.json", [[42, *one], [73, *one], [73, *reversed(one)]])
    write_json(root / "coco_qa_two_obj.json", [[42, *two]])
    write_json(root / "vg_qa_one_obj.json", [["2335839", *one]])
    write_json(root / "vg_qa_two_obj.json", [["2335839", "A cup in front of a man", "A cup behind a man"]])
    for number in (42, 73):
        save_image(data / "coco" / "val2017" / f"{number:012d}.jpg")
    save_image(root / "vg_images" / "2335839.jpg")


def write_winoground(data):
    def example(number, captions, tag):
        return {
            "id": number,
            "image_0": f"ex_{number}_img_0",
            "image_1": f"ex_{number}_img_1",
            "caption_0": captions[0],
            "caption_1": captions[1],
            "tag": "Adjective-Age",
            "secondary_tag": "",
            "num_main_preds": 1,
            "collapsed_tag": tag,
        }

    examples = [
        example(0, ["an old person kisses a young person", "a young person kisses an old person"], "Object"),
        example(1, ["a dog chases a cat", "a cat chases a dog"], "Both"),
        example(2, ["a cup on a book", "a book on a cup"], "Both"),
    ]
    write_json_lines(data / "winoground" / "data" / "examples.jsonl", examples)
    for own in examples:
        for name in (own["image_0"], own["image_1"]):
            save_image(data / "winoground" / "data" / "images" / f"{name}.png")


def write_sugarcrepe(data):
    """Two kinds share a photo; of the first there are three more pairs, each about a photo of its own."""
    for number, kind in enumerate(
        ("add_obj", "add_att", "replace_obj", "replace_att", "replace_rel", "swap_obj", "swap_att")
    ):
        photos = {"0": number // 2} | ({"3": 10, "4": 11, "5": 12} if number == 0 else {})
        captions = {"caption": f"A {kind} cat. ", "negative_caption": f"A {kind} dog."}
        pairs = {name: {"filename": f"{photo:012d}.jpg", **captions} for name, photo in photos.items()}
        write_json(data / "sugarcrepe" / f"{kind}.json", pairs)
        for pair in pairs.values():
            save_image(data / "sugarcrepe" / "val2017" / pair["filename"])


def write_mmvp(data):
    root = data / "mmvp"
    rows = [
        (1, "Are the wings open or closed?", "(a) Open (b) Closed", "(a)"),
        (2, "Are the wings open or closed?", "(a) Open (b) Closed", "(b)"),
        (99, "Does the elephant have long or short tusks?", "(a) Long (b) Short", "(a)"),
        (100, "Does the elephant have long or short tusks?", "(a) Long (b) Short", "(b)"),
    ]
    root.mkdir(parents=True, exist_ok=True)
    with open(root / "Questions.csv", "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("Index", "Question", "Options", "Correct Answer"), *rows])
    for index, *_ in rows:
        save_image(root / "MMVP Images" / f"{index}.jpg")


def write_naturalbench(root):
    def row(index, questions, kind, answers):
        places = [(i, q) for q in range(2) for i in range(2)]
        return {
            "Index": index,
            "Image_0": picture(color="red"),
            "Image_1": picture(color=("green", "blue", "white")[index]),
            **{f"Question_{number}": question for number, question in enumerate(questions)},
            **{f"Image_{i}_Question_{q}": answers[i != q] for i, q in places},
            "Question_Type": kind,
            "Source": "Flickr30K",
        }

    rows = [
        row(0, ["Is it a dog?", "Is it a cat?"], "yes_no", ["Yes", "No"]),
        row(
            1,
            ["Where is it? Option: A: inside; B: outside;", "Where? Option: A: outside; B: inside;"],
            "multiple_choice",
            ["A", "B"],
        ),
        row(2, ["Is it red?", "Is it white?"], "yes_no", ["Yes", "No"]),
    ]
    write(root / "data" / "train-00000-of-00002.parquet", rows, split=2)


SPATIAL_WRITERS = {
    "vsr": write_vsr,
    "vsr_zeroshot": write_vsr,
    "whatsup": write_whatsup,
    "whatsup_photos": write_whatsup_photos,
    "winoground": write_winoground,
    "winoground_caption": write_winoground,
    "sugarcrepe": write_sugarcrepe,
    "sugarcrepe_caption": write_sugarcrepe,
    "mmvp": write_mmvp,
    "naturalbench": lambda data: write_naturalbench(data / "naturalbench"),
}
SPATIAL_COPIES = {"naturalbench": write_naturalbench}

_VSR = (
    'Based on the image, is this statement "True" or "False"? The car is behind the suitcase.\n'
    'Respond with "True" or "False" directly.',
    "behind",
    ["True", "It is not so: false.", "maybe"],
    {"score": 2 / 3, "by_relation": {"behind": 0.5, "contains": 1.0}, "true_ratio": 1 / 3},
)
_FITS_OF_WINOGROUND = ["2", "1", "1", "3", "2", "1", "2", "3", "0.5", "0.5", "-1", "1"]
_SCORES_OF_WINOGROUND = {"score": 1 / 3, "text": 2 / 3, "image": 2 / 3, "by_tag": {"Object": 1.0, "Both": 0.0}}
_FITS_OF_SUGARCREPE = ["-1", "-2", "-3", "-3", "2", "1", "1", "2"] + ["1e-3", "0"] + ["0", "1"] * 5
_SCORES_OF_SUGARCREPE = {"score": (0.5 + 1) / 7, "accuracy": 3 / 10}
# name: (prompt of the first item, its type, answers in item order, scores that must come out)
SPATIAL_CASES = {
    "vsr": _VSR,
    "vsr_zeroshot": _VSR,
    "whatsup": (
        "Which caption best describes the image?\nA. A beer-bottle left of a armchair\nB. A beer-bottle right of a armchair\n"
        "C. A beer-bottle on a armchair\nD. A beer-bottle under a armchair" + LETTER,
        "controlled_a",
        ["A", "B", "C", "D", "B", "C", "A", "A", "A", "B", "C", "C"],
        {"score": (7 / 8 + 3 / 4) / 2, "pair": (3 / 4 + 1 / 2) / 2, "set": 1 / 4},
    ),
    "whatsup_photos": (
        "Which caption best describes the image?\nA. A photo of a dog on the left\nB. A photo of a dog on the right"
        + LETTER,
        "coco_one",
        ["A", "B", "A", "A", "A photo of a dog on the left", "A"],
        {"score": (2 / 3 + 1 + 1 + 1) / 4},
    ),
    "winoground": (
        FIGURE.format("an old person kisses a young person"),
        "Object",
        _FITS_OF_WINOGROUND,
        _SCORES_OF_WINOGROUND,
    ),
    "winoground_caption": (CAPTION, "Object", _FITS_OF_WINOGROUND, _SCORES_OF_WINOGROUND),
    "sugarcrepe": (FIGURE.format("A add_obj cat."), "add_obj", _FITS_OF_SUGARCREPE, _SCORES_OF_SUGARCREPE),
    "sugarcrepe_caption": (CAPTION, "add_obj", _FITS_OF_SUGARCREPE, _SCORES_OF_SUGARCREPE),
    "mmvp": (
        "Are the wings open or closed? (a) Open (b) Closed" + LETTER,
        "all",
        ["(a)", "Closed.", "b", "(b) Short"],
        {"score": 0.5, "accuracy": 0.75, "by_rule": {"corrected": 0.5, "released_labels": 0.5, "lmms_eval": 0.0}},
    ),
    "naturalbench": (
        "Is it a dog?Please answer Yes or No.",
        "yes_no",
        ["Yes", "No", "no", "YES"] + ["Yes"] * 4 + ["A", "It is a B", "b", "A"],
        {"score": 1 / 3, "Q_Acc": (1 + 0 + 0.5) / 3, "I_Acc": (1 + 0 + 0.5) / 3, "Acc": (4 + 2 + 3) / 12},
    ),
}
