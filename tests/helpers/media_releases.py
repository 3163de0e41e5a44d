"""Small releases, shaped as the official ones, of benchmarks that show several images or videos.

Videos are files with a name and no contents: nothing here decodes them.
"""

import json

from tests.helpers.hub_copies import picture, write
from tests.helpers.releases import save_image, write_json


def save_video(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"no video, but a file")


def write_mmmu(root):
    def row(name, question, options, answer, kind, count):
        images = {f"image_{n}": picture(color=("red", "green")[n - 1]) if n <= count else None for n in range(1, 8)}
        return {
            "id": name,
            "question": question,
            "options": repr(options),
            "explanation": "",
            **images,
            "img_type": "['Tables']",
            "answer": answer,
            "topic_difficulty": "Medium",
            "question_type": kind,
            "subfield": "Any",
        }

    rows = {
        "Accounting": row("validation_Accounting_1", "<image 1> What is due?", ["$6", "$7"], "B", "multiple-choice", 1),
        "Art": row(
            "validation_Art_3", "Which is like <image 1>?", ["<image 1>", "<image 2>"], "B", "multiple-choice", 2
        ),
        "Math": row("validation_Math_15", "Find x in <image 1>.", [], "['24/7', '3.429']", "open", 1),
    }
    for subject, own in rows.items():
        write(root / subject / "validation-00000-of-00001.parquet", [own])


def write_mmstar(root):
    def row(index, question, answer, category, kind):
        return {
            "index": index,
            "question": question,
            "image": picture(color=("red", "green", "blue")[index]),
            "answer": answer,
            "category": category,
            "l2_category": kind,
            "meta_info": {"source": "MMBench", "split": "val", "image_path": f"images/{index}.jpg"},
        }

    rows = [
        row(0, "Where is the bag?\nOptions: A: on a cat, B: on a book, C: 7, 8, D: no", "B", "math", "geometry"),
        row(1, "How many?\nChoices:\n(A) one\n(B) two", "A", "math", "geometry"),
        row(2, "Whose?\nOptions: A: mine, B: yours, C: his, D: hers", "D", "coarse perception", "image emotion"),
    ]
    write(root / "mmstar.parquet", rows)


def write_realworldqa(root):
    rows = [
        {
            "image": picture(),
            "question": "Where does it face?\n\nA. Left\nB. Right\nPlease answer directly with only the letter of the "
            "correct option and nothing else.",
            "answer": "A",
        },
        {
            "image": picture(color="blue"),
            "question": "How many cars?\nPlease answer directly with a single word or number.",
            "answer": "2",
        },
    ]
    write(root / "data" / "test-00000-of-00001.parquet", rows)


def write_blink(root):
    def row(task, number, choices, answer, count):
        images = {f"image_{n}": picture(color=("red", "green")[n - 1]) if n <= count else None for n in range(1, 5)}
        listed = "\n".join(f"({letter}) {choice}" for letter, choice in zip("ABCD", choices, strict=False))
        return {
            "idx": f"val_{task}_{number}",
            "question": "Which?",
            "sub_task": task,
            **images,
            "choices": choices,
            "answer": answer,
            "prompt": f"Which one?\nSelect from the following choices.\n{listed}",
        }

    art = [row("Art_Style", n, ["the second image", "the third image"], f"({a})", 2) for n, a in ((1, "A"), (2, "B"))]
    write(root / "Art_Style" / "val-00000-of-00001.parquet", art)
    counting = [row("Counting", 1, ["1", "2", "3", "0"], "(C)", 1)]
    write(root / "Counting" / "val-00000-of-00001.parquet", counting)


def write_mathvista(root):
    def row(pid, question, kind, answer_type, answer, choices=None, precision=None, unit=None):
        metadata = {
            "category": "math-targeted-vqa",
            "context": "bar chart",
            "grade": "high school",
            "img_height": 10,
            "img_width": 20,
            "language": "english",
            "skills": ["arithmetic reasoning", "statistical reasoning"][: int(pid)],
            "source": "IconQA",
            "split": "testmini",
            "task": "figure question answering",
        }
        return {
            "pid": pid,
            "question": question,
            "image": f"images/{pid}.jpg",
            "decoded_image": picture(color=("red", "green", "blue", "white")[int(pid) - 1]),
            "choices": choices,
            "unit": unit,
            "precision": precision,
            "answer": answer,
            "question_type": kind,
            "answer_type": answer_type,
            "metadata": metadata,
            "query": f"Hint: …\nQuestion: {question}",
        }

    rows = [
        row("1", "How long?", "free_form", "float", "1.2", precision=1.0, unit="cm"),
        row("2", "Which part?", "multi_choice", "text", "3/5", choices=["3/11", "3/5"]),
        row("3", "How many?", "free_form", "integer", "14"),
        row("4", "When?", "free_form", "list", "[2007, 2008]"),
    ]
    write(root / "data" / "testmini-00000-of-00001-725687bf7a18d64b.parquet", rows)


