"""Kept keys and values of a public model: a late turn of a chat, and many questions on one image, against transformers.

    python benchmarks/public_chat.py --rounds 5                      # positions along three axes
    python benchmarks/public_chat.py --family gemma3 --rounds 5      # windows, and images whose tokens see each other
    python benchmarks/public_chat.py --layers 2 --rounds 1           # to try the script

A family's own classes with a language model of SmolLM2-135M's shape, an encoder of about CLIP-B/16's and random weights. The
peer is the same model's `generate` on what its own processor makes of the whole conversation, as its model card does it. A
token is a byte.
"""

import argparse
import dataclasses
import inspect
import random
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from inference_peers import picture
from measuring import in_turn, machine, markdown_table, rates_table, spread
from PIL import Image
from transformers import PreTrainedModel, ProcessorMixin
from workloads import SMOLLM2_135M

from mllm.conformance.families import families
from mllm.conformance.tiny import Tiny
from mllm.conversation.schema import ImagePart, Message, TextPart
from mllm.inference.chat import ChatSession
from mllm.inference.generate import generate_batch
from mllm.inference.request import Request
from mllm.model.public import wrap

WORDS = {**SMOLLM2_135M, "head_dim": 64, "tie_word_embeddings": False}
EYES = {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12, "num_hidden_layers": 12}
LETTERS = "abcdefghijklmnopqrstuvwxyz"
MERGED_SIDE_PX = 28
IMAGE_TOKENS = 196
AREA = {"shortest_edge": IMAGE_TOKENS * MERGED_SIDE_PX**2, "longest_edge": IMAGE_TOKENS * MERGED_SIDE_PX**2}
SQUARE = {"height": 224, "width": 224}
# What makes a family's tiny model as large as the others: settings of its configuration, image processor and processor.
WIDER: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "qwen2_5_vl": (
        {
            "tie_word_embeddings": False,
            "text_config": {**WORDS, "rope_parameters": {"mrope_section": [8, 12, 12]}},
            "vision_config": {
                **{"hidden_size": 768, "intermediate_size": 3072, "num_heads": 12, "depth": 12},
                **{"out_hidden_size": WORDS["hidden_size"], "fullatt_block_indexes": [5, 11]},
            },
        },
        {"size": AREA},
        {},
    ),
    "gemma3": (
        {
            "text_config": {**WORDS, "sliding_window": 512, "query_pre_attn_scalar": 64},
            "vision_config": {**EYES, "image_size": 224},
            "mm_tokens_per_image": IMAGE_TOKENS,
            "tie_word_embeddings": False,
        },
        {"size": SQUARE},
        {"image_seq_length": IMAGE_TOKENS},
    ),
}


def make_peer(name: str, layers: int) -> tuple[PreTrainedModel, ProcessorMixin]:
    """A family's model of these sizes with weights that are drawn, and its processor, which pads on the left."""
    family, (config, pixels, processor) = families()[name], WIDER[name]
    kinds = ["full_attention"] * layers
    if "sliding_window" in config["text_config"]:
        kinds = [kinds[n] if n % 2 else "sliding_attention" for n in range(layers)]
    config["text_config"] |= {"num_hidden_layers": layers, "layer_types": kinds}
    tiny = Tiny.of(
        dataclasses.replace(
            family,
            config=family.config | config,
            image_processor=family.image_processor | pixels,
            processor=family.processor | processor,
        )
    )
    peer, own = tiny.peer()
    own.tokenizer.padding_side = "left"
    # Answers of letters alone are rendered in a later turn as the tokens that they were written in.
    letters = own.tokenizer.convert_tokens_to_ids(list(LETTERS))
    weight = peer.get_output_embeddings().weight.data
    kept = weight[letters].clone()
    weight.zero_()[letters] = kept
    return peer, own


def peers_inputs(
    peer: PreTrainedModel, processor: ProcessorMixin, conversations: Sequence[Sequence[Message]], images: Sequence[str]
) -> dict[str, torch.Tensor]:
    """What the peer's processor makes of conversations, each of which shows `images` with its first question."""
    turns = [[message.model_dump(include={"role", "content"}) for message in own] for own in conversations]
    texts = [processor.apply_chat_template(own, add_generation_prompt=True, tokenize=False) for own in turns]
    pictures = [[Image.open(path).convert("RGB") for path in images] for _ in conversations]
    made = processor(text=texts, images=pictures, padding=True, return_tensors="pt", return_mm_token_type_ids=True)
    known = inspect.signature(peer.forward).parameters
    return {name: value for name, value in made.items() if name in known}


