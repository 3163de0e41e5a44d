"""Time to the first token at a late turn of a chat with one image: ours against prefilling everything again.

The peer is transformers' `LlavaForConditionalGeneration.generate` on the whole conversation, as LLaVA's own chat does it.

    python benchmarks/chat_turns.py --turn 10 --rounds 5
"""

import argparse
import random
import tempfile
from pathlib import Path
from statistics import median

import torch
from inference_peers import make_pair, picture, words
from measuring import in_turn, machine, markdown_table, spread

import mllm
from mllm.conversation.schema import Message


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turn", type=int, default=10)
    parser.add_argument("--question-tokens", type=int, default=20)
    parser.add_argument("--answer-tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    rng = random.Random(0)
    with tempfile.TemporaryDirectory() as folder:
        pair = make_pair(Path(folder))
        image = picture(Path(folder) / "image.png", rng)
        session = mllm.ChatSession(pair.model, pair.processor, max_new_tokens=options.answer_tokens)
        for turn in range(options.turn - 1):
            session.ask(words(rng, options.question_tokens), [image] if turn == 0 else [])
        history = list(session.messages)
        # Another question each time: an equal one would find its own keys and values.
        questions = [words(rng, options.question_tokens) for _ in range(options.rounds + 1)]
        place = {"ours": 0, "peer": 0}
        first: dict[str, list[int]] = {"ours": [], "peer": []}

        def ours() -> None:
            session.ask(questions[place["ours"]], is_cancelled=lambda: True)
            first["ours"].append(session.last.token_ids[0])
            session.undo()
            place["ours"] += 1

        def peer() -> None:
            messages = [*history, Message(role="user", content=questions[place["peer"]])]
            inputs = pair.inputs([messages], [image])
            with torch.inference_mode():
                out = pair.peer.generate(**inputs, max_new_tokens=1, do_sample=False)
            first["peer"].append(int(out[0, -1]))
            place["peer"] += 1

        taken = in_turn({"ours": ours, "peer": peer}, options.rounds)
        prompt = session.last.prompt_token_count

    rows = [
        [
            name,
            f"{1000 * median(seconds):.0f}",
            f"{spread(seconds):.2f}",
            f"{median(taken['peer']) / median(seconds):.1f}",
        ]
        for name, seconds in taken.items()
    ]
    print(machine())
    print(f"turn {options.turn}, a prompt of {prompt} tokens, {session.last.computed_token_count} of them new")
    print(markdown_table(["", "first token, ms", "spread", "times faster than the peer"], rows))
    print(f"equal first tokens: {sum(a == b for a, b in zip(*first.values(), strict=True))} of {options.rounds + 1}")


if __name__ == "__main__":
    main()
