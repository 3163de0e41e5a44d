"""The page that ends the demo: three chats, scores beside blind controls, answers right and wrong, and what to do next.

It is one file and fetches nothing. Tables, drawings and cards are those of the evaluation's report.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from mllm.evaluation.medium import Medium
from mllm.evaluation.report import answer_card, draw_intervals, score_table
from mllm.evaluation.scoring import Answer, Score
from mllm.html import draw_curve, write_html
from mllm.media.data_url import thumbnail_url

PAGE = "index.html"
BY = "make demo"
SAMPLES = Path("data_recipes/demo/samples")
PICTURE_PX = 160
SHOWN = 4
OWN_STYLE = "pre{white-space:pre-wrap;overflow-wrap:anywhere}.card p{margin:.4rem 0}"
LEAD = (
    "It was trained on this machine: EfficientNet-lite0, which knows ImageNet's photographs, a projector, and "
    "SmolLM2-135M, linked the LLaVA way. No picture, question or answer on this page is chosen by hand."
)
CONTROLS = (
    "In %, with 95% intervals. The same questions are asked with the image <i>withheld</i> and with another image "
    "(<i>swapped</i>), and answered with the commonest training answer to each (<i>majority</i>). What a model reaches "
    "beyond these, it sees."
)
QUESTIONS = {
    "shape.png": ("What color is the shape?", "is there a circle?"),
    "drawing.png": ("What is this?", "Which category fits the picture?"),
    "word.png": ("What word is written here?",),
}
ASKED = {
    "easyvqa": "One coloured shape: which shape, which colour, is it there? Chance is a third for the shape, an eighth for "
    "the colour and a half for yes or no. These are questions of easy-VQA's own test split.",
    "naming": "What is this, of four names? Training never heard any of the four, nor saw the drawing or emoji: what it "
    "shows has to be told by what the words mean. Chance is 25 %.",
    "clipart": "Which of 16 categories fits a drawing by a person? Chance is 6 %.",
    "ocr_words": "Which of 24 words is written here, in a font in which training never showed this word? Chance is 4 %.",
}
STAGES = {
    "stage0": "stage 0: the language model, from questions about captions",
    "stage1": "stage 1: the projector, from captions of images",
    "stage2": "stage 2: all parts, from questions about images",
}
NEXT = (
    ("Talk to it about a picture of yours", "mllm chat runs/demo/stage2 --image my_picture.png"),
    (
        "Train it further on images of yours: a line of JSON for each sample, as in runs/demo/data/instruct.jsonl, in a file "
        "that a recipe names, as data_recipes/demo/instruct.yaml does",
        "mllm train train/configs/demo_stage2.yaml --set data.recipe=my_recipe.yaml model.init_from=runs/demo/stage2/final "
        "run_dir=runs/mine",
    ),
    (
        "Score it on questions of yours: a line of JSON for each, with id, image, question and answer",
        "mllm eval runs/demo/stage2 --benchmarks my_questions.jsonl:exact_match",
    ),
    ("Serve it by OpenAI's API, with a page to chat on", "mllm serve runs/demo/stage2"),
    (
        "Take it along as one directory, in half the bytes; --layout hf and gguf are for models without pixel shuffle",
        "mllm export runs/demo/stage2 exported --layout mllm --dtype bfloat16",
    ),
)


@dataclass(frozen=True)
class Chat:
    """A picture, and the questions about it with the model's answers."""

    image: Path
    turns: tuple[tuple[str, str], ...]

    def as_text(self) -> str:
        return "\n".join([str(self.image), *(f"  > {question}\n  {answer}" for question, answer in self.turns)])


def hold_chats(model_dir: Path) -> list[Chat]:
    """Ask a model about the three sample pictures; the questions about one picture are one conversation."""
    import mllm

    model, processor = mllm.load(model_dir)
    chats = []
    for name, questions in QUESTIONS.items():
        session = mllm.ChatSession(model, processor, max_new_tokens=32)
        shown = [SAMPLES / name]
        answers = [session.ask(question, images=[] if n else shown) for n, question in enumerate(questions)]
        chats.append(Chat(SAMPLES / name, tuple(zip(questions, answers, strict=True))))
    return chats


