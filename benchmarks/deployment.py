"""Greedy answers of one model by `mllm chat`, by transformers from its export, and by llama.cpp: where do they part?

    python benchmarks/deployment.py --output runs/deployment
    python benchmarks/deployment.py --output runs/deployment --llama-python llama/bin/python \\
        --converter llama.cpp/convert_hf_to_gguf.py

Nothing is trained but a small model of coloured shapes (`deployed_model.py`) where `--model` names none. llama.cpp is asked
through the wheel of `xllamacpp` in a Python of its own; its script that converts language models comes with its sources. The
language model is tried in float32 and in float16, with the line break that our formats put behind an image, and without,
as a client that knows nothing of it asks.
"""

import argparse
import base64
import json
import random
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from deployed_model import COLOURS, QUESTION, SHAPES, draw, make_model
from measuring import machine, markdown_table
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

import mllm
from mllm.checkpoint.export import export
from mllm.commands.shared import configure_logging, run_command
from mllm.conversation.schema import ImagePart, Message, TextPart
from mllm.errors import UserError
from mllm.inference.answer import Answer
from mllm.inference.decoding import Decoding
from mllm.inference.generate import generate_answers
from mllm.inference.request import Request

IN_WORDS = (
    "What is the capital of France?",
    "Name three animals.",
    "What is two and two?",
    "Write a sentence about rain.",
)
ABOUT_A_PICTURE = (QUESTION, "Describe the picture.", "Which colour has the background?")
PICTURES = 8


@dataclass(frozen=True)
class Asked:
    """A question, with the file of a picture or without."""

    text: str
    image: str | None = None

    @property
    def message(self) -> Message:
        image = [ImagePart()] if self.image is not None else []
        return Message(role="user", content=(*image, TextPart(text=self.text)))

    def content(self, behind_image: str) -> Any:
        """As OpenAI's API has it; behind_image: what stands between the picture and the words."""
        if self.image is None:
            return self.text
        data = base64.b64encode(Path(self.image).read_bytes()).decode()
        picture = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}}
        return [picture, {"type": "text", "text": behind_image + self.text}]


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="Directory of the model, its exports and the table.")
    parser.add_argument("--model", help="A model directory of ours with a SigLIP encoder (default: one that is made).")
    parser.add_argument(
        "--llama-python", type=Path, help="A Python that has xllamacpp; without it llama.cpp is left out."
    )
    parser.add_argument("--converter", type=Path, help="convert_hf_to_gguf.py of llama.cpp, in its sources.")
    parser.add_argument("--max-new-tokens", type=int, default=32)
    options = parser.parse_args(arguments)
    configure_logging()
    output, limit = options.output, options.max_new_tokens
    output.mkdir(parents=True, exist_ok=True)
    source = options.model or str(make_model(output))
    asked = questions(output / "asked")
    export(source, output / "exported", "gguf")

    model, processor = mllm.load(source)
    decoding = Decoding(max_new_tokens=limit, logprobs=True, top_logprobs=2)
    ours = [in_chat(model, processor, own, decoding) for own in asked]
    stops = set(processor.stop_token_ids)
    found = {"transformers": by_transformers(output / "exported", asked, limit)}
    if options.llama_python is None or options.converter is None:
        print("llama.cpp was left out: name --llama-python and --converter")
    else:
        found |= by_llama_cpp(output, asked, options.llama_python, options.converter, limit)
    table = compare(asked, ours, found, stops, processor.tokenizer)
    print(f"\n{machine()}\n\n{table}")
    (output / "deployment.md").write_text(table + "\n", encoding="utf-8")


def questions(root: Path) -> list[Asked]:
    """Questions about pictures that are drawn now, each asked in several ways, and some without a picture."""
    rng = random.Random(1)
    root.mkdir(parents=True, exist_ok=True)
    found = []
    for number in range(PICTURES):
        colour, ground = rng.sample(COLOURS, 2)
        path = draw(root / f"{number}.png", rng.choice(SHAPES), colour, ground)
        found += [Asked(text, str(path)) for text in ABOUT_A_PICTURE]
    return [*found, *(Asked(text) for text in IN_WORDS)]


def in_chat(model: Any, processor: Any, asked: Asked, decoding: Decoding) -> Answer:
    """The answer that `mllm chat` gives, with the log-probabilities of its tokens and of those that came second."""
    images = [asked.image] if asked.image is not None else []
    session = mllm.ChatSession(model, processor, max_new_tokens=decoding.max_new_tokens)
    session.ask(asked.text, images)
    (answer,) = generate_answers(model, processor, [Request((asked.message,), tuple(images))], decoding)
    assert session.last is not None and session.last.token_ids == answer.token_ids, "a chat and a batch of one differ"
    return answer


