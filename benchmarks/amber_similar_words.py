"""Write the near-synonyms among AMBER's words, which `amber` reads in place of spaCy: `DATA/amber/similar_words.json`.

    python benchmarks/amber_similar_words.py data/amber/similar_words.json

It needs `pip install spacy` and `python -m spacy download en_core_web_lg`, whose vectors the authors' script uses; words
whose similarity is above 0.8 are near-synonyms there. It was not run with that model here, only with a stand-in.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mllm.evaluation.metrics.amber_words import VOCABULARY

MODEL = "en_core_web_lg"
ABOVE = 0.8


def similar_words(read: Callable[[str], Any]) -> dict[str, list[str]]:
    """A word → the others that are like it. read: makes of a text what has a `similarity` to others, as spaCy does."""
    words = sorted(VOCABULARY)
    texts = {word: read(word) for word in words}
    found = {
        word: [other for other in words if other != word and texts[word].similarity(texts[other]) > ABOVE]
        for word in words
    }
    return {word: others for word, others in found.items() if others}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="The file to write.")
    options = parser.parse_args()
    import spacy

    found = similar_words(spacy.load(MODEL))
    options.out.write_text(json.dumps(found, indent=1), encoding="utf-8")
    print(f"saved {options.out}: {sum(map(len, found.values()))} near-synonyms of {len(found)} words")


if __name__ == "__main__":
    main()