def write_page(run: Path, chats: Sequence[Chat], took: Mapping[str, float]) -> None:
    """Write `index.html` into the demo's directory, from the chats and from what evaluation and training left there.

    took: seconds of each stage.
    """
    results = run / "stage2" / "eval"
    kept = f"All answers and scores: {results}. The model: {run / 'stage2' / 'final'}."
    body = [
        f"<style>{OWN_STYLE}</style><p>{LEAD}</p>",
        "<h2>Three chats</h2><div class=grid>",
        *map(_chat_card, chats),
        f"</div><h2>Scores on pictures never trained on</h2><p>{CONTROLS}</p>",
        *_scored(_scores(results / "results.json"), _answers(results / "answers.jsonl")),
        "<h2>Training</h2><p>The loss of every step, in nats for each supervised token, and its running mean.</p>",
        "<div class=row>",
        *(_curve(run, name, took) for name in STAGES),
        "</div><h2>What to do next</h2>",
        *(f"<p>{escape(what)}:</p><pre class=note>{escape(command)}</pre>" for what, command in NEXT),
        f"<p><small>{escape(kept)}</small></p>",
    ]
    write_html(run / PAGE, "Your first multimodal LLM", body, BY)


def _scored(scores: Mapping[str, Sequence[Score]], answers: Sequence[tuple[str, Answer]]) -> Iterator[str]:
    """Yield for each benchmark what it asks, its scores, and some right and wrong answers."""
    for name, entries in scores.items():
        yield f"<h3>{escape(name)}</h3><p>{escape(ASKED.get(name, ''))}</p>"
        kinds = {entry.type for entry in entries} - {"overall"}
        shown = [entry for entry in entries if entry.type == "overall" or len(kinds) > 1]
        yield f"<div class=row><div class=scroll>{score_table(shown)}</div>{draw_intervals(name, shown)}</div>"
        own = [answer for benchmark, answer in answers if benchmark == name and answer.condition == "model"]
        yield _gallery("right", [answer for answer in own if answer.score == 1.0])
        yield _gallery("wrong", [answer for answer in own if answer.score < 1.0])


def _scores(path: Path) -> dict[str, list[Score]]:
    found = json.loads(path.read_text(encoding="utf-8"))["scores"]
    return {name: [Score(**entry) for entry in entries] for name, entries in found.items()}


def _answers(path: Path) -> list[tuple[str, Answer]]:
    """Every answer with the name of its benchmark."""
    records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [(record.pop("benchmark"), _answer(record)) for record in records]


def _answer(record: dict[str, Any]) -> Answer:
    media = tuple(Medium(**medium) for medium in record["media"])
    return Answer(**record | {"references": tuple(record["references"]), "media": media})


def _chat_card(chat: Chat) -> str:
    picture = f"<img alt='' width={PICTURE_PX} src='{thumbnail_url(chat.image, PICTURE_PX)}'>"
    turns = "".join(f"<p>{escape(question)}<br><b>{escape(answer)}</b></p>" for question, answer in chat.turns)
    return f"<div class=card>{picture}{turns}</div>"


def _gallery(label: str, answers: Sequence[Answer]) -> str:
    """A few answers of a kind, from all over the benchmark."""
    shown = answers[:: max(1, len(answers) // SHOWN)][:SHOWN]
    if not shown:
        return f"<p>None of the answers is {label}.</p>"
    cards = "".join(answer_card(answer, label) for answer in shown)
    return f"<p>{len(shown)} of the {len(answers)} that are {label}:</p><div class='grid small'>{cards}</div>"


def _curve(run: Path, name: str, took: Mapping[str, float]) -> str:
    """The losses of a stage; nothing where the run's record was removed."""
    path = run / name / "metrics.jsonl"
    if not path.is_file():
        return ""
    steps = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    caption = f"{len(steps)} steps" + (f", {took[name] / 60:.0f} min" if name in took else "")
    return draw_curve(STAGES[name], [float(step["loss"]) for step in steps], caption)