@torch.inference_mode()
def by_transformers(directory: Path, asked: Sequence[Asked], limit: int) -> list[list[int]]:
    """The tokens that transformers generates from an export, prompts written by its own processor."""
    model = AutoModelForImageTextToText.from_pretrained(directory).eval()
    processor = AutoProcessor.from_pretrained(directory)
    found = []
    for own in asked:
        parts = [
            {"type": part.type} | ({"text": own.text} if part.type == "text" else {}) for part in own.message.content
        ]
        text = processor.apply_chat_template([{"role": "user", "content": parts}], add_generation_prompt=True)
        images = {} if own.image is None else {"images": [Image.open(own.image).convert("RGB")]}
        inputs = processor(text=text, **images, return_tensors="pt", add_special_tokens=False)
        written = model.generate(**inputs, max_new_tokens=limit, do_sample=False)
        found.append(written[0, inputs["input_ids"].shape[1] :].tolist())
    return found


def by_llama_cpp(
    output: Path, asked: Sequence[Asked], python: Path, converter: Path, limit: int
) -> dict[str, list[list[int]]]:
    """The tokens that llama.cpp generates, by how its language model is stored and what stands behind an image."""
    found = {}
    for name, kind, behind in (("f32", "f32", "\n"), ("f16", "f16", "\n"), ("f32, no line break", "f32", "")):
        gguf = output / f"model-{kind}.gguf"
        if not gguf.is_file():
            words = [
                sys.executable,
                str(converter),
                str(output / "exported"),
                "--outfile",
                str(gguf),
                "--outtype",
                kind,
            ]
            _called(words)
        job = {
            "model": str(gguf),
            "mmproj": str(output / "exported" / "mmproj.gguf"),
            "max_tokens": limit,
            "threads": torch.get_num_threads(),
            "contents": [own.content(behind) for own in asked],
        }
        (output / "job.json").write_text(json.dumps(job), encoding="utf-8")
        worker = Path(__file__).with_name("llama_worker.py")
        _called([str(python), str(worker), str(output / "job.json"), str(output / "answers.json")])
        answers = json.loads((output / "answers.json").read_text(encoding="utf-8"))
        found[f"llama.cpp, {name}"] = [answer["ids"] for answer in answers]
    return found


def _called(words: list[str]) -> None:
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode != 0:
        last = (done.stderr.strip() or done.stdout.strip()).splitlines()[-1]
        raise UserError(f"{' '.join(words[:2])} failed: {last}")


def compare(
    asked: Sequence[Asked], ours: Sequence[Answer], found: dict[str, list[list[int]]], stops: set[int], tokenizer: Any
) -> str:
    """Two tables: how many answers are ours to the last token, and the first token of each that isn't."""
    equal, partings = {name: 0 for name in found}, []
    for number, (own, answer) in enumerate(zip(asked, ours, strict=True)):
        for name, all_ids in found.items():
            mine, theirs = _words(answer.token_ids, stops), _words(all_ids[number], stops)
            if mine == theirs:
                equal[name] += 1
                continue
            place = next((n for n, (a, b) in enumerate(zip(mine, theirs, strict=False)) if a != b), None)
            place = min(len(mine), len(theirs)) if place is None else place
            top = answer.logprobs[min(place, len(answer.logprobs) - 1)].top
            margin = f"{top[0][1] - top[1][1]:.3f}"
            pair = [
                repr(tokenizer.decode(ids[place : place + 1])) if place < len(ids) else "its end"
                for ids in (mine, theirs)
            ]
            second = "yes" if place < len(theirs) and theirs[place] == top[1][0] else "no"
            picture = Path(own.image).stem if own.image is not None else "–"
            partings.append([name, picture, own.text, place + 1, *pair, margin, second])
    counts = [[name, f"{count} of {len(asked)}"] for name, count in equal.items()]
    header = ("engine", "picture", "question", "token", "ours", "theirs", "our margin, nats", "our second choice")
    examples = [[own.text, answer.text] for own, answer in zip(asked, ours, strict=True)]
    return "\n\n".join(
        (
            markdown_table(("engine", "answers equal to ours"), counts),
            markdown_table(header, partings),
            markdown_table(("question", "our answer"), examples),
        )
    )


def _words(ids: Sequence[int], stops: set[int]) -> list[int]:
    """The tokens of an answer without the one that ends it."""
    return [token for token in ids if token not in stops]


if __name__ == "__main__":
    run_command(main)
