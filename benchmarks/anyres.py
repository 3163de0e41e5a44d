"""Images in tiles and videos against transformers' LLaVA-NeXT and LLaVA-NeXT-Video, with the same weights and inputs.

    python benchmarks/anyres.py train                              # 5 conversations an image
    python benchmarks/anyres.py train --questions 1 --images 100   # one conversation an image
    python benchmarks/anyres.py chat --turn 10                     # time to the first token, late in a chat on one image
    python benchmarks/anyres.py video --questions 10               # many questions to one video

A language model of SmolLM2-135M's shape, an encoder of CLIP-B/16's (196 features a tile, LLaVA-1.6's pinpoints), random
weights. Pictures of 320 × 240 pixels become an overview and four tiles, a video eight frames. The peer trains under its
Trainer, and answers by `generate`. Losses and answers have to agree before anything is timed; both sides read tokens that
are rendered, and tiles that are cut, by the same code, which is timed on both. `--shape tiny` tries it on small parts.
"""

import argparse
import random
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from inference_peers import picture, words
from measuring import in_turn, machine, markdown_table, spread
from training_peers import OURS, compare
from training_race import arguments as training_arguments
from transformers import AutoModelForImageTextToText, PreTrainedModel
from workloads import SHAPES, save_parts

import mllm
from mllm.checkpoint.llava_export import export_llava
from mllm.checkpoint.start import build
from mllm.conversation.schema import Message, TextPart, VideoPart
from mllm.inference.generate import generate_batch
from mllm.inference.request import Request, render_request
from mllm.model.multimodal import MultimodalLM
from mllm.model.settings import ModelSettings
from mllm.processor import Processor
from mllm.settings import validate_settings

TILES = {"tiling": "anyres"}
VIDEO = {"pooling": "average", "pool_before_projector": True, "sampling": "exclusive"}


@dataclass(frozen=True)
class Peers:
    """Our model and transformers' of equal weights, and the processor of ours, which makes the inputs of both."""

    model: MultimodalLM
    processor: Processor
    peer: PreTrainedModel

    def inputs(self, request: Request) -> dict[str, torch.Tensor]:
        """What the peer takes of a request: ids, and the tiles of its image with its size or the frames of its video."""
        tokens = render_request(request, self.processor)
        (visual,), (source,) = tokens.visuals, request.images
        tiles = torch.stack(self.processor.read_tiles(source, visual))[None]
        ids = torch.tensor([tokens.input_ids])
        if visual.frames is not None:
            ids[ids == self.processor.image_token_id] = self.peer.config.video_token_index
            return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values_videos": tiles}
        size = self.processor.read_sizes(request.messages, request.images)
        shown = {"pixel_values": tiles, "image_sizes": torch.tensor(size)}
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), **shown}

    def generate(self, request: Request, count: int) -> list[int]:
        """The peer's first `count` tokens, greedily."""
        inputs = self.inputs(request)
        with torch.inference_mode():
            out = self.peer.generate(**inputs, max_new_tokens=count, do_sample=False)
        return out[0, inputs["input_ids"].shape[1] :].tolist()


def make_peers(root: Path, shape: str, video: dict[str, Any]) -> Peers:
    """In float32 on the CPU."""
    save_parts(root, *SHAPES[shape])
    values = {
        "vision_encoder": {"path": str(root / "clip")},
        "language_model": {"path": str(root / "lm")},
        "image": TILES,
        "video": video,
        "prompt_format": "chatml",
    }
    model, processor = build(validate_settings(ModelSettings, values, "benchmark"))
    export_llava(model, processor, root / "hf")
    peer = AutoModelForImageTextToText.from_pretrained(root / "hf", dtype=torch.float32).eval()
    return Peers(*mllm.load(root / "hf", dtype="float32", device="cpu"), peer)


def train(options: argparse.Namespace) -> None:
    compare(__file__, options, {"language_model": "full"}, list(OURS))


