"""Questions a second of an evaluation: the runner against a plain loop over transformers' `generate`, at its best batch size.

Files of POPE's and VQAv2's shape (18 and 4 questions an image) go through their readers, prompts and the log of answers.
Contenders have a process each and take turns; answers are compared.

python benchmarks/eval_throughput.py --shape pope --images 4 --rounds 3
"""

import argparse
import json
import random
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from contenders import Contender, serve
from inference_peers import Pair, make_pair, picture, words
from measuring import machine, rates_table
from safetensors.torch import load_file, save_file
from transformers import AutoProcessor, LlavaForConditionalGeneration

import mllm
from mllm.evaluation.asking import AnswerLog, Question, answer_all
from mllm.evaluation.benchmarks import find_benchmark
from mllm.evaluation.controls import questions_of
from mllm.evaluation.subjects.local import LocalModel

OURS = "ours"
QUESTION_WORDS = (5, 10)
KINDS = ("random", "popular", "adversarial")


def write_pope(data: Path, images: list[str], rng: random.Random) -> None:
    """18 questions an image, six in each of the three files."""
    for kind in KINDS:
        lines = [
            {"question_id": n, "image": name, "text": words(rng, rng.randint(*QUESTION_WORDS)), "label": "yes"}
            for n, name in enumerate(name for name in images for _ in range(6))
        ]
        (data / "pope" / f"coco_pope_{kind}.json").write_text("\n".join(map(json.dumps, lines)))


def write_vqav2(data: Path, images: list[str], rng: random.Random) -> None:
    """4 questions an image."""
    questions, annotations = [], []
    for n, image_id in enumerate(n for n in range(len(images)) for _ in range(4)):
        text = words(rng, rng.randint(*QUESTION_WORDS))
        questions.append({"question_id": n, "image_id": image_id, "question": text})
        answers = [{"answer": "w1", "answer_confidence": "yes", "answer_id": k} for k in range(1, 11)]
        kinds = {"question_type": "what", "answer_type": "other", "multiple_choice_answer": "w1"}
        annotations.append({"question_id": n, "image_id": image_id, "answers": answers} | kinds)
    root = data / "vqav2"
    (root / "v2_OpenEnded_mscoco_val2014_questions.json").write_text(json.dumps({"questions": questions}))
    (root / "v2_mscoco_val2014_annotations.json").write_text(json.dumps({"annotations": annotations}))


WRITERS = {"pope": write_pope, "vqav2": write_vqav2}


def write_release(data: Path, shape: str, count: int) -> None:
    rng = random.Random(0)
    folder = data / shape / "val2014"
    folder.mkdir(parents=True)
    names = [f"COCO_val2014_{n:012d}.jpg" for n in range(count)]
    for name in names:
        picture(folder / name, rng)
    WRITERS[shape](data, names, rng)


def spread_answers(directory: Path) -> None:
    """Scale the language model's matrices: freshly drawn ones answer with the prompt's last word, whatever the question."""
    path = directory / "model.safetensors"
    weights = load_file(path)
    for name, weight in weights.items():
        if "language_model" in name and weight.dim() > 1 and "embed" not in name and "lm_head" not in name:
            weight *= 5
    save_file(weights, path, {"format": "pt"})


def read_questions(options: argparse.Namespace) -> list[Question]:
    benchmark = find_benchmark(options.shape)
    asked = questions_of(benchmark, benchmark.items(options.root / options.shape), "model", seed=0)
    return [replace(question, max_new_tokens=options.answer_tokens) for question in asked]


def prepare_ours(options: argparse.Namespace) -> Callable[[], dict[str, Any]]:
    subject = LocalModel(*mllm.load(options.root / "hf"), options.batch_size, {"model": "benchmark"})
    questions = read_questions(options)

    def run() -> dict[str, Any]:
        with tempfile.TemporaryDirectory() as folder:
            log = AnswerLog(Path(folder), 0, subject.identity, str)
            started = time.perf_counter()
            replies = answer_all(questions, subject, log)
            seconds = time.perf_counter() - started
            log.close()
        return {"seconds": seconds, "answers": [replies[question].text for question in questions]}

    return run


def prepare_peer(options: argparse.Namespace, batch_size: int) -> Callable[[], dict[str, Any]]:
    processor = AutoProcessor.from_pretrained(options.root / "hf")
    processor.tokenizer.padding_side = "left"
    peer = LlavaForConditionalGeneration.from_pretrained(options.root / "hf").eval()
    pair = Pair(*mllm.load(options.root / "hf"), peer, processor, options.root / "hf")
    requests = [question.request() for question in read_questions(options)]

    def run() -> dict[str, Any]:
        texts: list[str] = []
        started = time.perf_counter()
        for start in range(0, len(requests), batch_size):
            chosen = requests[start : start + batch_size]
            inputs = pair.inputs([r.messages for r in chosen], [str(r.images[0]) for r in chosen])
            with torch.inference_mode():
                out = peer.generate(**inputs, max_new_tokens=options.answer_tokens, do_sample=False)
            texts += processor.batch_decode(out[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        return {"seconds": time.perf_counter() - started, "answers": [text.strip() for text in texts]}

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=sorted(WRITERS), default="pope")
    parser.add_argument("--images", type=int, default=4)
    parser.add_argument("--answer-tokens", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=32, help="ours")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 4, 18], help="of the peer")
    parser.add_argument("--rounds", type=int, default=3, help="after one that isn't counted")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--root", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker == OURS:
        serve(lambda: prepare_ours(options))
    elif options.worker:
        serve(lambda: prepare_peer(options, int(options.worker)))
    else:
        with tempfile.TemporaryDirectory() as folder:
            options.root = Path(folder)
            compare(options)


def compare(options: argparse.Namespace) -> None:
    make_pair(options.root)
    spread_answers(options.root / "hf")
    write_release(options.root / options.shape, options.shape, options.images)
    names = [OURS, *map(str, options.batch_sizes)]
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    common = ["--root", str(options.root), "--shape", options.shape, "--answer-tokens", str(options.answer_tokens)]
    common += ["--batch-size", str(options.batch_size)]
    contenders = {n: Contender(__file__, ["--worker", n, *common], options.root / f"{n}.log") for n in names}
    for number in range(options.rounds + 1):
        for name, contender in contenders.items():
            result = contender.run()
            found[name] += [result] if number else []
    for contender in contenders.values():
        contender.close()
    shown = {name: name if name == OURS else f"transformers, batches of {name}" for name in names}
    seconds = {shown[name]: [result["seconds"] for result in results] for name, results in found.items()}
    answers = {shown[name]: results[0]["answers"] for name, results in found.items()}
    print(machine())
    distinct = len(set(answers[OURS]))
    print(f"{options.shape}: {options.images} images, {len(answers[OURS])} questions, {distinct} distinct answers")
    print(rates_table(seconds, answers, OURS))


if __name__ == "__main__":
    main()
