"""First-stage training (the projector alone learns, one caption an image) against HF's LLaVA under its Trainer.

    python benchmarks/train_stage1.py

A language model of SmolLM2-135M's shape, an encoder of CLIP-B/16's that gives 196 tokens, random weights.
"""

import argparse

from training_peers import compare
from training_race import arguments


def main() -> None:
    parser = arguments(argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter))
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--words", type=int, nargs=2, default=(10, 50), help="shortest and longest caption")
    parser.set_defaults(questions=1)
    compare(
        __file__, parser.parse_args(), {"language_model": "frozen"}, ["ours, samples packed", "ours, a row a sample"]
    )


if __name__ == "__main__":
    main()