def chat(options: argparse.Namespace) -> None:
    rng = random.Random(0)
    with tempfile.TemporaryDirectory() as folder:
        peers = make_peers(Path(folder), options.shape, {})
        image = picture(Path(folder) / "image.png", rng)
        session = mllm.ChatSession(peers.model, peers.processor, max_new_tokens=options.answer_tokens)
        for turn in range(options.turn - 1):
            session.ask(words(rng, options.question_tokens), [image] if turn == 0 else [])
        history = list(session.messages)
        # Another question each time: an equal one would find its own keys and values.
        questions = [words(rng, options.question_tokens) for _ in range(options.rounds + 2)]
        asked = {"ours": iter(questions), "peer": iter(questions)}

        def ours() -> int:
            session.ask(next(asked["ours"]), is_cancelled=lambda: True)
            token = session.last.token_ids[0]
            session.undo()
            return token

        def peer() -> int:
            messages = (*history, Message(role="user", content=next(asked["peer"])))
            return peers.generate(Request(messages, (image,)), 1)[0]

        _check(ours(), peer())
        taken = in_turn({"ours": ours, "peer": peer}, options.rounds)
        last = session.last
    shown = (
        f"turn {options.turn}, a prompt of {last.prompt_token_count} tokens, {last.computed_token_count} of them new"
    )
    _report(shown, "first token, ms", taken)


def video(options: argparse.Namespace) -> None:
    rng = random.Random(0)
    with tempfile.TemporaryDirectory() as folder:
        peers = make_peers(Path(folder), options.shape, VIDEO | {"frames": options.frames})
        clip = Path(folder) / "frames"
        clip.mkdir()
        for number in range(2 * options.frames):
            picture(clip / f"{number}.png", rng)
        texts = [words(rng, rng.randint(*options.question_tokens)) for _ in range(options.questions)]
        requests = [
            Request((Message(role="user", content=(VideoPart(), TextPart(text=text))),), (str(clip),)) for text in texts
        ]

        def ours() -> list[str]:
            return generate_batch(peers.model, peers.processor, requests, options.answer_tokens)

        def peer() -> list[str]:
            answers = [peers.generate(request, options.answer_tokens) for request in requests]
            return [text.strip() for text in peers.processor.tokenizer.batch_decode(answers, skip_special_tokens=True)]

        _check(ours(), peer())
        taken = in_turn({"ours": ours, "peer": peer}, options.rounds)
        tokens = render_request(requests[0], peers.processor)
    shown = (
        f"{options.questions} questions to a video of {options.frames} frames, {tokens.image_spans[0][1]} image tokens"
    )
    _report(shown, "all questions, ms", taken)


def _check(ours: object, peer: object) -> None:
    """Raise SystemExit unless both answer alike."""
    if ours != peer:
        raise SystemExit(f"the answers differ: ours {ours}, the peer's {peer}")


def _report(shown: str, unit: str, taken: dict[str, list[float]]) -> None:
    rows = [
        [
            name,
            f"{1000 * median(seconds):.0f}",
            f"{spread(seconds):.2f}",
            f"{median(taken['peer']) / median(seconds):.1f}",
        ]
        for name, seconds in taken.items()
    ]
    print(f"{machine()}\n{shown}; equal answers")
    print(markdown_table(["", unit, "spread", "times faster than the peer"], rows))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = parser.add_subparsers(dest="part", required=True)
    training = training_arguments(parts.add_parser("train"))
    training.set_defaults(image=TILES, subcommand=("train",))
    training.add_argument("--images", type=int, default=40)
    training.add_argument("--questions", type=int, default=5, help="conversations an image")
    training.add_argument("--words", type=int, nargs=2, default=(30, 110), help="shortest and longest conversation")
    talking, watching = parts.add_parser("chat"), parts.add_parser("video")
    talking.add_argument("--turn", type=int, default=10)
    talking.add_argument("--question-tokens", type=int, default=20)
    talking.add_argument("--answer-tokens", type=int, default=64)
    watching.add_argument("--questions", type=int, default=10)
    watching.add_argument("--question-tokens", type=int, nargs=2, default=[8, 14], metavar=("LEAST", "MOST"))
    watching.add_argument("--answer-tokens", type=int, default=3)
    watching.add_argument("--frames", type=int, default=8)
    for own in (talking, watching):
        own.add_argument("--rounds", type=int, default=3)
        own.add_argument("--shape", choices=SHAPES, default="smollm2_135m", help="of language model and encoder")
    options = parser.parse_args()
    run: Callable[[argparse.Namespace], None] = {"train": train, "chat": chat, "video": video}[options.part]
    run(options)


if __name__ == "__main__":
    main()