def write_mp_docvqa_pages(data):
    entry = {
        "questionId": 24581,
        "question": "What is the name of the company?",
        "doc_id": "nkbl0226",
        "page_ids": ["nkbl0226_p0", "nkbl0226_p1"],
        "answers": ["ITC Limited"],
        "answer_page_idx": 0,
        "data_split": "val",
    }
    header = {"dataset_name": "MP-DocVQA", "dataset_version": "1.0", "dataset_split": "val"}
    write_json(data / "mp_docvqa" / "val.json", header | {"data": [entry]})
    for page in entry["page_ids"]:
        save_image(data / "mp_docvqa" / "images" / f"{page}.jpg")


def write_mp_docvqa(root):
    row = {
        "questionId": "24581",
        "question": "What is the name of the company?",
        "doc_id": "nkbl0226",
        "page_ids": "['nkbl0226_p0', 'nkbl0226_p1']",
        "answers": "['ITC Limited']",
        "answer_page_idx": "0",
        "data_split": "val",
        **{f"image_{n}": picture() if n < 3 else None for n in range(1, 21)},
    }
    write(root / "data" / "val-00000-of-00001.parquet", [row])


def write_videomme(data):
    def row(video, number, duration, domain, answer):
        return {
            "video_id": f"{video:03}",
            "duration": duration,
            "domain": domain,
            "sub_category": "Humanity & History",
            "url": "https://example.org/watch",
            "videoID": f"video{video}",
            "question_id": f"{video:03}-{number}",
            "task_type": "Counting Problem",
            "question": "How many apples are there?",
            "options": ["A. One.", "B. Two.", "C. Three.", "D. Four."],
            "answer": answer,
        }

    root = data / "videomme"
    rows = [
        row(1, 1, "short", "Knowledge", "C"),
        row(1, 2, "short", "Knowledge", "A"),
        row(2, 1, "long", "Life Record", "B"),
    ]
    write(root / "videomme" / "test-00000-of-00001.parquet", rows)
    save_video(root / "data" / "video1.mp4")
    save_video(root / "data" / "video2.mkv")
    (root / "subtitle").mkdir()
    (root / "subtitle" / "video1.srt").write_text(
        '1\n00:00:00,166 --> 00:00:01,300\n<font color="white" size=".72c">Hi there,</font>\n\n'
        "2\n00:00:01,300 --> 00:00:02,000\nHi there,\n\n3\n00:00:02,000 --> 00:00:03,000\nthree apples\nin a bowl.\n",
        encoding="utf-8",
    )


def write_mvbench(data):
    from mllm.evaluation.benchmarks.mvbench import FOLDERS

    bound = {"start": 5.9, "end": 11.25}
    root = data / "mvbench"
    for number, (task, folders) in enumerate(FOLDERS.items()):
        question = {
            "video": f"{number}.mp4",
            "question": "What happened?",
            "candidates": ["It fell.", "It rose.", "Not sure"],
            "answer": "It rose.",
        }
        has_bound = task in ("action_localization", "action_prediction", "episodic_reasoning")
        write_json(root / "json" / f"{task}.json", [question | (bound if has_bound else {})])
        save_video(root / "video" / folders[-1 if task == "action_prediction" else 0] / f"{number}.mp4")


def write_nextqa(data):
    root = data / "nextqa"
    root.mkdir(parents=True)
    options = "clap,sit down,lay on floor,pick it up,crawl"
    (root / "test.csv").write_text(
        "video,frame_count,width,height,question,answer,qid,type,a0,a1,a2,a3,a4\n"
        f'2574374895,719,320,240,"what did the baby do, at last",2,8,TP,{options}\n'
        f"2574374895,719,320,240,why did it laugh,1,9,CW,{options}\n"
        f"2925959064,1233,500,375,where is this,0,1,DL,{options}\n"
    )
    places = {"2574374895": "1164/2574374895", "2925959064": "0001/2925959064"}
    (root / "map_vid_vidorID.json").write_text(json.dumps(places))
    for place in places.values():
        save_video(root / "NExTVideo" / f"{place}.mp4")


PARQUET = {
    "mmmu": write_mmmu,
    "mmstar": write_mmstar,
    "realworldqa": write_realworldqa,
    "blink": write_blink,
    "mathvista": write_mathvista,
}
MEDIA_COPIES = PARQUET | {"mp_docvqa": write_mp_docvqa}
MEDIA_WRITERS = {name: (lambda data, n=name, w=writer: w(data / n)) for name, writer in PARQUET.items()} | {
    "mp_docvqa": write_mp_docvqa_pages,
    "videomme": write_videomme,
    "videomme_subtitles": write_videomme,
    "mvbench": write_mvbench,
    "nextqa": write_nextqa,
}
