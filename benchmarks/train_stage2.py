"""Second-stage training (projector and language model learn) against `LlavaForConditionalGeneration` under HF's Trainer.

    python benchmarks/train_stage2.py                                     # 5 conversations an image
    python benchmarks/train_stage2.py --questions 10 --words 8 24          # 10 short questions an image
    python benchmarks/train_stage2.py --questions 1 --images 80            # one conversation an image

A language model of SmolLM2-135M's shape, an encoder of CLIP-B/16's that gives 196 tokens, random weights.
"""

import argparse

from training_peers import OURS, compare
from training_race import arguments


def main() -> None:
    parser = arguments(argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter))
    parser.add_argument("--images", type=int, default=40)
    parser.add_argument("--questions", type=int, default=5, help="conversations an image")
    parser.add_argument("--words", type=int, nargs=2, default=(30, 110), help="shortest and longest conversation")
    compare(__file__, parser.parse_args(), {"language_model": "full"}, list(OURS))


if __name__ == "__main__":
    main()