def words(rng: random.Random, count: int) -> str:
    """A text of so many tokens."""
    return "".join(rng.choices(LETTERS, k=count))


def late_turn(model: Any, processor: Any, image: str, options: argparse.Namespace) -> None:
    """Time to the first token of a turn, when the others are there."""
    rng = random.Random(0)
    session = ChatSession(model, processor, max_new_tokens=options.answer_tokens)
    for turn in range(options.turn - 1):
        session.ask(words(rng, options.question_tokens), [image] if turn == 0 else [])
    history = list(session.messages)
    # Another question each time: an equal one would find its own keys and values.
    questions = [words(rng, options.question_tokens) for _ in range(options.rounds + 1)]
    first: dict[str, list[int]] = {"ours": [], "peer": []}

    def ours() -> None:
        session.ask(questions[len(first["ours"])], is_cancelled=lambda: True)
        first["ours"].append(session.last.token_ids[0])
        session.undo()

    def peer() -> None:
        messages = [*history, Message(role="user", content=questions[len(first["peer"])])]
        inputs = peers_inputs(model.peer, processor.peer, [messages], [image])
        with torch.inference_mode():
            out = model.peer.generate(**inputs, max_new_tokens=1, do_sample=False)
        first["peer"].append(int(out[0, -1]))

    taken = in_turn({"ours": ours, "peer": peer}, options.rounds)
    rows = [
        [name, f"{1000 * median(own):.0f}", f"{spread(own):.2f}", f"{median(taken['peer']) / median(own):.1f}"]
        for name, own in taken.items()
    ]
    prompt, new = session.last.prompt_token_count, session.last.computed_token_count
    print(f"turn {options.turn}, a prompt of {prompt} tokens, {new} of them new")
    print(markdown_table(["", "first token, ms", "spread", "times faster than the peer"], rows))
    print(f"equal first tokens: {sum(a == b for a, b in zip(*first.values(), strict=True))} of {options.rounds + 1}\n")


def many_questions(model: Any, processor: Any, image: str, options: argparse.Namespace) -> None:
    """Questions on one image, short answers, all known beforehand."""
    rng = random.Random(1)
    asked = [words(rng, rng.randint(8, 14)) for _ in range(options.questions)]
    messages = [Message(role="user", content=(ImagePart(), TextPart(text=text))) for text in asked]
    requests = [Request((message,), (image,)) for message in messages]
    answers: dict[str, list[str]] = {}

    def ours() -> None:
        answers["ours"] = generate_batch(model, processor, requests, options.short_answer_tokens)

    def peer(size: int) -> None:
        texts = []
        for start in range(0, len(messages), size):
            inputs = peers_inputs(model.peer, processor.peer, [[m] for m in messages[start : start + size]], [image])
            with torch.inference_mode():
                out = model.peer.generate(**inputs, max_new_tokens=options.short_answer_tokens, do_sample=False)
            written = out[:, inputs["input_ids"].shape[1] :]
            texts += processor.tokenizer.batch_decode(written, skip_special_tokens=True)
        answers[f"peer, batches of {size}"] = [text.strip() for text in texts]

    contenders = {"ours": ours} | {
        f"peer, batches of {size}": lambda size=size: peer(size) for size in options.batch_sizes
    }
    taken = in_turn(contenders, options.rounds)
    print(f"{options.questions} questions on one image")
    print(rates_table(taken, answers))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", choices=WIDER, default="qwen2_5_vl")
    parser.add_argument("--layers", type=int, default=SMOLLM2_135M["num_hidden_layers"], help="of the language model")
    parser.add_argument("--turn", type=int, default=10)
    parser.add_argument("--question-tokens", type=int, default=20)
    parser.add_argument("--answer-tokens", type=int, default=64)
    parser.add_argument("--questions", type=int, default=10)
    parser.add_argument("--short-answer-tokens", type=int, default=3)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 10], help="of the peer")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model, processor = wrap(*make_peer(options.family, options.layers))
        image = picture(Path(folder) / "image.png", random.Random(0))
        print(machine())
        late_turn(model.eval(), processor, image, options)
        many_questions(model, processor, image, options)


if __name__ == "__main__":
    main()
