"""Tokens a second of one answer about one image: ours against transformers' `generate` with each of its caches.

python benchmarks/decode.py --answer-tokens 128 --rounds 5
"""

import argparse
import random
import tempfile
from pathlib import Path
from statistics import median

import torch
from inference_peers import make_pair, picture, words
from measuring import in_turn, machine, markdown_table, spread

from mllm.conversation.schema import ImagePart, Message, TextPart
from mllm.inference.decoding import Decoding
from mllm.inference.generate import Request, generate_answers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--answer-tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    rng = random.Random(0)
    with tempfile.TemporaryDirectory() as folder:
        pair = make_pair(Path(folder), options.device)
        image = picture(Path(folder) / "image.png", rng)
        messages = (Message(role="user", content=(ImagePart(), TextPart(text=words(rng, 20)))),)
        written: dict[str, list[int]] = {}

        def ours() -> None:
            decoding = Decoding(max_new_tokens=options.answer_tokens)
            answer = generate_answers(pair.model, pair.processor, [Request(messages, (image,))], decoding)[0]
            written["ours"] = list(answer.token_ids)

        def peer(cache: str) -> None:
            inputs = pair.inputs([messages], [image])
            with torch.inference_mode():
                out = pair.peer.generate(
                    **inputs, max_new_tokens=options.answer_tokens, do_sample=False, cache_implementation=cache
                )
            written[f"peer, {cache} cache"] = out[0, inputs["input_ids"].shape[1] :].tolist()

        contenders = {"ours": ours}
        for cache in ("dynamic", "static"):
            contenders[f"peer, {cache} cache"] = lambda cache=cache: peer(cache)
        taken = in_turn(contenders, options.rounds)
    best = min(median(seconds) for name, seconds in taken.items() if name != "ours")
    rows = [
        [
            name,
            f"{len(written[name]) / median(seconds):.1f}",
            f"{spread(seconds):.2f}",
            f"{best / median(seconds):.2f}",
            "yes" if written[name] == written["ours"] else "no",
        ]
        for name, seconds in taken.items()
    ]
    print(machine())
    print(f"{options.answer_tokens} tokens, prompt and image included in the time")
    print(markdown_table(["", "tokens/s", "spread", "against the best peer", "equal tokens"], rows))


if __name__ == "__main__":
    main()
