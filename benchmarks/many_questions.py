"""Many short questions to each image, in POPE's shape: ours against transformers' `generate` at its best batch size.

python benchmarks/many_questions.py --images 4 --questions 18 --rounds 3
"""

import argparse
import random
import tempfile
from pathlib import Path

import torch
from inference_peers import make_pair, picture, words
from measuring import in_turn, machine, rates_table

from mllm.conversation.schema import ImagePart, Message, TextPart
from mllm.inference.generate import Request, generate_batch


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=4)
    parser.add_argument("--questions", type=int, default=18, help="to each image")
    parser.add_argument("--question-tokens", type=int, nargs=2, default=[8, 14], metavar=("LEAST", "MOST"))
    parser.add_argument("--answer-tokens", type=int, default=3)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 4, 18, 36], help="of the peer")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    rng = random.Random(0)
    with tempfile.TemporaryDirectory() as folder:
        pair = make_pair(Path(folder))
        requests = []
        for number in range(options.images):
            image = picture(Path(folder) / f"{number}.png", rng)
            for _ in range(options.questions):
                text = words(rng, rng.randint(*options.question_tokens))
                message = Message(role="user", content=(ImagePart(), TextPart(text=text)))
                requests.append(Request((message,), (image,)))
        answers: dict[str, list[str]] = {}

        def ours() -> None:
            answers["ours"] = generate_batch(pair.model, pair.processor, requests, options.answer_tokens)

        def peer(batch_size: int) -> None:
            texts = []
            for start in range(0, len(requests), batch_size):
                chosen = requests[start : start + batch_size]
                inputs = pair.inputs([r.messages for r in chosen], [str(r.images[0]) for r in chosen])
                with torch.inference_mode():
                    out = pair.peer.generate(**inputs, max_new_tokens=options.answer_tokens, do_sample=False)
                texts += pair.peer_processor.batch_decode(
                    out[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True
                )
            answers[f"peer, batches of {batch_size}"] = [text.strip() for text in texts]

        contenders = {"ours": ours}
        for size in options.batch_sizes:
            contenders[f"peer, batches of {size}"] = lambda size=size: peer(size)
        taken = in_turn(contenders, options.rounds)
    print(machine())
    print(f"{options.images} images with {options.questions} questions each")
    print(rates_table(taken, answers))


if __name__ == "__main__":
    main()
